"""The round plan of methods in stages: who trains what changes from stage to stage."""

from ..methods.stages import StagedOptions
from .peer import PeerStrategy


class StagedStrategy(PeerStrategy):
    """Plain gossip in stages; what a stage does not train gets no iterations, and costs nothing.

    Of the iterations that ``allocation.rule`` gives, those remain that the stage trains. A device
    without any rests: it mixes, sends, and is billed for that alone; its battery keeps the rest for
    the rounds to come. Parameters are those of :class:`PeerStrategy`; ``options`` is a
    StagedOptions: the stages, and who trains in each.
    """

    options: StagedOptions

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return ``uni-modal``, ``fusion`` or ``distil``."""
        return self.options.stage(server_round, num_rounds)

    def trained(self, phase: str, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of its ``modalities`` a device trains in a stage; () rests."""
        return self.options.trained(phase, modalities)
