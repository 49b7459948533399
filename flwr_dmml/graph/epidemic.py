"""Epidemic learning: whom a device exchanges with is drawn anew in every round."""

from dataclasses import dataclass
from typing import ClassVar

import networkx as nx

from ..base.seeding import numpy_generator
from .family import Topology, require
from .weights import Edges


@dataclass(frozen=True)
class Epidemic(Topology):
    """Every round a fresh random graph, from the run's seed, over the owners of each block.

    With links both ways (EL-Oracle) every owner has ``degree`` neighbours; one more where an odd
    number of owners times ``degree`` is odd, and all of them where there are too few. With
    ``directed`` (EL-Local) every owner sends to ``degree`` others, drawn without replacement, and
    hears from as many as have drawn it, perhaps from none: averages then keep the mean over the
    devices only in the long run.

    Anybody must be able to reach anybody.

    Source: de Vos et al., "Epidemic Learning: Boosting Decentralized Learning with Randomized
    Communication", NeurIPS 2023.
    """

    time_varying: ClassVar[bool] = True

    degree: int = 4
    directed: bool = False

    @property
    def by_owners(self) -> bool:
        """True."""
        return True

    @property
    def even(self) -> bool:
        """True: everybody is as likely to be heard as anybody else."""
        return True

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        require(self.degree >= 1, f"epidemic: degree must be at least 1, not {self.degree}")
        d = min(self.degree, n - 1)
        if self.directed:
            generator = numpy_generator(seed)
            drawn = [generator.choice(n - 1, d, replace=False).tolist() for _ in range(n)]
            return [(i, j + (j >= i)) for i, row in enumerate(drawn) for j in sorted(row)]
        return random_regular(n, d + n * d % 2, seed)


def random_regular(n: int, degree: int, seed: int) -> Edges:
    """Return the links of a random graph with ``degree`` links a node; n * degree is even.

    Networkx may never end on a dense graph; the complement of a regular graph is regular.
    """
    co_degree = n - 1 - degree
    sparse = nx.random_regular_graph(min(degree, co_degree), n, seed=seed)
    return list((sparse if degree <= co_degree else nx.complement(sparse)).edges)
