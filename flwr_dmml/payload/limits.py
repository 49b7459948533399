"""The most that a neighbour's payload may hold, by what a device knows of the run."""

from collections.abc import Mapping
from dataclasses import dataclass

from .blocks import STATISTICS, block_of

NUMBER_BYTES = 4
"""Of a parameter in float32, the widest type in which blocks are sent."""
MORE = 64
"""Numbers that may stand behind those of a block."""


@dataclass(frozen=True)
class Limits:
    """Blocks that a payload may hold, and the most bytes of its entries.

    Attributes
    ----------
    blocks : mapping of str to int
        Length of every block of the device, and of those that others share.
    copies : int
        How often a payload may hold a block: its own, those addressed to one recipient each, those
        carried for others.
    entries : int
        Entries of a copy that are as long as the block: for each vector of the gossip rule two, as
        compression adds places to values.
    statistics : int
        Bytes of all statistics.
    width : int
        Numbers that may stand for one of a block: more than 1 for a method with its own format.
    """

    blocks: Mapping[str, int]
    copies: int = 1
    entries: int = 2
    statistics: int = 0
    width: int = 1

    @property
    def payload_bytes(self) -> int:
        """The most bytes of a whole payload."""
        blocks = sum(map(self._bytes, self.blocks.values()))
        return blocks * self.copies * self.entries + self.statistics

    def problem(self, name: str, num_bytes: int) -> str | None:
        """Say why a payload may not have an entry of this name and length, or return None."""
        if name.startswith(STATISTICS):
            most, what = self.statistics, "statistics"
        elif (block := block_of(name)) in self.blocks:
            length = self.blocks[block]
            most, what = self._bytes(length), f"the block has {length} numbers"
        else:
            return "is a block that no two devices of the run have"
        return f"has {num_bytes} bytes, allowed are {most}: {what}" if num_bytes > most else None

    def _bytes(self, length: int) -> int:
        """Return the most bytes of an entry of a block."""
        return NUMBER_BYTES * (length * self.width + MORE)
