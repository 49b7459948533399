"""The device side: the base learner, the learners of all methods, and the ClientApp."""

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.nonfinite import NonFiniteModelError
from ..methods.agm import Agm, AgmOptions
from ..methods.ccl import Ccl, CclOptions
from ..methods.creamfl import CreamFl, CreamFlOptions
from ..methods.di_mml import DiMml, DiMmlOptions
from ..methods.dmml_kd import DmmlKd, DmmlKdOptions
from ..methods.fedcmi import FedCmi, FedCmiOptions
from ..methods.fedgen import FedGen, FedGenOptions
from ..methods.fedproto import FedProto, FedProtoOptions
from ..methods.fedprox import FedProx, FedProxOptions
from ..methods.greedy import Greedy, GreedyOptions
from ..methods.harmony import Harmony, HarmonyOptions
from ..methods.idkd import Idkd, IdkdOptions
from ..methods.kd import Kd, KdOptions
from ..methods.local import Local
from ..methods.mfcpl import Mfcpl, MfcplOptions
from ..methods.mla import Mla, MlaOptions
from ..methods.mmpareto import MmPareto, MmParetoOptions
from ..methods.modality_dropout import ModalityDropout, ModalityDropoutOptions
from ..methods.modality_mirror import MirrorOptions, ModalityMirror
from ..methods.moon import Moon, MoonOptions
from ..methods.ogm_ge import OgmGe, OgmGeOptions
from ..methods.opm import Opm, OpmOptions
from ..methods.parse import Parse, ParseOptions
from ..methods.pmcmfl import PmcmFl, PmcmFlOptions
from ..methods.pmr import Pmr, PmrOptions
from ..methods.presets import D2, DPSGD, DSGDm, QgDsgdm, QgDsgdmN, RelaySGD
from ..methods.registry import find_methods
from .app import make_client_app

__all__ = [
    "D2",
    "DPSGD",
    "Agm",
    "AgmOptions",
    "Batch",
    "Ccl",
    "CclOptions",
    "CreamFl",
    "CreamFlOptions",
    "DSGDm",
    "DiMml",
    "DiMmlOptions",
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
    "Mfcpl",
    "MfcplOptions",
    "MirrorOptions",
    "Mla",
    "MlaOptions",
    "MmPareto",
    "MmParetoOptions",
    "ModalityDropout",
    "ModalityDropoutOptions",
    "ModalityMirror",
    "Moon",
    "MoonOptions",
    "NonFiniteModelError",
    "OgmGe",
    "OgmGeOptions",
    "Opm",
    "OpmOptions",
    "Parse",
    "ParseOptions",
    "PmcmFl",
    "PmcmFlOptions",
    "Pmr",
    "PmrOptions",
    "QgDsgdm",
    "QgDsgdmN",
    "RelaySGD",
    "find_methods",
    "make_client_app",
]
