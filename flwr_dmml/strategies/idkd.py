"""The round plan of methods that label a public set: train, label, fine-tune."""

from typing import Any

from ..graph.topology import Topology
from ..methods.kd import LABEL, KdOptions
from .peer import PeerStrategy

TRAIN, FINE_TUNE = "train", "fine-tune"


class IdkdStrategy(PeerStrategy):
    """Plain gossip with phases: ``train``, then ``label`` now and then, ``fine-tune`` in between.

    In a ``label`` round devices label the public set before they train, and the labels travel with
    their payloads; from the next round on they train on them as well. Bytes of labels are counted
    apart (``label_bytes_sent``), and what labelling takes is billed in those rounds.

    Parameters
    ----------
    topology : Topology
        Who is whose neighbour.
    options : KdOptions, optional
        ``start`` and ``exchange_every`` set the phases.
    **common
        As :class:`PeerStrategy`.
    """

    options: KdOptions

    def __init__(
        self, topology: Topology, *, options: KdOptions | None = None, **common: Any
    ) -> None:
        super().__init__(topology, options=options or KdOptions(), **common)

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return ``train``, ``label`` or ``fine-tune``."""
        rounds = self.options.label_rounds(num_rounds)
        if server_round in rounds:
            return LABEL
        return FINE_TUNE if rounds and server_round > rounds[0] else TRAIN
