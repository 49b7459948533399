import json

import numpy as np
import pytest
from fuzzing import fuzz

EXAMPLE = json.dumps({"a": [1, 2, 3], "b": {"c": 4}}).encode()
REFUSALS = (ValueError, RecursionError)


def test_documented_errors_are_counted(pytestconfig: pytest.Config) -> None:
    tried = fuzz(json.loads, REFUSALS, [EXAMPLE], pytestconfig)
    assert tried.inputs >= 300
    assert 0 < tried.refused < tried.inputs


def test_another_error_fails(pytestconfig: pytest.Config) -> None:
    with pytest.raises(KeyError):
        fuzz(lambda data: json.loads(data)["a"], REFUSALS, [EXAMPLE], pytestconfig)


def test_so_does_too_much_memory(pytestconfig: pytest.Config) -> None:
    def parse(data: bytes) -> None:
        if data != b"1":
            np.empty(4 << 30, np.uint8)  # more than is free anywhere in this process

    with pytest.raises(MemoryError):
        fuzz(parse, (), [b"1"], pytestconfig, memory_mb=50)


def test_and_an_example_that_is_refused(pytestconfig: pytest.Config) -> None:
    with pytest.raises(ValueError):
        fuzz(json.loads, (ValueError,), [b"{"], pytestconfig)
