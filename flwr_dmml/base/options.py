"""The base of everything that is read from a run config."""

from pydantic import BaseModel, ConfigDict


def kebab(name: str) -> str:
    """Return a field's name as it stands in a run config."""
    return name.replace("_", "-")


class Group(BaseModel):
    """Base of everything read from a run config: kebab-case keys, strict types, frozen."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=kebab,
        populate_by_name=True,
    )
