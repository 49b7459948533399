import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from flwr_dmml.data import registry
from flwr_dmml.graph import topology

hypothesis.settings.register_profile("no-deadline", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    path = os.environ.get("FLWR_DMML_DATA", "")
    if not path:
        pytest.skip("FLWR_DMML_DATA is not set: it names the folder with the real data sets")
    return Path(path)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave nothing in the user's cache, and find nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_DMML_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_parts_of_other_apps() -> Iterator[None]:
    """Data sets and topologies that apps bring along are known until a file of tests ends."""
    known: list[dict[str, object]] = [registry._of_apps, topology._of_apps]  # type: ignore[list-item]
    before = [dict(each) for each in known]
    yield
    for each, kept in zip(known, before, strict=True):
        each.clear()
        each.update(kept)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where the system has such: to write a file anew on disk takes longer."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)
