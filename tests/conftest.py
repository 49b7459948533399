import os
from pathlib import Path

import pytest
import torch


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
