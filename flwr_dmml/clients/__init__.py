"""What one device does: the base learner, one file a method, and the ClientApp."""

from .app import make_client_app
from .batch import Batch
from .d2 import D2
from .dmml_kd import DmmlKd, DmmlKdOptions
from .dpsgd import DPSGD
from .dsgdm import DSGDm
from .idkd import Idkd, IdkdOptions
from .kd import Kd, KdOptions
from .learner import Learner, NonFiniteModelError
from .local import Local
from .qg_dsgdm import QgDsgdm, QgDsgdmN, QgOptions
from .registry import find_methods, option_types
from .relaysgd import RelaySGD

__all__ = [
    "D2",
    "DPSGD",
    "Batch",
    "DSGDm",
    "DmmlKd",
    "DmmlKdOptions",
    "Idkd",
    "IdkdOptions",
    "Kd",
    "KdOptions",
    "Learner",
    "Local",
    "NonFiniteModelError",
    "QgDsgdm",
    "QgDsgdmN",
    "QgOptions",
    "RelaySGD",
    "find_methods",
    "make_client_app",
    "option_types",
]
