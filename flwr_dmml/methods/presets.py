"""Plain cross-entropy on a gossip rule: the baselines of :mod:`flwr_dmml.gossip`, by name."""

from typing import ClassVar

from ..gossip.beer import BeerRule, MotefRule
from ..gossip.choco import ChocoRule
from ..gossip.d2 import D2Rule
from ..gossip.dpsgd import DPSGDRule
from ..gossip.dsgdm import DSGDmRule
from ..gossip.qg_dsgdm import QgDsgdmNRule, QgDsgdmRule
from ..gossip.relaysgd import RelaySGDRule
from ..gossip.sgp import SGPRule
from ..learning.learner import Learner


class DPSGD(Learner):
    """Cross-entropy on plain gossip (:class:`~flwr_dmml.gossip.dpsgd.DPSGDRule`)."""

    name: ClassVar[str] = "dpsgd"
    gossip: ClassVar[str] = DPSGDRule.name
    paper: ClassVar[str] = DPSGDRule.paper


class DSGDm(Learner):
    """Cross-entropy on gossip with local momentum (:class:`~flwr_dmml.gossip.dsgdm.DSGDmRule`)."""

    name: ClassVar[str] = "dsgdm"
    gossip: ClassVar[str] = DSGDmRule.name
    paper: ClassVar[str] = DSGDmRule.paper


class QgDsgdm(Learner):
    """Cross-entropy on quasi-global momentum (:class:`~flwr_dmml.gossip.qg_dsgdm.QgDsgdmRule`)."""

    name: ClassVar[str] = "qg-dsgdm"
    gossip: ClassVar[str] = QgDsgdmRule.name
    paper: ClassVar[str] = QgDsgdmRule.paper


class QgDsgdmN(Learner):
    """Cross-entropy on quasi-global Nesterov momentum."""

    name: ClassVar[str] = "qg-dsgdm-n"
    gossip: ClassVar[str] = QgDsgdmNRule.name
    paper: ClassVar[str] = QgDsgdmNRule.paper


class D2(Learner):
    """Cross-entropy on D-squared (:class:`~flwr_dmml.gossip.d2.D2Rule`)."""

    name: ClassVar[str] = "d2"
    gossip: ClassVar[str] = D2Rule.name
    paper: ClassVar[str] = D2Rule.paper


class Choco(Learner):
    """Cross-entropy on gossip on copies (:class:`~flwr_dmml.gossip.choco.ChocoRule`)."""

    name: ClassVar[str] = "choco"
    gossip: ClassVar[str] = ChocoRule.name
    paper: ClassVar[str] = ChocoRule.paper


class Beer(Learner):
    """Cross-entropy on tracking on copies (:class:`~flwr_dmml.gossip.beer.BeerRule`)."""

    name: ClassVar[str] = "beer"
    gossip: ClassVar[str] = BeerRule.name
    paper: ClassVar[str] = BeerRule.paper


class Motef(Learner):
    """Cross-entropy on momentum tracking on copies (:class:`~flwr_dmml.gossip.beer.MotefRule`)."""

    name: ClassVar[str] = "motef"
    gossip: ClassVar[str] = MotefRule.name
    paper: ClassVar[str] = MotefRule.paper


class SGP(Learner):
    """Cross-entropy on push-sum gossip (:class:`~flwr_dmml.gossip.sgp.SGPRule`)."""

    name: ClassVar[str] = "sgp"
    gossip: ClassVar[str] = SGPRule.name
    paper: ClassVar[str] = SGPRule.paper


class RelaySGD(Learner):
    """Cross-entropy on relayed means (:class:`~flwr_dmml.gossip.relaysgd.RelaySGDRule`)."""

    name: ClassVar[str] = "relaysgd"
    gossip: ClassVar[str] = RelaySGDRule.name
    paper: ClassVar[str] = RelaySGDRule.paper
