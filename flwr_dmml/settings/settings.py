"""All settings of a run but those of its methods (:class:`Settings`)."""

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr

from ..base.machine import RUNS, expanded
from ..base.options import Group
from ..data.options import AudioOptions, ImageOptions, MissingOptions, PublicOptions, SeriesOptions
from ..energy.options import AllocationOptions, EnergyOptions, WirelessOptions
from ..gossip.attacks import AttackOptions
from ..graph.topology import SHARED, Topology, make_topology
from ..learning.settings import DeviceSettings
from ..payload.options import ExchangeOptions
from ..privacy.options import PrivacyOptions


def _number_of_processes(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError('must be "auto" or a whole number, at least 0')


def _devices(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if whole or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError("must be a whole number, at least 1, or a share: above 0.0, at most 1.0")


OF_TOPOLOGY = {name: f"topology_{'file' if name == 'path' else name}" for name in SHARED}
"""The settings that fill fields of topologies, by field."""


class Settings(DeviceSettings):
    """The settings that every method shares; groups of them have a prefix (``energy.…``)."""

    compare_with: str = Field(
        "", description="run this method first, on the same devices, data and seed, and compare"
    )
    evaluate_every: int = Field(
        5, ge=1, description="evaluate every this many rounds, and at the end"
    )
    rounds: Literal["sync", "async"] = Field(
        "sync",
        description="sync: a round of all begins when the slowest is done; async: nobody waits, "
        "each device mixes what has come",
    )
    max_staleness: int = Field(
        3,
        ge=0,
        description="rounds = async: a neighbour's letter is mixed again in so many of the "
        "receiver's own rounds, until a newer one comes",
    )
    wait_timeout: float = Field(60.0, gt=0, description="seconds to wait for the devices at start")
    round_timeout: float = Field(600.0, gt=0, description="seconds to wait for a round's replies")
    min_devices: Annotated[int | float, BeforeValidator(_devices)] = Field(
        1,
        description="stop, with a checkpoint, when fewer devices answer: a number (4), or a share "
        "of num-nodes (0.5; 1.0 is all)",
    )
    topology: str = Field("ring", description="graph family, or 'edge-list' with topology-file")
    topology_degree: int = Field(
        4, ge=1, description="links per device (random-regular, watts-strogatz, epidemic, base)"
    )
    topology_probability: float = Field(
        0.3, ge=0, le=1, description="edge or rewiring probability (erdos-renyi, watts-strogatz)"
    )
    topology_side_m: float = Field(
        100.0, gt=0, description="side of the square in which devices are placed, m (geometric)"
    )
    topology_range_m: float = Field(
        50.0, gt=0, description="devices within this distance are linked, m (geometric)"
    )
    topology_directed: bool = Field(
        False, description="one-way links (ring, exponential, epidemic, edge-list and others)"
    )
    topology_file: str = Field("", description="file with one edge 'i j' per line (edge-list)")
    loss_rate: float = Field(
        0.0, ge=0, lt=1, description="probability that a message to a neighbour is lost"
    )
    final_merge: Literal["off", "owners"] = Field(
        "off",
        description="owners: after the last round all owners of a block average it, by gossip",
    )
    final_merge_tolerance: float = Field(
        0.01, gt=0, lt=1, description="share of the models' spread that the final merge leaves"
    )
    final_merge_rounds: int = Field(
        100, ge=1, description="maximum rounds of gossip in the final merge"
    )
    engine: Literal["auto", "sharded"] = Field(
        "auto", description="sharded: many devices in each of a few processes, also under flwr run"
    )
    workers: Annotated[Literal["auto"] | int, BeforeValidator(_number_of_processes)] = Field(
        "auto", description="processes of the sharded engine; auto: by the size of the run"
    )
    ray_address: str = Field(
        "", description="existing Ray cluster of the sharded engine: auto, or host:port"
    )
    run_dir: str = Field(RUNS, description="folder of the run folders")
    run_name: str = Field(
        "",
        pattern=r"^([\w-][\w.,+=-]*)?$",
        description="name of this run's folder; empty takes date and method",
    )
    overrides: str = Field(
        "",
        description="more settings, as 'alpha=0.1 topology=torus', for flwr run -c, which takes no "
        "key that the app's pyproject.toml lacks",
    )
    track_with: str = Field(
        "", description="also write metrics to tensorboard, mlflow, wandb: 'tensorboard,mlflow'"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="serve the run's metrics to Prometheus on this port; 0: off"
    )
    metrics_host: str = Field(
        "127.0.0.1", description="address that metrics-port listens on; 0.0.0.0: all"
    )
    checkpoint_every: int = Field(
        10, ge=0, description="write a checkpoint every this many rounds; 0: only when stopped"
    )
    checkpoint_keep: int = Field(2, ge=1, description="checkpoints to keep per method")
    resume: str = Field("", description="continue this run: its folder, or its name in run-dir")

    wireless: WirelessOptions = WirelessOptions()

    _of_topology: Group | None = PrivateAttr(None)  # the topology's own options

    @property
    def quorum(self) -> int:
        """``min-devices`` as a number of devices, at least 1."""
        least = self.min_devices
        return least if isinstance(least, int) else ceil(least * self.num_nodes - 1e-9)

    def with_topology(self, own: Group | None) -> Self:
        """Return the settings with the options of the topology's own."""
        settings = self.model_copy()
        settings._of_topology = own
        return settings

    def make_topology(self) -> Topology:
        """Return the graph family that the settings name.

        Raises
        ------
        TopologyError
            Unknown family or impossible parameters.
        """
        given = {field: getattr(self, name) for field, name in OF_TOPOLOGY.items()}
        own = None if self._of_topology is None else self._of_topology.model_dump()
        given["path"] = expanded(self.topology_file)
        return make_topology(self.topology, own=own, **given)


GROUPS: dict[str, type[Group]] = {
    "energy": EnergyOptions,
    "allocation": AllocationOptions,
    "wireless": WirelessOptions,
    "public": PublicOptions,
    "missing": MissingOptions,
    "audio": AudioOptions,
    "image": ImageOptions,
    "series": SeriesOptions,
    "exchange": ExchangeOptions,
    "attack": AttackOptions,
    "privacy": PrivacyOptions,
}
"""The groups by their prefix in a run config: ``energy.battery-share`` and so on."""
