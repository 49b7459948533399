"""What fails, on what engine, and what comes of it: the table of docs/reliability.md.

``python tests/helpers_faults.py`` writes it there. tests/integration/test_faults.py runs the checks
that stand here, and looks for the tests that cells name.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers_flower import serve
from helpers_liars import FEW, LIAR, LIES, Lying, lines_of, of_others, run_four

from flwr_dmml.engine import FlowerApp
from flwr_dmml.strategies import RunStoppedError, make_server_app
from flwr_dmml.tracking.lock import InUseError, locked

ENGINES = "in process", "workers", "flwr run", "SuperNodes"
OUTCOMES = {
    "alone": "The device has failed in that round: it is named, with the reason, in the log, in "
    "`metrics.jsonl` and at the end. The others' figures are those of a run in which it is silent.",
    "goes on": "The run goes on, and its figures are the same as if nothing had happened. The log "
    "says so.",
    "resumes": "The run ends. `--resume` ends with the same metrics, byte for byte, as if nothing "
    "had happened.",
    "stops": "The run stops after the round, with a checkpoint, and the exit status, or `flwr-dmml "
    "status` after a `flwr run`, says so. Then as *resumes*.",
    "refused": "One error names what is wrong. What is on the disk stays as it is.",
    "-": "It cannot happen there.",
}


@dataclass(frozen=True)
class Cell:
    """What comes of a fault on an engine.

    Attributes
    ----------
    outcome : str
        Of :data:`OUTCOMES`.
    more : str
        What else there is to say.
    tests : tuple of str
        Those that show it, ``tests/FILE.py::NAME``.
    check : callable or None
        Shows it here, in a folder of its own.
    why : str
        Why no test shows it.
    """

    outcome: str
    more: str = ""
    tests: tuple[str, ...] = ()
    check: Callable[[Path], None] | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}; {self.more}" if self.more else self.outcome

    @property
    def shown_by(self) -> str:
        if self.check:
            return f"`tests/integration/test_faults.py` ({self.check.__name__})"
        return ", ".join(f"`{test}`" for test in self.tests) or f"not tested: {self.why}"


def seen(outcome: str, *tests: str, more: str = "") -> Cell:
    return Cell(outcome, more, tests=tuple(f"tests/{test}" for test in tests))


def untested(outcome: str, why: str, more: str = "") -> Cell:
    return Cell(outcome, more, why=why)


NOT_THERE = "there is nothing of the kind"
COORDINATOR = "the coordinator does it, in the same code on every engine"


def nowhere(why: str = NOT_THERE) -> Cell:
    return Cell("-", why=why)


# ---- checks on a grid that is Flower's own, as a ServerApp has it under `flwr run` --------------


def under_flower(folder: Path, devices: Lying, stop_in: int = 0, **settings: Any) -> Path:
    """Run four devices; return the method's folder. ``_`` in settings stands for ``-``."""
    config = FEW | {key.replace("_", "-"): value for key, value in settings.items()}
    serve(FlowerApp(config, make_server_app(), devices), folder, {}, stop_in)  # type: ignore[arg-type]
    return folder / "x" / str(config["method"])


SOUND = Lying("nothing", None)


def a_liar_is_as_if_it_were_silent(folder: Path) -> None:
    kind, change, words = LIES["accuracy 1e9"]
    lied = lines_of(under_flower(folder / "lied", Lying(kind, change)))
    silent = lines_of(under_flower(folder / "silent", Lying(kind, None)))
    assert of_others(lied) == of_others(silent)
    assert [list(line["failed"]) for line in lied] == [[], [str(LIAR)], [str(LIAR)]]
    assert all(words in line["failed"][str(LIAR)] for line in lied[1:])


def a_device_that_raises_is_alone(folder: Path) -> None:
    failing = Lying("train", None)
    there = under_flower(folder / "there", failing) / "metrics.jsonl"
    here = run_four(folder / "here", failing) / "metrics.jsonl"
    assert there.read_bytes() == here.read_bytes()
    assert [list(line["failed"]) for line in lines_of(there.parent)] == [[], ["1"], ["1"]]


def a_run_in_use_is_refused(folder: Path) -> None:
    with pytest.raises(RunStoppedError):
        under_flower(folder, SOUND, stop_in=1)
    with locked(folder / "x"), pytest.raises(InUseError, match="is in use by process"):
        under_flower(folder, SOUND, resume="x", run_name="")


def a_damaged_checkpoint_gives_way_to_the_one_before(folder: Path) -> None:
    with pytest.raises(RunStoppedError):
        method = under_flower(folder / "stopped", SOUND, stop_in=2)
    method = folder / "stopped" / "x" / "dpsgd"
    file = method / "checkpoints" / "round-00002" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"more": 1}))
    under_flower(folder / "stopped", SOUND, resume="x", run_name="")
    log = (method.parent / "log.txt").read_text()
    assert "round-00002" in log and "Resumed after round 1" in log
    whole = under_flower(folder / "whole", SOUND)
    assert (method / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


# ---- the table ----------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Cell, Cell, Cell, Cell]] = {
    "a device's reply cannot be read, or cannot be true": (
        seen("alone", "strategies/test_replies.py::test_a_liar_costs_only_itself_and_is_named"),
        seen("alone", "integration/test_sharded.py::test_a_liar_costs_no_more_than_in_one_process"),
        Cell("alone", check=a_liar_is_as_if_it_were_silent),
        untested("alone", "a run for each lie takes minutes; `benchmarks/faults.py` does it"),
    ),
    "a device raises, or answers too late": (
        seen(
            "alone",
            "strategies/test_peer.py::test_a_node_without_a_good_payload_is_left_out_for_that_round_only",
            "strategies/test_peer.py::test_a_node_that_never_replies_costs_only_its_own_contribution",
        ),
        seen(
            "alone",
            "integration/test_sharded.py::test_a_client_app_that_raises_costs_its_own_reply_only",
            "integration/test_sharded.py::test_a_late_reply_can_be_pulled_later",
        ),
        Cell("alone", check=a_device_that_raises_is_alone),
        seen(
            "alone",
            "integration/test_fleet_faults.py::test_a_killed_device_comes_back_and_a_killed_superlink_is_resumed",
        ),
    ),
    "a device says that its neighbours are at fault": (
        seen(
            "goes on",
            "strategies/test_replies.py::test_a_blame_is_the_word_of_the_one_who_says_it",
            "strategies/test_replies.py::test_a_sender_has_failed_if_all_whom_it_should_have_reached_say_so",
            more="a sender has failed if all its neighbours, two or more, say so",
        ),
        *3 * (untested("goes on", COORDINATOR, "likewise"),),
    ),
    "a text of a device holds line breaks or control codes": (
        seen(
            "goes on",
            "strategies/test_replies.py::test_no_word_of_a_device_forges_a_line_or_reaches_the_terminal",
            more="they are escaped",
        ),
        *3 * (untested("goes on", COORDINATOR, "they are escaped"),),
    ),
    "a neighbour's payload is NaN, cut, changed, old, or not its own": (
        seen(
            "alone",
            "strategies/test_peer.py::test_a_node_that_sends_rubbish_is_rejected_by_its_neighbours_by_name",
            "strategies/test_sealed.py::test_what_is_tampered_with_costs_only_itself_and_is_named",
        ),
        *2 * (untested("alone", "receivers check it, in the same code on every engine"),),
        seen(
            "alone",
            "integration/test_fleet_faults.py::test_a_liar_and_a_wrong_certificate_cost_only_themselves",
        ),
    ),
    "the link between two neighbours is cut": (
        nowhere(),
        nowhere(),
        nowhere(),
        seen(
            "alone",
            "integration/test_fleet_lan.py::test_a_cut_link_costs_the_two_at_its_ends_only_and_heals",
            more="each mixes without the other",
        ),
    ),
    "a device's data cannot be used": (
        seen(
            "alone",
            "strategies/test_node_data.py::test_the_others_go_on",
            more="out of the whole run",
        ),
        *3 * (untested("alone", COORDINATOR, "out of the whole run"),),
    ),
    "a process of devices is killed": (
        nowhere("devices have no process of their own"),
        seen(
            "goes on",
            "integration/test_spread.py::test_a_worker_that_dies_costs_nothing",
            "integration/test_sharded.py::test_a_worker_that_is_killed_comes_back_with_its_nodes",
            "integration/test_spread.py::test_a_worker_may_die_when_a_checkpoint_is_due",
            "integration/test_spread.py::test_a_worker_that_lacks_memory_is_started_again",
            "integration/test_spread.py::test_rows_that_are_lost_end_the_run",
            more="*resumes* if its machine is lost, too",
        ),
        seen(
            "alone",
            "integration/test_flwr_run.py::test_a_lost_worker_is_told_and_too_few_devices_stop_the_run",
            more="for good, and others with it: Flower starts no new process. The log names `engine"
            ' = "sharded"`, `min-devices` stops the run',
        ),
        seen(
            "alone",
            "integration/test_fleet_faults.py::test_a_killed_device_comes_back_and_a_killed_superlink_is_resumed",
            more="until it is started again",
        ),
    ),
    "the coordinator's process is killed": (
        seen("resumes", "integration/test_resume.py::test_killed_and_resumed"),
        seen("resumes", "integration/test_resume.py::test_killed_and_resumed"),
        seen(
            "resumes",
            "integration/test_flwr_run.py::test_a_run_that_is_stopped_and_killed_goes_on",
        ),
        seen(
            "resumes",
            "integration/test_fleet_faults.py::test_a_killed_device_comes_back_and_a_killed_superlink_is_resumed",
        ),
    ),
    "Ctrl-C or SIGTERM": (
        seen(
            "stops",
            "cli/test_signals.py::test_a_run_stops_after_the_round_and_goes_on_as_if_never_stopped",
        ),
        seen(
            "stops",
            "cli/test_signals.py::test_a_run_stops_after_the_round_and_goes_on_as_if_never_stopped",
        ),
        seen(
            "stops",
            "integration/test_flwr_run.py::test_a_run_that_is_stopped_and_killed_goes_on",
        ),
        seen(
            "stops",
            "strategies/test_stopping_runs.py::test_sigterm_stops_after_the_round_with_a_checkpoint",
            more="sent to `flwr-serverapp`",
        ),
    ),
    "fewer devices answer than `min-devices`": (
        seen(
            "stops",
            "strategies/test_ending.py::test_too_few_devices_stop_the_run_with_a_checkpoint",
            "strategies/test_ending.py::test_too_few_devices_at_the_end_are_no_end",
        ),
        untested("stops", COORDINATOR),
        seen(
            "stops",
            "integration/test_flwr_run.py::test_a_lost_worker_is_told_and_too_few_devices_stop_the_run",
        ),
        untested("stops", COORDINATOR),
    ),
    "a device is away when a run is resumed": (
        *2 * (nowhere("the engine starts all devices"),),
        untested("alone", COORDINATOR, "until it comes"),
        seen(
            "alone",
            "strategies/test_returning.py::test_a_resumed_run_goes_on_without_a_device_and_takes_it_back",
            more="until it comes",
        ),
    ),
    "a second process resumes a run that lives": (
        seen("refused", "tracking/test_lock.py::test_a_run_that_lives_is_not_resumed_beside_it"),
        untested("refused", COORDINATOR),
        Cell("refused", check=a_run_in_use_is_refused),
        untested("refused", COORDINATOR),
    ),
    "the last checkpoint is damaged": (
        seen(
            "resumes",
            "tracking/test_checkpoints.py::test_after_a_damaged_checkpoint_the_one_before_is_taken",
            "tracking/test_checkpoints.py::test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew_in_silence",
            more="from the one before; *refused* where there is none",
        ),
        untested("resumes", COORDINATOR, "likewise"),
        Cell("resumes", "likewise", check=a_damaged_checkpoint_gives_way_to_the_one_before),
        untested("resumes", COORDINATOR, "likewise"),
    ),
    "the disk of the run folders is full": (
        seen(
            "resumes",
            "base/test_files.py::test_a_run_on_a_full_disk_says_which_file_and_how_to_go_on",
            more="the error names the file",
        ),
        *3 * (untested("resumes", COORDINATOR, "likewise"),),
    ),
    "shared memory (`/dev/shm`) is full": (
        nowhere("it is not used"),
        seen(
            "refused",
            "integration/test_spread.py::test_full_shared_memory_is_one_error",
            more="with the megabytes that it takes",
        ),
        untested(
            "goes on",
            "it is Ray's: it says so, and takes the folder for temporary files",
            'with `engine = "sharded"` as with workers',
        ),
        nowhere("it is not used"),
    ),
    "an entry of the data cache is damaged, or its disk full": (
        seen(
            "goes on",
            "data/test_cache.py::test_what_is_damaged_is_named_deleted_and_made_again",
            "data/test_cache.py::test_a_full_disk_is_said_once_and_costs_only_the_entry",
        ),
        *3 * (untested("goes on", "whoever loads data does it in the same code"),),
    ),
    "a device's own state is damaged, or another's": (
        nowhere("the engine keeps the states"),
        nowhere("the engine keeps the states"),
        nowhere("the engine keeps the states"),
        seen(
            "alone",
            "clients/test_own_state.py::test_a_damaged_file_is_named_and_not_read",
            "clients/test_own_state.py::test_a_second_device_with_the_folder_is_refused_and_told_whose_it_is",
            more="out of the rest of the run",
        ),
    ),
}  # fmt: skip
"""By what fails: what comes of it on each of the :data:`ENGINES`."""

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- from tests/helpers_faults.py -->\n", "<!-- to here -->\n"


def page_part() -> str:
    """Return what docs/reliability.md has of the table."""
    rows = [["what fails", "in process", "workers", "`flwr run`", "SuperNodes"], ["---"] * 5]
    rows += [[fault, *map(str, cells)] for fault, cells in FAULTS.items()]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    words = "".join(f"- *{word}*: {text}\n" for word, text in OUTCOMES.items())
    shown = ""
    for fault, cells in FAULTS.items():
        shown += f"\n**{fault[0].upper()}{fault[1:]}**\n\n"
        by: dict[str, list[str]] = {}
        for engine, cell in zip(ENGINES, cells, strict=True):
            if cell.outcome != "-":
                by.setdefault(cell.shown_by, []).append(engine)
        shown += "".join(f"- {', '.join(engines)}: {text}\n" for text, engines in by.items())
    return f"{table}\n{words}\n## What shows it\n{shown}"


def parts_of_page() -> tuple[str, str, str]:
    """Return what stands before the table in docs/reliability.md, the table, and the rest."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    part, _, after = rest.partition(END)
    return before, part, after


if __name__ == "__main__":
    before, _, after = parts_of_page()
    PAGE.write_text(f"{before}{BEGIN}{page_part()}{END}{after}", encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
