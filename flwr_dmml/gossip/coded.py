"""What rules have in common that mix copies of the neighbours' vectors, kept up to date by changes.

Public: Koloskova, Stich and Jaggi, ICML 2019. See :class:`~flwr_dmml.payload.copies.Copies`.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ..base.options import Group
from .rule import Mix


def _step(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (is_number and 0 < float(str(value)) <= 1):
        return value
    raise ValueError('must be "auto" or a number above 0, at most 1')


class CodedOptions(Group):
    """The option of gossip on copies."""

    gamma: Annotated[Literal["auto"] | float, BeforeValidator(_step)] = Field(
        "auto", description="step towards the neighbours' copies, up to 1; auto: exchange.top-k"
    )

    def step(self, mix: Mix) -> float:
        """Return gamma: the less of a change arrives, the smaller it has to be."""
        return mix.kept if self.gamma == "auto" else float(self.gamma)
