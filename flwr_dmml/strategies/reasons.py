"""Reasons of failed devices, in words."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from flwr.app import Error, Message, RecordDict

from ..base.text import one_line
from ..transport.messages import PARTITION
from ..transport.packing import unpacked

OWN = rf"{PARTITION} (\d{{1,9}}): "
MOST = 1000
"""Characters of a reason."""
T = TypeVar("T")


class ReplyError(ValueError):
    """A reply that is an error or cannot be read; the message is the reason in one line."""


def opened(reply: Message, read: Callable[[RecordDict], T]) -> T:
    """Return what ``read`` makes of a reply's content, unpacked.

    Raises
    ------
    ReplyError
        It carries an error, or cannot be read.
    """
    if reply.has_error():
        raise ReplyError(reason_of(reply.error))
    return guarded(lambda: read(unpacked(reply.content)))


def guarded(read: Callable[[], T]) -> T:
    """Return what ``read`` reads of a reply.

    Raises
    ------
    ReplyError
        It cannot be read, for whatever reason: that costs its sender only.
    """
    try:
        return read()
    except ReplyError as error:
        raise ReplyError(f"its reply is refused: {error}") from error
    except Exception as error:  # another's bytes can make Flower's readers raise anything
        why = one_line(f"{type(error).__name__}: {error}")
        raise ReplyError(f"its reply is refused: {why}") from error


def join_reasons(reasons: Mapping[int, str], partitions: Mapping[int, int] | None = None) -> str:
    """Write reasons by node, those with the same reason together."""
    nodes: dict[str, list[str]] = {}
    for node, reason in sorted(reasons.items()):
        known = f" (partition {partitions[node]})" if partitions and node in partitions else ""
        nodes.setdefault(reason, []).append(f"{node}{known}")

    def some(who: list[str]) -> str:
        return ", ".join(who[:5]) + (f" and {len(who) - 5} more" if len(who) > 5 else "")

    return "; ".join(f"node {some(who)}: {reason}" for reason, who in nodes.items())


def reason_of(error: Error) -> str:
    """Return why a node failed, in one line.

    Flower writes exceptions as ``<class 'a.B'>:<'text'>``.
    """
    text = str(error.reason)
    match = re.fullmatch(rf"<class '(?:.*\.)?(\w+)'>:<'({OWN})?(.*)'>", text, flags=re.DOTALL)
    return one_line(f"{match[1]}: {match[4]}" if match else text, MOST)


def is_lost_worker(error: Error) -> bool:
    """Return whether a node failed because an actor of Flower's simulation engine has died."""
    return bool(re.match(r"<class 'ray\.exceptions\.\w*Actor\w*'>", str(error.reason)))


def partition_of(error: Error) -> int | None:
    """Return the partition of a node that failed, where its reason begins with it."""
    match = re.match(rf"<class '[^']*'>:<'{OWN}", str(error.reason))
    return int(match[1]) if match else None
