"""Ask the devices themselves, by a Flower app: Flower has no other way to reach them."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..base.formats import first_problem
from ..base.text import one_line
from .answers import Answer, Heard
from .config import Device, Fleet, FleetError
from .quoting import node_config
from .status_app.server_app import END, MARK
from .superlink import error_of, flower, flower_program, node_of

APP = Path(__file__).with_name("status_app")
START_S = 30.0
"""Seconds that the run itself may take to start and to end."""


class _Line(BaseModel):
    """Line that the app prints for a device that has answered: an error, or the answer in JSON."""

    model_config = ConfigDict(frozen=True, strict=True)

    node: str
    sent: float
    received: float
    error: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Asked:
    """Answers of the devices, and the problems of asking them.

    Attributes
    ----------
    heard : dict of str to Heard
        Answers by the devices' names.
    problems : list of str
        Who has not answered, and why.
    """

    heard: Mapping[str, Heard] = field(default_factory=dict)
    problems: Sequence[str] = ()


def ask_devices(fleet: Fleet, folder: Path, devices: Sequence[Device], timeout_s: float) -> Asked:
    """Start a run that asks ``devices`` how they are, and gather the answers.

    Raises
    ------
    FleetError
        The run cannot be started, or nobody can be asked by it.
    """
    by_node = {node_of(folder, device): device for device in devices}
    asked = {node: [d.name, d.address, d.direct_port] for node, d in by_node.items()}
    config = node_config({"devices": json.dumps(asked)}) + f" timeout-s={timeout_s:.1f}"
    lines, trouble = _told(run_to_end(fleet, folder, APP, config, timeout_s + START_S))
    heard: dict[str, Heard] = {}
    problems: list[str] = []
    silent = dict(by_node)
    for line in lines:
        device = silent.pop(line.node)
        if line.error:
            problems.append(f"{device.name} cannot say how it is: {one_line(line.error)}")
            continue
        try:
            answer = read_answer(line.answer)
        except FleetError as error:
            problems.append(f"{device.name} gives an answer of another form: {error}")
            continue
        heard[device.name] = Heard(answer, line.sent, line.received)
    names = [device.name for device in silent.values()]
    if trouble:
        missing = f"; without an answer: {', '.join(names)}" if names else ""
        return Asked(heard, [*problems, trouble + missing])
    late = f"did not answer in {timeout_s:g} s: busy with another run, or silent"
    return Asked(heard, [*problems, *(f"{name} {late}" for name in names)])


def read_answer(text: str) -> Answer:
    """Read what a device says of itself (:func:`.status_app.client_app.describe`), in JSON.

    Raises
    ------
    FleetError
        It is something else; the message says where.
    """
    try:
        return Answer.model_validate_json(text)
    except ValidationError as error:
        raise FleetError(one_line(first_problem(error))) from error


def _told(log: str) -> tuple[list[_Line], str]:
    """Return what the app has printed, and what is wrong if that is not all."""
    printed = [line.removeprefix(MARK) for line in log.splitlines() if line.startswith(MARK)]
    lines, ended = [], False
    for text in printed:
        if text == json.dumps(END):
            ended = True
        else:
            lines.append(_Line.model_validate_json(text))
    if ended:
        return lines, ""
    last = [line.strip() for line in log.splitlines() if line.strip()][-1:]
    why = one_line("".join(last)) or "no log"
    return lines, f"the run that asks devices has not come to its end: {why}"


def run_to_end(fleet: Fleet, folder: Path, app: Path, config: str, timeout_s: float) -> str:
    """Run an app, wait for its end, and return its log; a run that takes longer is stopped.

    Raises
    ------
    FleetError
        It cannot be started, or its log not be read.
    """
    started = flower(fleet, folder, ["run", str(app), fleet.name, "-c", config])
    if not started.get("success"):
        raise FleetError(f"devices cannot be asked: {error_of(started)}")
    run_id = str(started["run-id"])
    program, environment = flower_program(folder)
    try:
        done = subprocess.run(
            [program, "log", run_id, fleet.name, "--stream"],
            env=environment | {"PYTHONUNBUFFERED": "1"},
            capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        flower(fleet, folder, ["stop", run_id, fleet.name])
        return (late.stdout or b"").decode(errors="replace")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise FleetError(f"the answers of devices cannot be read: {said}")
    return done.stdout.decode(errors="replace")
