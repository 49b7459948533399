"""The comparisons of the learning benchmark, by name."""

from harness import Case

from .all_methods import ALL
from .balance import BALANCE
from .common import COMMON
from .common import DATA as AUDIO_VISUAL
from .dmml_kd import DMML_KD_CASE
from .fedcmi import FEDCMI_CASE
from .idkd import IDKD_CASE
from .missing import MISSING
from .modality_mirror import MODALITY_MIRROR_CASE
from .sensors import SENSORS_CASE, SP_SW_HAR
from .suite import SUITE

DATA = AUDIO_VISUAL | {"sp-sw-har": SP_SW_HAR}

CASES: dict[str, Case] = {
    "dmml-kd": DMML_KD_CASE,
    "balance": BALANCE,
    "idkd": IDKD_CASE,
    "fedcmi": FEDCMI_CASE,
    "modality-mirror": MODALITY_MIRROR_CASE,
    "sensors": SENSORS_CASE,
    "all": ALL,
    "suite": SUITE,
    "missing": MISSING,
}

__all__ = ["CASES", "COMMON", "DATA"]
