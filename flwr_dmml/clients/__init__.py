"""What one device does: the base learner, one file a method, and the ClientApp."""

from .app import make_client_app
from .batch import Batch
from .dmml_kd import DmmlKd, DmmlKdOptions
from .dpsgd import DPSGD
from .dsgdm import DSGDm
from .learner import Learner, NonFiniteModelError
from .local import Local
from .registry import find_methods, option_types

__all__ = [
    "DPSGD",
    "Batch",
    "DSGDm",
    "DmmlKd",
    "DmmlKdOptions",
    "Learner",
    "Local",
    "NonFiniteModelError",
    "find_methods",
    "make_client_app",
    "option_types",
]
