"""Average pooling as a product with a constant matrix."""

import copy

import pytest
import torch
from torch import nn

from flwr_dmml.models.pooling import AveragePool, regions
from flwr_dmml.payload.blocks import check_mixable


def test_regions_by_hand() -> None:
    """Of 5 in 2: 0 to 3 and 2 to 5; the middle one is in both."""
    third = 1 / 3
    assert torch.allclose(
        regions(5, 2), torch.tensor([[third, third, third, 0, 0], [0, 0, third, third, third]])
    )
    assert torch.equal(regions(3, 3), torch.eye(3))


@pytest.mark.parametrize("shape", [(8, 4), (7, 7), (5, 9), (16, 8), (2, 6), (3, 3)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_it_is_torchs_adaptive_pooling(shape: tuple[int, int], size: int) -> None:
    x = torch.randn(3, 5, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(AveragePool(size)(x), nn.AdaptiveAvgPool2d(size)(x), atol=1e-6)


def test_a_map_of_that_size_is_left_alone() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert AveragePool(4)(x) is x


def test_nothing_of_it_is_mixed_or_kept() -> None:
    pool = AveragePool(2)
    pool(torch.randn(1, 1, 8, 8))
    assert not list(pool.parameters()) and not list(pool.buffers()) and not pool.state_dict()
    check_mixable({"pooled": nn.Sequential(pool, nn.Linear(2, 2))})
    assert repr(copy.deepcopy(pool)) == "AveragePool(2)"
