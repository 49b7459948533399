"""The round plan: which rounds are smoothed."""

from custom_method.learner import SMOOTH, SmoothStartOptions
from flwr_dmml.strategies import PeerStrategy


class SmoothStartStrategy(PeerStrategy):
    """Plain gossip in two phases."""

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return ``smooth`` in the first ``share`` of the rounds, ``sharp`` afterwards."""
        options = self.options or SmoothStartOptions()
        assert isinstance(options, SmoothStartOptions)
        return SMOOTH if server_round <= options.share * num_rounds else "sharp"
