"""A member of a run: a device as it introduced itself, checked once where that comes in."""

import json
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from flwr.app import ConfigRecord
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ..base.options import kebab
from ..base.text import one_line
from ..energy.costs import Work
from ..energy.devices import ProfileError
from ..energy.equipment import NOT_TOLD, Equipment
from ..payload.blocks import STATISTICS, is_carried, name_problem, unaddressed
from ..transport.letter import MAX_LETTER
from ..transport.messages import FLOPS_IN
from .reasons import ReplyError

MOST_FLOPS = 1e24
"""More than any device can do in a round."""
MOST_JOINT = 1000
"""Times what its modalities take one by one: more than an iteration of all of them takes."""
MOST_COUNT = 1 << 48
"""Of samples, of parameters, and of whatever else is counted."""
MOST_CLASSES, MOST_MODALITIES, MOST_BLOCKS, MOST_PHASES = 1 << 16, 64, 10_000, 100
MOST_KEY = 1 << 16
"""Bytes of an announced public key."""
NAME_LENGTH = 120
"""Characters of the longest name of a block, a modality or a metric."""


@dataclass(frozen=True)
class Member:
    """A device that answered the handshake."""

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    node_id: int
    partition_id: int
    modalities: tuple[str, ...]
    blocks: dict[str, int]  # name -> length
    payload_bytes: int  # that it publishes in round 1 for a neighbour, as it says
    block_bytes: dict[str, int]  # of these, by block
    digests: dict[str, str]  # name -> digest of the numbers it starts from
    num_train: int
    work: Work
    class_counts: tuple[int, ...] = ()  # training samples of each class; not told: empty
    class_names: tuple[str, ...] = ()  # not known, or not told: empty
    channels: dict[str, str] = field(default_factory=dict)  # modality -> names; not told: ""
    num_classes: int = 0  # not told: 0
    data: str = ""  # where they are, and their classes and shapes, for people
    address: str = ""  # where its neighbours reach it
    equipment: Equipment = NOT_TOLD
    announced: bytes = b""  # its public key, signed; not told: empty
    mask_key: bytes = b""  # its public key for sums; not told: empty

    def problem_with(self, names: Collection[str]) -> str | None:
        """Say what is wrong with the names in a payload of this device, or return None."""
        own = [name for name in names if not (name.startswith(STATISTICS) or is_carried(name))]
        blocks = {unaddressed(name) for name in own}
        if lacking := set(self.blocks) - blocks:
            return f"its payload lacks {', '.join(sorted(lacking))}"
        if unknown := sorted(blocks - set(self.blocks)):
            return f"its payload holds unknown blocks: {one_line(', '.join(unknown))}"
        return None


def unlike(before: Member, now: Member) -> list[str]:
    """Return what a device must have again when a run is resumed, and has not."""
    pairs = {
        "modalities": (before.modalities, now.modalities),
        "blocks": (before.blocks, now.blocks),
        "first parameters": (before.digests, now.digests),
        "training samples": (before.num_train, now.num_train),
        "channels": (before.channels, now.channels),
        "profile": (before.equipment.profile, now.equipment.profile),
    }
    return [name for name, (then, today) in pairs.items() if then != today]


def members_to_json(members: Mapping[int, Member]) -> dict[str, Any]:
    """Return members as a checkpoint holds them."""
    return {str(p): _WRITTEN.dump_python(member, mode="json") for p, member in members.items()}


def members_from_json(written: Mapping[str, Any]) -> dict[int, Member]:
    """Read :func:`members_to_json`.

    Raises
    ------
    ValueError, TypeError, AttributeError
        It is something else.
    """
    return {int(p): _WRITTEN.validate_json(json.dumps(one)) for p, one in written.items()}


def read_member(node_id: int, about: ConfigRecord) -> Member:
    """Read a device's introduction (:func:`~flwr_dmml.clients.hello.introduction`).

    Raises
    ------
    ReplyError
        It cannot be read; the message names the entry, its value and what is allowed.
    """
    phases = {k.removeprefix(FLOPS_IN): v for k, v in about.items() if k.startswith(FLOPS_IN)}
    try:
        told = _Hello.model_validate({**about, FLOPS_IN.rstrip("."): phases})
        equipment = Equipment(told.profile, told.battery_j, told.meter, told.about_meter)
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(map(str, first["loc"])), NAME_LENGTH)
        value = f"{where} = {one_line(reprlib.repr(first['input']), 100)}: " if where else ""
        raise ReplyError(f"{value}{first['msg']}") from error
    except ProfileError as error:
        raise ReplyError(one_line(str(error))) from error
    return Member(
        node_id=node_id,
        partition_id=told.partition_id,
        modalities=tuple(told.modalities),
        blocks=dict(zip(told.block_names, told.block_lengths, strict=True)),
        payload_bytes=told.payload_bytes,
        block_bytes=dict(zip(told.block_names, told.block_bytes, strict=True)),
        digests=dict(zip(told.block_names, told.block_digests, strict=True)),
        num_train=told.num_train,
        work=Work(
            joint=told.flops_joint,
            solo=dict(zip(told.modalities, told.flops_solo, strict=True)),
            per_round=told.flops_per_round,
            in_phase=told.flops_in,
        ),
        class_counts=tuple(told.class_counts),
        class_names=tuple(told.class_names),
        channels=dict(zip(told.modalities, told.channels, strict=False)),
        num_classes=told.num_classes,
        data=told.data,
        address=told.direct_address,
        equipment=equipment,
        announced=told.public_key,
        mask_key=told.mask_key,
    )


_WRITTEN = TypeAdapter(Member)


def _name(name: str) -> str:
    if not name or len(name) > NAME_LENGTH or not name.isprintable():
        raise ValueError(f"a name has 1 to {NAME_LENGTH} characters that print")
    return name


def _block_name(name: str) -> str:
    if problem := name_problem(_name(name)):
        raise ValueError(problem)
    return name


def _modality(name: str) -> str:
    if "+" in _name(name):
        raise ValueError("the name of a modality cannot hold '+'")
    return name


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name is there twice")
    return names


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, AfterValidator(one_line)]
Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Bytes = Annotated[int, Field(ge=0, le=MAX_LETTER)]
Flops = Annotated[float, Field(ge=0, le=MOST_FLOPS)]


class _Hello(BaseModel):
    """Entries of an introduction: strict types; what a newer version adds is left out."""

    model_config = ConfigDict(strict=True, frozen=True, alias_generator=kebab, allow_inf_nan=False)

    partition_id: Count
    modalities: Annotated[
        list[Annotated[str, AfterValidator(_modality)]],
        AfterValidator(_unique),
        Field(min_length=1, max_length=MOST_MODALITIES),
    ]
    block_names: Annotated[
        list[Annotated[str, AfterValidator(_block_name)]],
        AfterValidator(_unique),
        Field(max_length=MOST_BLOCKS),
    ]
    block_lengths: list[Annotated[Bytes, Field(ge=1)]]  # a number takes a byte at least
    payload_bytes: Bytes
    block_bytes: list[Annotated[Bytes, Field(ge=1)]]
    block_digests: list[Name]
    num_train: Count
    class_counts: list[Count] = []
    class_names: list[Text] = []
    channels: list[Text] = []
    num_classes: Annotated[int, Field(ge=0, le=MOST_CLASSES)] = 0
    data: Text = ""
    direct_address: Text = ""
    profile: str = ""
    battery_j: float = 0.0
    meter: Text = ""
    about_meter: Text = ""
    public_key: Annotated[bytes, Field(max_length=MOST_KEY)] = b""
    mask_key: Annotated[bytes, Field(max_length=32)] = b""
    flops_joint: Flops
    flops_solo: list[Flops]
    flops_per_round: Flops
    flops_in: Annotated[dict[Name, Flops], Field(max_length=MOST_PHASES)]

    @model_validator(mode="after")
    def _of_equal_length(self) -> Self:
        blocks, classes = len(self.block_names), self.num_classes
        for name, there, asked in (
            ("block-lengths", self.block_lengths, blocks),
            ("block-bytes", self.block_bytes, blocks),
            ("block-digests", self.block_digests, blocks),
            ("flops-solo", self.flops_solo, len(self.modalities)),
            ("channels", self.channels, len(self.modalities) if self.channels else 0),
            ("class-counts", self.class_counts, classes if self.class_counts else 0),
            ("class-names", self.class_names, classes if self.class_names else 0),
        ):
            if len(there) != asked:
                raise ValueError(f"{name} has {len(there)} entries instead of {asked}")
        if self.flops_joint > MOST_JOINT * sum(self.flops_solo):
            raise ValueError(
                f"flops-joint = {self.flops_joint:g}; allowed: up to {MOST_JOINT} times the sum of "
                f"flops-solo, {sum(self.flops_solo):g}"
            )
        return self
