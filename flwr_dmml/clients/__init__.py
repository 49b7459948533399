"""What one device does: the base learner, one file a method, and the ClientApp."""

from .app import make_client_app
from .batch import Batch
from .d2 import D2
from .dmml_kd import DmmlKd, DmmlKdOptions
from .dpsgd import DPSGD
from .dsgdm import DSGDm
from .fedcmi import FedCmi, FedCmiOptions
from .fedgen import FedGen, FedGenOptions
from .fedproto import FedProto, FedProtoOptions
from .fedprox import FedProx, FedProxOptions
from .greedy import Greedy, GreedyOptions
from .harmony import Harmony, HarmonyOptions
from .idkd import Idkd, IdkdOptions
from .kd import Kd, KdOptions
from .learner import Learner
from .local import Local
from .modality_dropout import ModalityDropout, ModalityDropoutOptions
from .modality_mirror import MirrorOptions, ModalityMirror
from .moon import Moon, MoonOptions
from .nonfinite import NonFiniteModelError
from .ogm_ge import OgmGe, OgmGeOptions
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
    "FedCmi",
    "FedCmiOptions",
    "FedGen",
    "FedGenOptions",
    "FedProto",
    "FedProtoOptions",
    "FedProx",
    "FedProxOptions",
    "Greedy",
    "GreedyOptions",
    "Harmony",
    "HarmonyOptions",
    "Idkd",
    "IdkdOptions",
    "Kd",
    "KdOptions",
    "Learner",
    "Local",
    "MirrorOptions",
    "ModalityDropout",
    "ModalityDropoutOptions",
    "ModalityMirror",
    "Moon",
    "MoonOptions",
    "NonFiniteModelError",
    "OgmGe",
    "OgmGeOptions",
    "QgDsgdm",
    "QgDsgdmN",
    "QgOptions",
    "RelaySGD",
    "find_methods",
    "make_client_app",
    "option_types",
]
