"""Plan of methods in stages: the stage of each round, and the modalities trained in it."""

from pydantic import Field

from ..data import DataError, assign_modalities, find_dataset
from ..learning.options import Options
from ..learning.settings import DeviceSettings

STAGES = UNI_MODAL, FUSION, DISTIL = "uni-modal", "fusion", "distil"
"""The phases of the plan, in order; a method may end with the second."""


class StagedOptions(Options):
    """Division of the rounds into stages, and the modalities trained in each."""

    uni_modal: float = Field(
        0.5, gt=0, lt=1, description="share of the rounds that train a network of each modality"
    )

    def ends(self) -> dict[str, float]:
        """Return the share of the rounds after which each stage ends, in order."""
        return {UNI_MODAL: self.uni_modal, FUSION: 1.0}

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return the stage of a round (from 1); its last round is the share's, rounded."""
        ends = self.ends().items()
        return next(stage for stage, end in ends if server_round <= round(end * num_rounds))

    def trained(self, phase: str, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of its ``modalities`` a device trains in a stage; () rests, it only mixes.

        All of them, but in the fusion stage a device with one has nothing to fuse.
        """
        return modalities if phase == UNI_MODAL or len(modalities) > 1 else ()

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Refuse a stage without a round, and a fleet that fuses nothing."""
        problems, rounds = super().problems(settings), settings.num_server_rounds
        begun = {self.phase(t, rounds) for t in range(1, rounds + 1)}
        if lacking := [stage for stage in self.ends() if stage not in begun]:
            problems.append(
                f"num-server-rounds = {rounds}: no round is left for the stage '{lacking[0]}'; set "
                "more rounds, or other shares of them"
            )
        owned, shares = fleet(settings), settings.modality_shares
        who = f"modality-{'shares' if shares else 'pattern'} = "
        who += repr(shares or settings.modality_pattern)
        if owned and not any(len(modalities) > 1 for modalities in owned):
            problems.append(f"{who}: no device has two modalities, to fuse them")
        return problems


def fleet(settings: DeviceSettings) -> list[tuple[str, ...]]:
    """Return the modalities of every device; [] where the settings are wrong, which others say."""
    o = settings.partition_options()
    given = {"pattern": o.modality_pattern, "shares": o.modality_shares, "seed": o.seed}
    try:
        every = find_dataset(o.dataset).modalities_of(o.load)
        if every is None:  # only the devices can tell
            return []
        return assign_modalities(o.num_nodes, available=every, **given)  # type: ignore[arg-type]
    except DataError:
        return []
