"""The base of methods that may exchange their statistics alone (:class:`StatisticsOnly`)."""

from collections.abc import Collection
from dataclasses import replace

from pydantic import Field

from ..learning.learner import Learner
from ..learning.options import Options
from ..payload.plan import Inbox, Plan


class StatisticsOnlyOptions(Options):
    """Whether models are exchanged."""

    blocks: bool = Field(True, description="exchange models too; false: statistics only")


class StatisticsOnly(Learner):
    """With ``blocks = false`` encoders and heads stay local: no block is sent or mixed."""

    options: StatisticsOnlyOptions

    def sends(self, plan: Plan) -> Collection[str]:
        """Return all blocks, or none."""
        return super().sends(plan) if self.options.blocks else ()

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        """Mix what is sent."""
        return super().mix(plan if self.options.blocks else replace(plan, weights={}), inbox)
