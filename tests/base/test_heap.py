"""Freed memory stays with the process."""

import ctypes
import subprocess
import sys

import pytest

ROUNDS, PAGES = 8, 2**26 // 4096
SCRIPT = """
import resource, sys, torch
from flwr_dmml.base.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(12):  # until freed ones lie side by side
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(int(sys.argv[2])):
    torch.ones(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system hands out while a tensor is made and freed again and again."""
    command = [sys.executable, "-c", SCRIPT, how, str(ROUNDS)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the GNU C library")
def test_a_tensor_gets_the_memory_of_the_one_before() -> None:
    assert faults("as it is") > ROUNDS * PAGES / 2
    assert faults("keep") < PAGES / 100
