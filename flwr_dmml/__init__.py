"""Serverless multi-modal learning on Flower.

What a method, a rule, a data set, a topology or a strategy of your own is made of, and the apps::

    from flwr_dmml import Learner, Options, Batch, GossipRule, AggregationRule
    from flwr_dmml import Dataset, Topology, PeerStrategy
    from flwr_dmml import make_client_app, make_server_app

Runs from Python::

    from flwr_dmml import simulate, open_run, compare
And what a run has trained::

    from flwr_dmml import load_model

Each name is imported when it is first used: a command that needs none of them loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.comparing import compare as compare
    from .api.run import Run as Run
    from .api.run import open_run as open_run
    from .api.simulating import simulate as simulate
    from .clients.app import make_client_app as make_client_app
    from .data.registry import Dataset as Dataset
    from .deploy.model import load_model as load_model
    from .gossip.aggregation.rule import AggregationRule as AggregationRule
    from .gossip.rule import GossipRule as GossipRule
    from .graph.topology import Topology as Topology
    from .learning.batch import Batch as Batch
    from .learning.learner import Learner as Learner
    from .learning.options import Options as Options
    from .strategies.app import make_server_app as make_server_app
    from .strategies.peer import PeerStrategy as PeerStrategy

__version__ = "0.1.0"

_HOME = {
    "AggregationRule": "gossip.aggregation.rule",
    "Batch": "learning.batch",
    "Dataset": "data.registry",
    "GossipRule": "gossip.rule",
    "Learner": "learning.learner",
    "Options": "learning.options",
    "PeerStrategy": "strategies.peer",
    "Run": "api.run",
    "Topology": "graph.topology",
    "compare": "api.comparing",
    "load_model": "deploy.model",
    "make_client_app": "clients.app",
    "make_server_app": "strategies.app",
    "open_run": "api.run",
    "simulate": "api.simulating",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
