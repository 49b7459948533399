"""Methods and rules that a run config can name (:class:`Parts`), and a valid :class:`RunConfig`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..base.errors import MethodError
from ..base.options import Group
from ..data import Dataset, Partition
from ..data.registry import add_datasets
from ..gossip.aggregation.rule import AggregationRule
from ..gossip.registry import find_aggregation, find_gossip, make_aggregation
from ..gossip.rule import GossipRule
from ..graph.topology import Topology, add_topologies
from ..graph.weights import weighted
from ..learning.hooks import CourierChoice
from ..learning.learner import Learner
from ..learning.options import Options
from ..methods.registry import find_methods
from .settings import GROUPS, Settings


@dataclass(frozen=True)
class OwnParts:
    """Parts of an app's own, besides the installed ones.

    Attributes
    ----------
    learners, gossip, aggregation : tuple of type
        Methods, gossip rules and aggregation rules.
    datasets : tuple of Dataset
        Data sets.
    topologies : tuple of type[Topology]
        Families of graphs; each has a ``name``.
    """

    learners: tuple[type[Learner], ...] = ()
    gossip: tuple[type[GossipRule], ...] = ()
    aggregation: tuple[type[AggregationRule], ...] = ()
    datasets: tuple[Dataset, ...] = ()
    topologies: tuple[type[Topology], ...] = ()


@dataclass(frozen=True)
class Parts:
    """The methods and rules that a run config can name: installed ones, and an app's own.

    Attributes
    ----------
    methods, gossip, aggregation : dict of str to type
        By name, sorted.
    """

    methods: Mapping[str, type[Learner]]
    gossip: Mapping[str, type[GossipRule]]
    aggregation: Mapping[str, type[AggregationRule]]

    @cached_property
    def options(self) -> dict[str, type[Options]]:
        """The options of every method."""
        return {name: method.options_type for name, method in self.methods.items()}

    @cached_property
    def rules(self) -> dict[str, type[Group]]:
        """The options of every gossip and aggregation rule that has any."""
        every: dict[str, type[GossipRule] | type[AggregationRule]]
        every = {**self.gossip, **self.aggregation}
        return {
            name: rule.options_type
            for name, rule in every.items()
            if rule.options_type is not Group
        }

    @cached_property
    def prefixes(self) -> dict[str, type[Group]]:
        """What the prefix of a key stands for: groups, methods and rules.

        A method and the rule it stands for have one name; the options are the rule's then.

        Raises
        ------
        MethodError
            Two of them share a name, and both have options.
        """
        found: dict[str, type[Group]] = dict(GROUPS)
        for kind, models in (("method", self.options), ("rule", self.rules)):
            for name, model in models.items():
                if name in GROUPS:
                    raise MethodError(
                        f"a {kind} cannot be named '{name}': that is a group of settings"
                    )
                if name in found and found[name].model_fields:
                    raise MethodError(f"the method and the rule '{name}' both have options")
                found[name] = model
        return found


def find_parts(own: OwnParts = OwnParts()) -> Parts:
    """Return what is installed, and an app's own parts.

    Raises
    ------
    MethodError, DataError, TopologyError
        One is not what it should be, or two share a name.
    """
    add_datasets(own.datasets)
    add_topologies(own.topologies)
    return Parts(
        find_methods(own.learners), find_gossip(own.gossip), find_aggregation(own.aggregation)
    )


@dataclass(frozen=True)
class RunConfig:
    """A validated run config.

    Attributes
    ----------
    parts : Parts
        What could be named.
    settings : Settings
        The common settings.
    options : dict of str to Options
        Every method's, defaults where none are given.
    rules : dict of str to Group
        Those of every gossip and aggregation rule that has any.
    named : dict of str to Group
        Those of the data set and of the topology that are named, where they have any.
    """

    parts: Parts
    settings: Settings
    options: Mapping[str, Options]
    rules: Mapping[str, Group]
    named: Mapping[str, Group]

    def gossip_of(self, method: str) -> GossipRule:
        """Return the gossip rule that a method is run with.

        Raises
        ------
        MethodError
            The method's own rule is not known.
        """
        learner, chosen = self.parts.methods[method], self.settings.gossip
        name = learner.gossip if chosen == "auto" or not learner.communicates else chosen
        if name not in self.parts.gossip:
            known = ", ".join(self.parts.gossip)
            raise MethodError(f"{learner.__name__}.gossip = {name!r}: there are {known}")
        return self.parts.gossip[name](self.rules.get(name, Group()))

    def couriers_of(self, method: str) -> CourierChoice:
        """Return how couriers carry blocks of a method.

        A method that chooses them goes without them where its gossip rule, the exchange or the
        graph cannot have them.
        """
        learner, chosen = self.parts.methods[method], self.settings.couriers
        if chosen != "auto":
            return chosen if learner.communicates else "off"
        how = learner.couriers
        if how == "off" or self.settings.rounds != "sync":
            return "off"
        why = no_couriers(how, learner, self.gossip_of(method), self)
        over = self.settings.make_topology(), self.settings.num_nodes, self.settings.seed
        return "off" if why or no_couriers_over(*over) else how

    @property
    def aggregation(self) -> AggregationRule | None:
        """The aggregation rule of the run; None where there is none of that name."""
        settings = self.settings
        known, options = self.parts.aggregation, self.rules
        return make_aggregation(settings.aggregation, known, options, settings.assume_liars)

    def learner(self, method: str, partition: Partition) -> Learner:
        """Return a device's learner of a method."""
        make, options = self.parts.methods[method], self.options[method]
        return make(partition, self.settings, options, self.gossip_of(method), self.aggregation)

    def resolved(self) -> dict[str, Any]:
        """Return every setting's value by its key in a run config."""
        flat = self.settings.model_dump(by_alias=True, exclude=set(GROUPS))
        groups = {name: getattr(self.settings, name) for name in GROUPS}
        for prefix, values in {**groups, **self.options, **self.rules, **self.named}.items():
            flat |= {f"{prefix}.{k}": v for k, v in values.model_dump(by_alias=True).items()}
        return flat


def no_couriers(
    how: CourierChoice, learner: type[Learner], rule: GossipRule, config: RunConfig
) -> str:
    """Return why couriers cannot do that, and what is allowed; empty if they can."""
    exchange = config.settings.exchange
    if how == "off":
        return ""
    if rule.static or rule.linear or rule.addressed:
        return f"the gossip rule {rule.name!r} needs what all neighbours have now; allowed: off"
    if config.settings.privacy.unicast:
        return "privacy.zip-noise and secure-sums send what is for one neighbour; allowed: off"
    if learner.own_format:
        return f"the method {learner.name!r} writes blocks in a format of its own; allowed: off"
    if learner.own_weights:
        return (
            f"the method {learner.name!r} chooses in every round whom it mixes with; allowed: off"
        )
    if how == "average":
        return _no_means(rule, config)
    if exchange.sealed and exchange.transport == "direct":
        return (
            "with exchange.sealed, letters from device to device are not sealed, and a courier "
            "could read what it carries; allowed: exchange.transport = 'relay', or couriers = 'off'"
        )
    return ""


def _no_means(rule: GossipRule, config: RunConfig) -> str:
    """Return why couriers cannot send means, and what is allowed; empty if they can."""
    exchange, aggregation = config.settings.exchange, config.aggregation
    if aggregation is not None and not aggregation.linear:
        return (
            f"a mean hides who of its owners lies from aggregation = '{aggregation}'; allowed: "
            "forward, off"
        )
    if config.settings.attack.in_payloads:
        return (
            "liars lie to their neighbours, and what a courier averages would be true; allowed "
            "with an attack: forward, off"
        )
    if exchange.sealed:
        return (
            "a courier cannot read what exchange.sealed hides from it; allowed: forward with "
            "exchange.transport = 'relay', or off"
        )
    if exchange.top_k < 1:
        return (
            f"a mean needs whole blocks, and exchange.top-k = {exchange.top_k:g} sends a part of "
            "them; allowed: exchange.top-k = 1, or couriers = 'forward' or 'off'"
        )
    if rule.sends != GossipRule.sends:
        return (
            f"the gossip rule {rule.name!r} sends more of a block than the model; allowed: "
            "forward, off"
        )
    return ""


def no_couriers_over(topology: Topology, num_nodes: int, seed: int) -> str:
    """Return why nothing can be carried over such a graph; empty if it can."""
    if topology.directed:
        return "its links go one way, and couriers carry both ways"
    if topology.by_owners:
        return "it links the owners of each block already"
    if weighted(topology.graph(num_nodes, seed=seed)):
        return "its links have mixing weights of their own, and those of couriers have none"
    return ""
