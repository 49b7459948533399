"""A ClientApp on which one device lies, and the lies, for tests of what they cost the others."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict

from flwr_dmml.clients import DPSGD, make_client_app
from flwr_dmml.engine import FlowerApp, never, run_app
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.strategies import make_server_app
from flwr_dmml.transport.letter import DIGEST_BYTES, FRAME
from flwr_dmml.transport.messages import (
    ABOUT,
    CONFUSION,
    METRICS,
    PAYLOAD,
    PLAN,
    REJECTED,
    REPORT,
    STATE,
)
from flwr_dmml.transport.packing import unpacked

LIAR = 1
EVIL = "well\n[ROUND 3/3] accuracy mean 0.999\x1b[2J\x1b]0;owned\x07\u202e"
"""What forges a line of a log, clears a terminal, and turns the text around."""
PLAIN = r"well [ROUND 3/3] accuracy mean 0.999\x1b[2J\x1b]0;owned\x07\u202e"
"""What is to become of it."""
Change = Callable[[RecordDict], None]


@dataclass
class Lying:
    """What devices run: an honest ClientApp, but device 1 changes its replies of one kind.

    Attributes
    ----------
    kind : str
        "hello", "state", "train" (from round 2 on) or "closing".
    change : callable or None
        What it does to the content of its reply; None raises instead.
    """

    kind: str
    change: Change | None

    def __post_init__(self) -> None:
        self._app = make_client_app()

    def is_liar(self, context: Context) -> bool:
        """Return whether this device is the one."""
        return context.node_config["partition-id"] == LIAR

    def __call__(self, message: Message, context: Context) -> Message:
        message.content = unpacked(message.content)  # so is the reply: lies need no packing
        lies = self.is_liar(context) and self.kind == kind_of(message)
        if lies and self.change is None:
            raise RuntimeError(EVIL)
        reply = self._app(message, context)
        if lies and self.change is not None:
            self.change(reply.content)
        return reply


class LyingRow(DPSGD):
    """Device 1 says from round 2 on that it is better than perfect: rows go without messages."""

    name = "lying-row"

    def begin_mixed(self, plan: Plan, inbox: Inbox, apart: float | None) -> None:
        super().begin_mixed(plan, inbox, apart)
        if self.partition.partition_id == LIAR and plan.iterations and plan.server_round > 1:
            self.lie()

    def lie(self) -> None:
        self.measured["test.uar"] = 7.0


class FailingRow(LyingRow):
    """It fails instead."""

    name = "failing-row"

    def lie(self) -> None:
        raise RuntimeError(EVIL)


def kind_of(message: Message) -> str:
    """Return the kind of a message."""
    kind = message.metadata.message_type
    if kind == "train" and message.content.config_records[PLAN]["server-round"] == 1:
        return "first"
    return {"query.hello": "hello", "query.state": "state", "evaluate": "closing"}.get(kind, kind)


def without_entry(key: str) -> Change:
    """Return a change that takes an entry out of the introduction."""

    def change(content: RecordDict) -> None:
        del content.config_records[ABOUT][key]

    return change


def hello(key: str, value: Any) -> Change:
    """Return a change of an entry of the introduction."""

    def change(content: RecordDict) -> None:
        content.config_records[ABOUT][key] = value

    return change


def longer(content: RecordDict) -> None:
    """Have a device introduce itself with a block of 256 MiB, which nobody else has."""
    about = content.config_records[ABOUT]
    more = {"names": "long", "lengths": 1 << 26, "bytes": 1 << 28, "digests": "x"}
    for key, value in more.items():
        about[f"block-{key}"] = [*about[f"block-{key}"], value]  # type: ignore[misc]


def metric(name: str, value: Any) -> Change:
    """Return a change of a metric."""

    def change(content: RecordDict) -> None:
        content.metric_records[METRICS][name] = value

    return change


def array(of: str, lie: Array) -> Change:
    """Return a change of the first array of a payload or a state."""

    def change(content: RecordDict) -> None:
        record = content.array_records[of].copy()
        record[next(iter(record))] = lie
        content[of] = record

    return change


def cell(value: Any) -> Change:
    """Return a change of a cell of the confusion table."""

    def change(content: RecordDict) -> None:
        counts = list(content.metric_records[CONFUSION][CONFUSION])  # type: ignore[arg-type]
        counts = [float(x) for x in counts] if isinstance(value, float) else counts
        content[CONFUSION] = MetricRecord({CONFUSION: [value, *counts[1:]]})

    return change


def without(name: str) -> Change:
    """Return a change that leaves a record out."""

    def change(content: RecordDict) -> None:
        del content[name]

    return change


def replaced(name: str, key: str, value: Any) -> Change:
    """Return a change that puts in a record of one entry."""

    def change(content: RecordDict) -> None:
        kind = MetricRecord if name in (METRICS, CONFUSION) else ConfigRecord
        content[name] = kind({key: value})

    return change


def stored(numbers: Any) -> Array:
    """Return an array as it comes over a network."""
    file = BytesIO()
    np.save(file, numbers, allow_pickle=True)
    return Array("float32", (2,), "numpy.ndarray", file.getvalue())


def with_header(shape: str) -> Array:
    """Return an array whose file says that it has a shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"\x00" * 4
    return Array("float32", (1,), "numpy.ndarray", data)


FEW: dict[str, Any] = {
    "num-nodes": 4,
    "method": "dpsgd",
    "num-server-rounds": 3,
    "evaluate-every": 1,
    "checkpoint-every": 1,
    "modality-pattern": "image",
    "image-encoder": "tiny",
    "samples-per-node": 20,
    "local-iterations": 1,
    "batch-size": 16,
    "run-name": "x",
}
"""Settings of a small run on a ring."""


def run_four(
    folder: Path,
    devices: Any,
    workers: int = 0,
    stopping: Callable[[], bool] = never,
    **settings: Any,
) -> Path:
    """Run four devices, or ``num_nodes``; return the method's folder. ``_`` stands for ``-``."""
    config = FEW | {key.replace("_", "-"): value for key, value in settings.items()}
    own = (LyingRow, FailingRow)
    app = FlowerApp(config, make_server_app(*own), devices or make_client_app(*own))
    nodes = config["num-nodes"]
    run_app(app, nodes, {"run-dir": str(folder)}, workers=workers, stopping=stopping)
    return folder / "x" / str(config["method"])


def lines_of(method: Path) -> list[dict[str, Any]]:
    """Return the rounds of a run, read as strictly as JSON is."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (method / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def of_others(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return what stands of the honest devices in each round."""
    return [[n for n in line["nodes"] if n["partition"] != LIAR] for line in lines]


NO_ARRAY = Array("float32", (2,), "numpy.ndarray", b"no file of numpy's")
MANY = f"({70 * '1,'})"
LIES: dict[str, tuple[str, Change, str]] = {
    "partition inf": ("hello", hello("partition-id", inf), "partition-id = inf"),
    "partition negative": ("hello", hello("partition-id", -1), "partition-id = -1"),
    "FLOPs NaN": ("hello", hello("flops-joint", nan), "flops-joint = nan"),
    "FLOPs inf": ("hello", hello("flops-solo", [inf]), "flops-solo.0 = inf"),
    "FLOPs negative": ("hello", hello("flops-per-round", -1.0), "flops-per-round = -1.0"),
    "FLOPs for nothing": ("hello", hello("flops-solo", [0.0]), "times the sum of flops-solo, 0"),
    "battery NaN": ("hello", hello("battery-j", nan), "battery-j = nan"),
    "modality": ("hello", hello("modalities", [EVIL]), "characters that print"),
    "block of another": ("hello", hello("block-names", ["a<3", "b", "c"]), "cannot hold '<'"),
    "protocol": ("hello", hello("protocol", 7), "device 1 speaks protocol 7 (flwr-dmml "),
    "no protocol": ("hello", without_entry("protocol"), "device 1 speaks protocol ? (flwr-dmml "),
    "no introduction": ("hello", without(ABOUT), "not that of a ClientApp of flwr-dmml"),
    "payload no array": ("train", array(PAYLOAD, NO_ARRAY), "is no array that can be read"),
    "payload pickle": (
        "train",
        array(PAYLOAD, stored(np.array([{}]))),
        "in its payload is no array",
    ),
    "payload words": ("train", array(PAYLOAD, stored(np.array(["a"]))), "which are no numbers"),
    "payload of 70 dimensions": (
        "train",
        array(PAYLOAD, with_header(f"({70 * '1,'})")),
        "is no array",
    ),
    "payload of negative shape": ("train", array(PAYLOAD, with_header("(-1, -1)")), "is no array"),
    "payload too long": (
        "train",
        array(PAYLOAD, stored(np.zeros(1_000_000, np.float32))),
        "bytes; allowed",
    ),
    "no payload": ("train", without(PAYLOAD), "its payload lacks"),
    "accuracy 1e9": ("train", metric("test.accuracy", 1e9), "test.accuracy is 1000000000.0"),
    "accuracy NaN": (
        "train",
        metric("test.accuracy", nan),
        "test.accuracy is nan; allowed: 0 to 1",
    ),
    "F1 negative": ("train", metric("test.macro_f1", -0.1), "test.macro_f1 is -0.1"),
    "disagreement negative": ("train", metric("mix.disagreement", -1e9), "mix.disagreement is -1"),
    "loss inf": ("train", metric("train.loss", inf), "train.loss is inf"),
    "own number NaN": ("train", metric("mine", nan), "its metric mine is nan"),
    "bytes NaN": ("train", metric("payload.bytes", nan), "payload.bytes is nan"),
    "letter NaN": ("train", metric("letter.bytes", nan), "letter.bytes is nan"),
    "round 30000000": ("train", metric("30000000:x", 1.0), "an entry of round 30000001 of 1"),
    "round 1000000000": ("train", metric("1000000000:x", 1.0), "of round 1000000001 of 1"),
    "modality unknown": ("train", metric("test.accuracy.lidar", 1.0), "of no modality of the run"),
    "dropped of nobody": ("train", metric("dropped.x", 1.0), "dropped.x is of no neighbour"),
    "dropped twice": ("train", metric("dropped.1", 2.0), "its metric dropped.1 is 2.0; allowed"),
    "name of a metric": ("train", metric(EVIL, 1.0), "characters that print"),
    "list": ("train", metric("train.loss", [1.0]), "train.loss is a list"),
    "rejected no list": ("train", replaced(REPORT, REJECTED, 7), "is no list of lines"),
    "confusion NaN": ("closing", cell(nan), "its confusion table holds nan"),
    "confusion negative": ("closing", cell(-1), "its confusion table holds -1"),
    "confusion small": ("closing", replaced(CONFUSION, CONFUSION, [1, 2]), "2 cells for 10"),
    "last accuracy": ("closing", metric("test.accuracy", inf), "test.accuracy is inf"),
    "no state": ("state", without(STATE), "its state is missing"),
    "state no array": ("state", array(STATE, NO_ARRAY), "in its state is no array"),
    "state words": ("state", array(STATE, stored(np.array(["a"]))), "which are no numbers"),
}
"""By name: in which reply, what, and the words of it."""


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a letter's header, and its tensors as bytes."""
    _, _, length = FRAME.unpack_from(data)
    start = FRAME.size + length
    return json.loads(data[FRAME.size : start]), data[start:-DIGEST_BYTES]


def closed(data: bytes, header: Any, tensors: bytes) -> bytes:
    """Return a letter with another header and other tensors, and the digest of these."""
    magic, version, _ = FRAME.unpack_from(data)
    text = json.dumps(header).encode()
    body = FRAME.pack(magic, version, len(text)) + text + tensors
    return body + blake2b(body, digest_size=DIGEST_BYTES).digest()


def header(key: str, value: Any) -> Callable[[bytes], bytes]:
    """Return a change of an entry of a letter's header."""

    def change(data: bytes) -> bytes:
        before, tensors = opened(data)
        return closed(data, before | {key: value}, tensors)

    return change


def tensor(place: int, value: Any) -> Callable[[bytes], bytes]:
    """Return a change of a letter's first tensor: of its name (0), type, shape, or bytes (3)."""

    def change(data: bytes) -> bytes:
        before, tensors = opened(data)
        before["tensors"][0][place] = value
        return closed(data, before, tensors)

    return change


def not_finite(data: bytes) -> bytes:
    """Return a letter of NaN: all bits of a float are set."""
    before, tensors = opened(data)
    return closed(data, before, b"\xff" * len(tensors))


LETTERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "letter of NaN": (not_finite, "NaN"),
    "letter cut": (lambda data: data[:-1000], "damaged"),
    "letter changed": (lambda data: data[:-50] + b"x" + data[-49:], "damaged"),
    "letter of before": (header("round", 1), "replayed"),
    "letter of another": (header("sender", 0), "under the name of device"),
    "header of another form": (header("more", EVIL), "its header is not that of a letter"),
    "70 dimensions": (tensor(2, [1] * 70), "its header is not that of a letter"),
    "40,000 dimensions": (tensor(2, [1] * 40_000), "its header is not that of a letter"),
    "shape that overflows": (tensor(2, [1 << 62, 1 << 62]), "its header is not that of a letter"),
    "bytes that overflow": (tensor(3, 1 << 62), "its header is not that of a letter"),
    "block that nobody has": (tensor(0, "long"), "'long' is a block that no two devices"),
    "250 MiB": (lambda data: data + bytes(250 << 20), "or more than"),
}
"""By name: what a device makes of its letters, and the words of it."""
