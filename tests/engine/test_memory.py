"""Folders in shared memory: those of runs that were killed go, those in use stay."""

import os
from pathlib import Path

from flwr_dmml.engine import memory


def test_only_what_no_process_holds_is_removed(tmp_path: Path) -> None:
    held, left, new, other = (
        tmp_path / name
        for name in ("flwr-dmml-rows-held", "flwr-dmml-rows-left", "flwr-dmml-rows-new", "other")
    )
    descriptors = [memory.hold(folder) for folder in (held, left, new, other)]
    for folder, descriptor in zip((left, new, other), descriptors[1:], strict=True):
        (folder / "rows").write_bytes(b"0")
        os.close(descriptor)  # as the system does for a process that ends
    for folder in (held, left, other):
        os.utime(folder, (0, 0))
    memory.sweep(tmp_path)
    assert held.is_dir() and new.is_dir() and other.is_dir() and not left.exists()
    os.close(descriptors[0])
    memory.sweep(tmp_path)
    assert not held.exists() and new.is_dir()


def test_a_folder_without_a_lock_is_left_alone(tmp_path: Path) -> None:
    """Whether it is in use nobody can say."""
    folder = tmp_path / "flwr-dmml-rows-x"
    folder.mkdir()
    os.utime(folder, (0, 0))
    memory.sweep(tmp_path)
    assert folder.is_dir()


def test_memory_is_shared_where_the_system_has_a_place_for_it() -> None:
    assert memory.parent().is_dir()
    assert not Path("/dev/shm").is_dir() or memory.parent() == Path("/dev/shm")
