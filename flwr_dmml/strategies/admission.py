"""Admission of devices: finds those whose data or model do not fit those of most devices."""

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Protocol

from ..base.text import one_line


class Admitted(Protocol):
    """Properties that are checked: see :class:`~flwr_dmml.strategies.roster.Member`."""

    @property
    def data(self) -> str:
        """Location, classes and shapes of its data, for people."""

    @property
    def num_classes(self) -> int:
        """0: not told."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: not told."""

    @property
    def channels(self) -> dict[str, str]:
        """Modality -> names of its channels, in order; empty: not told."""

    @property
    def blocks(self) -> dict[str, int]:
        """Name -> length."""


def odd_ones(members: Mapping[int, Admitted]) -> dict[int, str]:
    """Return whose data or model are of another form than those of most devices, and how.

    These are checked in turn, among the devices still in: the number of classes, their names
    where they are told, the length of each block among its owners, and the names of each modality's
    channels where they are told. What most have is right;
    where two forms are equally frequent, that of the lowest partition.

    Parameters
    ----------
    members : mapping of int to Admitted
        By partition id, ascending.
    """
    odd: dict[int, str] = {}

    def vote(what: str, told: Mapping[int, Hashable], need: str) -> None:
        among = {p: value for p, value in told.items() if p not in odd}
        if len(set(among.values())) < 2:
            return
        (usual, _), *_ = Counter(among.values()).most_common(1)
        for partition, value in among.items():
            if value != usual:
                odd[partition] = (
                    "its data are of another kind than those of most devices: "
                    f"{what} {one_line(str(value))}, not {one_line(str(usual))}; all need {need} "
                    f"(its data: {members[partition].data or 'not told'})"
                )

    counts = {p: m.num_classes for p, m in members.items() if m.num_classes}
    vote("number of classes", counts, "the same classes")
    names = {p: ", ".join(m.class_names) for p, m in members.items() if m.class_names}
    vote("classes", names, "the same classes in the same order")
    for block in dict.fromkeys(block for m in members.values() for block in m.blocks):
        lengths = {p: m.blocks[block] for p, m in members.items() if block in m.blocks}
        vote(f"numbers in the block {block}", lengths, "samples of the same shapes")
    for name in dict.fromkeys(name for m in members.values() for name in m.channels):
        channels = {p: m.channels[name] for p, m in members.items() if m.channels.get(name)}
        need = "the same channels in the same order ([channels] of dataset.toml)"
        vote(f"channels of {name}", channels, need)
    return odd
