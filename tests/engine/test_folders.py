"""Folders for data sets and rows: those of runs that were killed go, those in use stay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from flwr_dmml.engine import folders


def test_only_what_no_process_holds_is_removed(tmp_path: Path) -> None:
    held, left, new, other = (
        tmp_path / name
        for name in ("flwr-dmml-run-held", "flwr-dmml-run-left", "flwr-dmml-run-new", "other")
    )
    descriptors = [folders.hold(folder) for folder in (held, left, new, other)]
    for folder, descriptor in zip((left, new, other), descriptors[1:], strict=True):
        (folder / "rows").write_bytes(b"0")
        os.close(descriptor)  # as the system does for a process that ends
    for folder in (held, left, other):
        os.utime(folder, (0, 0))
    folders.sweep(tmp_path)
    assert held.is_dir() and new.is_dir() and other.is_dir() and not left.exists()
    os.close(descriptors[0])
    folders.sweep(tmp_path)
    assert not held.exists() and new.is_dir()


HOLDER = """
import sys, time
from pathlib import Path
from flwr_dmml.engine import folders

folder = folders.new_folder(Path(sys.argv[1]))
folders.hold(folder)
(folder / "data.safetensors").write_bytes(b"0" * 1000)
print(folder, flush=True)
time.sleep(600)
"""


def test_the_next_run_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    """While it lives, nobody does, however old the folder is."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        os.utime(left, (0, 0))
        first = folders.new_folder(tmp_path)
        descriptor = folders.hold(first)
        assert (left / "data.safetensors").exists()
        process.send_signal(signal.SIGKILL)
    folders.let_go(first, descriptor)
    second = folders.new_folder(tmp_path)
    descriptor = folders.hold(second)
    assert list(tmp_path.iterdir()) == [second]
    folders.let_go(second, descriptor)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_comes_back_finds_its_run_folder(tmp_path: Path) -> None:
    """It was the only one to hold the folder, and the run is older than a minute."""
    folder = folders.new_folder(tmp_path)
    os.close(folders.hold(folder))
    (folder / "rows").write_bytes(b"0")
    os.utime(folder, (0, 0))
    descriptor = folders.hold(folder)
    assert (folder / "rows").read_bytes() == b"0"
    folders.let_go(folder, descriptor)


def test_a_folder_without_a_lock_is_left_alone(tmp_path: Path) -> None:
    """Whether it is in use nobody can say."""
    folder = tmp_path / "flwr-dmml-run-x"
    folder.mkdir()
    os.utime(folder, (0, 0))
    folders.sweep(tmp_path)
    assert folder.is_dir()


def test_memory_is_shared_where_the_system_has_a_place_for_it() -> None:
    assert folders.shared_memory().is_dir()
    assert not Path("/dev/shm").is_dir() or folders.shared_memory() == Path("/dev/shm")
