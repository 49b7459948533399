"""The base of a method's own options, which also say what its rounds are (:class:`Options`)."""

from collections.abc import Collection

from ..base.options import Group
from ..graph.topology import Topology
from .settings import DeviceSettings


class Options(Group):
    """The options of a method: read from the run config as ``<method>.<option>``, and frozen.

    A method whose rounds differ overrides :meth:`phase`. Coordinator and devices ask the same
    object, and what each phase costs is counted on every device before round 1.
    """

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Return what the method needs of the run's settings and does not find there.

        A line each, ``key = value: what is allowed``; asked of the methods that are to run, before
        anything starts, on the coordinator and on every device.
        """
        return []

    def graph_problem(self, topology: Topology, num_nodes: int, seed: int) -> str:
        """Return why the method cannot run on this graph; empty if it can."""
        return ""

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return what devices do in a round (from 1) besides training: they read ``plan.phase``."""
        return ""

    def phases(self, num_rounds: int) -> list[str]:
        """Return the phase of every round."""
        return [self.phase(t, num_rounds) for t in range(1, num_rounds + 1)]

    def trained(self, phase: str, modalities: tuple[str, ...]) -> Collection[str]:
        """Return which of its ``modalities`` a device trains in a phase; others cost nothing."""
        return modalities
