"""Plain cross-entropy on a gossip rule: the baselines of :mod:`flwr_dmml.gossip`, by name."""

from typing import ClassVar

from ..gossip.d2 import D2Rule
from ..gossip.dpsgd import DPSGDRule
from ..gossip.dsgdm import DSGDmRule
from ..gossip.qg_dsgdm import QgDsgdmNRule, QgDsgdmRule
from ..gossip.relaysgd import RelaySGDRule
from ..learning.learner import Learner


class DPSGD(Learner):
    """Cross-entropy on plain gossip."""

    name: ClassVar[str] = "dpsgd"
    gossip: ClassVar[str] = DPSGDRule.name
    paper: ClassVar[str] = DPSGDRule.paper
    references: ClassVar[tuple[str, ...]] = DPSGDRule.references


class DSGDm(Learner):
    """Cross-entropy on gossip with local momentum."""

    name: ClassVar[str] = "dsgdm"
    gossip: ClassVar[str] = DSGDmRule.name
    paper: ClassVar[str] = DSGDmRule.paper
    references: ClassVar[tuple[str, ...]] = DSGDmRule.references


class QgDsgdm(Learner):
    """Cross-entropy on quasi-global momentum."""

    name: ClassVar[str] = "qg-dsgdm"
    gossip: ClassVar[str] = QgDsgdmRule.name
    paper: ClassVar[str] = QgDsgdmRule.paper
    references: ClassVar[tuple[str, ...]] = QgDsgdmRule.references


class QgDsgdmN(Learner):
    """Cross-entropy on quasi-global Nesterov momentum."""

    name: ClassVar[str] = "qg-dsgdm-n"
    gossip: ClassVar[str] = QgDsgdmNRule.name
    paper: ClassVar[str] = QgDsgdmNRule.paper
    references: ClassVar[tuple[str, ...]] = QgDsgdmNRule.references


class D2(Learner):
    """Cross-entropy on D-squared."""

    name: ClassVar[str] = "d2"
    gossip: ClassVar[str] = D2Rule.name
    paper: ClassVar[str] = D2Rule.paper
    references: ClassVar[tuple[str, ...]] = D2Rule.references


class RelaySGD(Learner):
    """Cross-entropy on relayed means."""

    name: ClassVar[str] = "relaysgd"
    gossip: ClassVar[str] = RelaySGDRule.name
    paper: ClassVar[str] = RelaySGDRule.paper
    references: ClassVar[tuple[str, ...]] = RelaySGDRule.references
