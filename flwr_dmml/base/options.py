"""The base of everything that is read from a run config."""

from typing import Any

from pydantic import BaseModel, ConfigDict


def kebab(name: str) -> str:
    """Return a field's name as it stands in a run config."""
    return name.replace("_", "-")


class Options(BaseModel):
    """Base of everything read from a run config: kebab-case keys, strict types, frozen."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=kebab,
        populate_by_name=True,
    )

    def problems(self, settings: Any) -> list[str]:
        """Return what these options of a method need of the run's settings and do not find there.

        A line each, ``key = value: what is allowed``; asked of the methods that are to run, before
        anything starts. ``settings`` is the :class:`~flwr_dmml.settings.Settings` of the run.
        """
        return []
