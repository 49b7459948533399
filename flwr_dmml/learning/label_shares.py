"""How a device's classes are distributed, how the network's are, and what losses make of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..payload.blocks import STATISTICS
from ..payload.plan import Inbox
from ..payload.received import received

REPORT = STATISTICS + "label-means"
"""Name of a device's report in a payload, ``[classes + 1]``."""
STATE = "label-counts"
"""Name of the mean counts in a learner's state, ``[classes]``."""
LINKS = "label-links"
"""Name of the number of links there."""
UNSEEN = -30.0
"""Added to the logit of a class of which a device has no sample."""

Correction = Literal["network", "uniform", "off"]


class LabelShares:
    """A device's label shares, and those of the network, which it learns by gossip.

    The network's are the mean of all devices' label counts, by average consensus: every device
    starts from its own counts, and in every round adds ``w_kj (x_j - x_k)`` for each neighbour j,
    with ``w_kj = 1 / (1 + max(d_k, d_j))`` of the numbers of their links. On a connected graph that
    stays the same all come to the mean. Links may change: the sum over the devices does not, as
    long as both ends of a link hear each other. What a device that leaves has told stays in it.
    Over links of one way, or with messages lost, all come to a mean with unequal weights.

    Parameters
    ----------
    counts : Tensor
        How many training samples it has of each class, ``[classes]``.
    correction : {"network", "uniform", "off"}
        Against what its losses are corrected: the shares of the network, equal ones, or nothing.
        Only for "network" do its counts leave the device.
    liars : callable, optional
        How many of so many neighbours may lie. Of each class, as many of the counts that are larger
        than the own one, and of those that are smaller, are then left out, the farthest (W-MSR):
        what is left stays between what honest devices have. The mean is not kept. By default nobody
        lies.

    References
    ----------
    Logit adjustment: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021; Ren et
    al., "Balanced Meta-Softmax", NeurIPS 2020. Dynamic average consensus: Zhu and Martinez,
    Automatica 2010. With liars: LeBlanc et al., "Resilient Asymptotic Consensus in Robust
    Networks", IEEE JSAC 2013. That a device corrects against what its network has is this
    project's.
    """

    def __init__(
        self,
        counts: Tensor,
        correction: Correction,
        liars: Callable[[int], int] = lambda neighbours: 0,
    ) -> None:
        self._liars = liars
        self._counts, self.correction = counts.float(), correction
        self._mean, self._links = self._counts.clone(), 0

    @property
    def own(self) -> Tensor:
        """The device's own shares, ``[classes]``, which sum to 1."""
        return self._counts / self._counts.sum()

    @property
    def network(self) -> Tensor:
        """The network's, as far as the device knows them."""
        return self._mean / self._mean.sum()

    @property
    def gossips(self) -> bool:
        """Whether counts travel."""
        return self.correction == "network"

    def shift(self) -> Tensor | None:
        """Return what is added to the logits of the device's own samples, ``[classes]``.

        ``a(y) = log pi(y) - log pibar(y)``, with its own shares pi, and pibar those of the network
        or equal ones; :data:`UNSEEN` for a class that others have and it does not. 0 where pi and
        pibar are equal. None where losses are not corrected.
        """
        if self.correction == "off":
            return None
        if self.gossips:
            wanted = self.network
        else:
            wanted = torch.full_like(self._counts, 1 / len(self._counts))
        shift = (self.own / wanted).log().clamp_(UNSEEN, -UNSEEN)
        return torch.where((self._counts > 0) | (wanted > 0), shift, 0.0)

    # ---- gossip -----------------------------------------------------------------------------

    def report(self) -> list[float]:
        """Return what neighbours get: the mean so far, and the device's number of links."""
        return [*self._mean.tolist(), float(self._links)] if self.gossips else []

    def payload(self, report: Sequence[float]) -> dict[str, Tensor]:
        """Return a report as an entry of a payload; nothing where there is none."""
        return {REPORT: torch.tensor(report)} if self.gossips else {}

    def hear(self, reports: Iterable[Sequence[float]], links: int) -> None:
        """Take up what neighbours have reported.

        Parameters
        ----------
        reports : iterable of sequence of float
            Of those of the round before.
        links : int
            To how many devices this round's own report goes.
        """
        if not self.gossips:
            return
        if near := list(reports):
            table = torch.tensor(near, dtype=torch.float64)
            weights = 1 / (1 + table[:, -1].clamp(min=max(self._links, len(near))))
            own = self._mean.double()
            away = within(table[:, :-1] - own, self._liars(len(near)))
            self._mean = (own + weights @ away).clamp_(min=0).float()
        self._links = links

    def read(self, inbox: Inbox, links: int) -> list[str]:
        """Take up reports from neighbours' payloads; return what was wrong with some of them."""
        if not self.gossips:
            return []
        size = len(self._counts) + 1
        found, wrong = received(inbox, REPORT, size, optional=True, lowest=0, called="label counts")
        self.hear([report.tolist() for report in found.values()], links)
        return wrong

    def state(self) -> dict[str, Tensor]:
        """Return what must survive until the next round."""
        return {STATE: self._mean, LINKS: torch.tensor([self._links])} if self.gossips else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._mean = state.get(STATE, self._counts).clone()
        self._links = int(state[LINKS]) if LINKS in state else 0


def within(away: Tensor, liars: int) -> Tensor:
    """Return differences from the own numbers without the farthest on either side, which become 0.

    Parameters
    ----------
    away : Tensor
        ``[neighbours, numbers]``.
    liars : int
        How many are left out of those above 0, and of those below.
    """
    if not liars:
        return away
    ranks = away.argsort(dim=0).argsort(dim=0)
    highest, lowest = ranks >= len(away) - liars, ranks < liars
    return torch.where((highest & (away > 0)) | (lowest & (away < 0)), 0.0, away)
