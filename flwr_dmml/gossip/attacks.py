"""Attacks: what liars among a device's neighbours tell it instead of their models.

For simulations of the worst case: a liar knows what all honest neighbours of its victim have sent,
the victim's own copy, and the weights. Each function gives every liar's vector of one block, for
one victim.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import NormalDist
from typing import Annotated, Literal, Self

import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor

from ..base.options import Group
from ..base.seeding import numpy_generator


@dataclass(frozen=True)
class Scene:
    """A victim's neighbourhood in a round.

    Attributes
    ----------
    own : Tensor
        The victim's own vector ``[length]``.
    near : Tensor
        Those of its honest neighbours, ``[honest, length]``; the own one where there is none.
    lying : Tensor
        What the liars would have sent, were they honest, ``[liars, length]``.
    weights : tuple of float
        The victim's own mixing weight, that of each of ``near``, and those of all liars together.
    neighbours : int
        Of the victim, liars among them.
    random : sequence of torch.Generator
        One of each liar.
    earlier : Tensor
        What the liars would have sent rounds ago, ``[liars, length]``.
    """

    own: Tensor
    near: Tensor
    lying: Tensor
    weights: tuple[float, tuple[float, ...], float]
    neighbours: int
    random: Sequence[torch.Generator]
    earlier: Tensor

    @property
    def middle(self) -> Tensor:
        """Mean of the honest neighbours' vectors ``[length]``."""
        return self.near.mean(dim=0)

    def same(self, lie: Tensor) -> Tensor:
        """Return one lie ``[length]`` of all liars, ``[liars, length]``."""
        return lie.expand_as(self.lying)


Attack = Callable[[Scene, float], Tensor]
"""(scene, strength) to what each liar sends, ``[liars, length]``."""


def honest(scene: Scene, strength: float) -> Tensor:
    """Send what it has trained; lies are elsewhere, in data or statistics."""
    return scene.lying


def sign_flip(scene: Scene, strength: float) -> Tensor:
    """``-s mean``, over the victim and its honest neighbours (Wu, Chen and Ling, 2023)."""
    return scene.same(-strength * torch.cat([scene.near, scene.own[None]]).mean(dim=0))


def scale(scene: Scene, strength: float) -> Tensor:
    """The liar's own model times s."""
    return strength * scene.lying


def gaussian(scene: Scene, strength: float) -> Tensor:
    """The honest neighbours' mean, and noise of standard deviation s (Wu, Chen and Ling, 2023)."""
    length = len(scene.own)
    noise = torch.stack([torch.randn(length, generator=random) for random in scene.random])
    return scene.middle + strength * noise.to(scene.own)


def alie(scene: Scene, strength: float) -> Tensor:
    """``mean + z std`` of each number over the honest neighbours (Baruch et al., 2019).

    With n neighbours, b of them liars, ``z = Phi^-1((n - k) / n)``, ``k = floor((n + 1) / 2) - b``;
    a strength above 0 is z itself.
    """
    if len(scene.near) < 2:
        return scene.same(scene.middle)
    n, b = scene.neighbours, len(scene.lying)
    needed = min(max((n + 1) // 2 - b, 1), n - 1)
    z = strength or NormalDist().inv_cdf((n - needed) / n)
    middle = scene.middle
    deviation = ((scene.near - middle).square().sum(dim=0) / (len(scene.near) - 1)).sqrt()
    return scene.same(middle + z * deviation)


def ipm(scene: Scene, strength: float) -> Tensor:
    """``-s mean`` over the honest neighbours: inner product manipulation (Xie et al., 2020)."""
    return scene.same(-strength * scene.middle)


def dissensus(scene: Scene, strength: float) -> Tensor:
    """``x_i - s sum_j w_ij (x_j - x_i) / sum_liars w_ib``: drive neighbours apart.

    With s = 1 the weighted mean is the victim's own vector (He, Karimireddy and Jaggi, 2022).
    """
    _, weights, lying = scene.weights
    row = scene.own.new_tensor(weights or (0.0,))
    pull = (row[:, None] * (scene.near - scene.own)).sum(dim=0)
    return scene.same(scene.own - strength / lying * pull)


def duplicate(scene: Scene, strength: float) -> Tensor:
    """The copy of an honest neighbour, another one in every round (Wu, Chen and Ling, 2023).

    All liars around a victim send the same: what the first of them draws.
    """
    drawn = float(torch.rand(1, generator=scene.random[0]))
    return scene.same(scene.near[int(drawn * len(scene.near))])


def mimic(scene: Scene, strength: float) -> Tensor:
    """The copy of the victim's first honest neighbour, always (Karimireddy, He and Jaggi, 2022)."""
    return scene.same(scene.near[0])


def zero(scene: Scene, strength: float) -> Tensor:
    """Nothing but zeros."""
    return torch.zeros_like(scene.lying)


def stale(scene: Scene, strength: float) -> Tensor:
    """What it had some rounds ago."""
    return scene.earlier


def hidden_sign_flip(scene: Scene, strength: float) -> Tensor:
    """Against the honest mean, no farther from it than s times the farthest honest neighbour.

    ``mean - s R mean / |mean|`` (this project's): no rule that goes by distance sees it.
    """
    middle = scene.middle
    radius = torch.linalg.vector_norm(scene.near - middle, dim=1).amax()
    length = torch.linalg.vector_norm(middle).clamp(min=1e-12)
    return scene.same(middle * (1 - strength * radius / length))


ATTACKS: Mapping[str, tuple[Attack, float]] = {
    "none": (honest, 0.0),
    "sign-flip": (sign_flip, 1.0),
    "scale": (scale, 10.0),
    "gaussian": (gaussian, 30.0),
    "alie": (alie, 0.0),
    "ipm": (ipm, 0.1),
    "dissensus": (dissensus, 1.5),
    "isolation": (dissensus, 1.0),
    "duplicate": (duplicate, 0.0),
    "mimic": (mimic, 0.0),
    "zero": (zero, 0.0),
    "label-flip": (honest, 0.0),
    "stale": (stale, 0.0),
    "hidden-sign-flip": (hidden_sign_flip, 1.0),
}
"""The attacks by name, and their strength unless another is set; 0 of those that have none."""
IN_DATA = "label-flip"
"""The one that lies in a liar's training data, from the first round on: y becomes C - 1 - y."""
EARLIER = "stale"
"""The one that needs what liars had rounds ago."""


def _strength(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (is_number and 0 <= float(str(value)) < inf):
        return value
    raise ValueError('must be "auto" or a number, at least 0')


def _ids(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # one alone, as a command line gives it
    return value


class AttackOptions(Group):
    """Who lies in a simulation, how, and from when on."""

    kind: str = Field("none", description="what liars send instead of their models")
    devices: Annotated[str, BeforeValidator(_ids)] = Field(
        "", description="partition ids of the liars: '3,7'"
    )
    share: float = Field(0.0, ge=0, lt=1, description="instead: draw this share of the devices")
    start: int = Field(1, ge=1, description="round from which they lie")
    strength: Annotated[Literal["auto"] | float, BeforeValidator(_strength)] = Field(
        "auto", description="factor, standard deviation or z of the attack; auto: as published"
    )
    delay: int = Field(10, ge=1, description="age of what is sent, in rounds (stale)")
    payload: Literal["honest", "forged"] = Field(
        "honest", description="what liars send besides models: prototypes, labels, counts, speeds"
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in ATTACKS:
            raise ValueError(f"there are {', '.join(ATTACKS)}")
        return kind

    @field_validator("devices")
    @classmethod
    def _readable(cls, text: str) -> str:
        if text and not all(item.strip().isdecimal() for item in text.split(",")):
            raise ValueError("give partition ids with commas between: '3,7'")
        return text

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.devices and self.share:
            raise ValueError("name liars by devices, or draw a share of them; not both")
        if self.lies and not (self.devices or self.share):
            raise ValueError("no device lies: set devices or share")
        if self.kind == IN_DATA and self.start > 1:
            raise ValueError("start > 1: labels are flipped from the first round on")
        return self

    @property
    def lies(self) -> bool:
        """Whether those who are named do anything but what they should."""
        return self.kind != "none" or self.payload == "forged"

    @property
    def in_payloads(self) -> bool:
        """Whether what liars send is another thing than what they publish."""
        return self.kind not in ("none", IN_DATA) or self.payload == "forged"

    def liars(self, num_nodes: int, seed: int) -> tuple[int, ...]:
        """Return the partition ids of the liars, sorted: those named, or drawn for the run's seed.

        At least one is drawn of a share above 0.
        """
        if self.devices:
            return tuple(sorted({int(item) for item in self.devices.split(",")}))
        count = max(1, round(self.share * num_nodes)) if self.share else 0
        drawn = numpy_generator(seed, "liars").choice(num_nodes, count, replace=False)
        return tuple(sorted(int(p) for p in drawn))

    def problem(self, num_nodes: int) -> str:
        """Return why these liars cannot be; empty if they can."""
        found = self.liars(num_nodes, 0)
        if found and found[-1] >= num_nodes:
            return f"attack.devices = {self.devices!r}: the ids are 0 to {num_nodes - 1}"
        if len(found) == num_nodes:
            return f"attack: all {num_nodes} devices would lie; leave one that does not"
        return ""
