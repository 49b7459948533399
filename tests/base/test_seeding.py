"""Seeds: the same everywhere for the same purpose, different for any other."""

import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_dmml.base.seeding import derive_seed, global_generator, numpy_generator, torch_generator

PARTS = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=8), max_size=4)


def test_derive_seed_by_hand() -> None:
    """The first 8 bytes that ``b2sum -l 64`` gives, as a number, without the last bit.

    ``printf 'int:0' | b2sum -l 64`` is ba47ff3a50716963, and
    ``printf 'int:7\\x1fstr:batches\\x1fint:3' | b2sum -l 64`` is 6ed9e6c31666165e.
    """
    assert derive_seed(0) == 0xBA47FF3A50716963 >> 1
    assert derive_seed(7, "batches", 3) == 0x6ED9E6C31666165E >> 1


def test_seeds_and_draws_agree_between_processes() -> None:
    """String hashes differ between the two processes; the seeds must not."""
    code = (
        "from flwr_dmml.base.seeding import *\n"
        "print(derive_seed(3, 'init', 'encoder.audio', 5))\n"
        "print(torch_generator(3, 'noise').initial_seed(), numpy_generator(3, 'noise').random())"
    )
    here = [
        str(derive_seed(3, "init", "encoder.audio", 5)),
        f"{torch_generator(3, 'noise').initial_seed()} {numpy_generator(3, 'noise').random()}",
    ]
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    )
    assert there.stdout.splitlines() == here


def test_every_part_of_the_purpose_counts() -> None:
    seeds = [
        derive_seed(1),
        derive_seed(2),
        derive_seed(1, "a"),
        derive_seed(1, "b"),
        derive_seed(1, 2),
        derive_seed(1, "2"),  # another type
        derive_seed(1, 2, 3),
        derive_seed(1, 3, 2),  # another order
        derive_seed(1, 23),
        derive_seed(1, "ab", "c"),
        derive_seed(1, "a", "bc"),  # divided elsewhere
        derive_seed(1, "abc"),
        derive_seed(1, "a", ""),
    ]
    assert all(a != b for a, b in combinations(seeds, 2))


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), PARTS)
def test_seeds_have_63_bits_and_repeat(seed: int, purpose: list[int | str]) -> None:
    derived = derive_seed(seed, *purpose)
    assert 0 <= derived < 2**63 and derived == derive_seed(seed, *purpose)


def test_seeds_spread_over_the_whole_range() -> None:
    """Of 2,000 seeds, each of 16 equal parts of the range gets 125 +- 5 standard deviations.

    The standard deviation is sqrt(2000 * 1/16 * 15/16) = 10.8.
    """
    parts = np.bincount([derive_seed(0, "spread", i) >> 59 for i in range(2000)], minlength=16)
    assert len(parts) == 16 and abs(parts - 125).max() < 54


def test_generators_repeat_and_differ_by_purpose() -> None:
    def draws(*purpose: int | str) -> tuple[list[float], list[float]]:
        return (
            torch.rand(4, generator=torch_generator(5, *purpose)).tolist(),
            numpy_generator(5, *purpose).random(4).tolist(),
        )

    assert draws("noise", 1) == draws("noise", 1)
    for one, other in zip(draws("noise", 1), draws("noise", 2), strict=True):
        assert one != other


def test_generators_neither_use_nor_disturb_the_global_ones() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    first = torch.rand(3, generator=torch_generator(5)).tolist(), numpy_generator(5).random()
    after = torch.rand(3).tolist(), np.random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    assert after == (torch.rand(3).tolist(), np.random.random())
    assert first == (
        torch.rand(3, generator=torch_generator(5)).tolist(),
        numpy_generator(5).random(),
    )


def test_the_global_generator_is_seeded_for_a_while_and_then_as_before():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = torch.rand(1)
    with global_generator(9):
        inside = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
    assert torch.equal(inside, torch.rand(3, generator=torch.Generator().manual_seed(9)))


def test_seeding_leaves_nothing_behind_without_a_gpu():
    """``torch.manual_seed`` notes every call, for a GPU to come, as long as there is none."""
    waiting = len(torch.cuda._queued_calls)
    for seed in range(3):
        with global_generator(seed):
            pass
    assert len(torch.cuda._queued_calls) == waiting
