"""ResNet-20 and EvoNorm-S0: by hand, counted, and free of everything that cannot be mixed."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flwr_dmml.data import DataError
from flwr_dmml.models.resnet import EvoNormS0, Norm, resnet20
from flwr_dmml.payload.blocks import check_mixable, digest, flatten, load_flat, num_parameters

NORMS: list[Norm] = ["evonorm", "groupnorm"]
SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 9, 13), (1, 32, 63), (5, 64, 11)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(shape: tuple[int, ...], features: int = 10, norm: Norm = "evonorm") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return resnet20(shape, features, norm=norm)


# EvoNorm-S0


def test_evonorm_by_hand() -> None:
    """Two channels of 1x2 pixels, one group each.

    With v = 0 the sigmoid is 1/2. Channel 0 holds (1, 3): variance 1, so (0.5, 1.5). Channel 1
    holds (-2, 6): mean 2, variance 16, so (-1, 3) / 4 = (-0.25, 0.75), times 4, plus 1: (0, 4).
    """
    norm = EvoNormS0(2, groups=2, eps=0.0)
    with torch.no_grad():
        norm.v.zero_()
        norm.weight.copy_(torch.tensor([1.0, 4.0])[:, None, None])
        norm.bias.copy_(torch.tensor([0.0, 1.0])[:, None, None])
    x = torch.tensor([[[[1.0, 3.0]], [[-2.0, 6.0]]]])
    torch.testing.assert_close(norm(x), torch.tensor([[[[0.5, 1.5]], [[0.0, 4.0]]]]))


def test_channels_of_a_group_share_one_deviation() -> None:
    """As before, but (1, 3, -2, 6) in one group: mean 2, variance (1 + 1 + 16 + 16) / 4 = 8.5."""
    norm = EvoNormS0(2, groups=1, eps=0.0)
    nn.init.zeros_(norm.v)
    x = torch.tensor([[[[1.0, 3.0]], [[-2.0, 6.0]]]])
    torch.testing.assert_close(norm(x), x / 2 / 8.5**0.5)


def test_evonorm_starts_as_a_swish_over_the_deviation() -> None:
    """Against torch's own SiLU and the deviations of GroupNorm, found from what it does to x."""
    x = 3 * torch.randn(2, 8, 5, 4, generator=rng()) + 1
    grouped = x.view(2, 2, -1)
    mean = grouped.mean(dim=2).repeat_interleave(4, dim=1)[:, :, None, None]
    deviation = (x - mean) / nn.functional.group_norm(x, 2)
    expected = nn.functional.silu(x) / deviation
    torch.testing.assert_close(EvoNormS0(8, groups=2)(x), expected, rtol=1e-3, atol=1e-4)


def test_v_bends_the_activation_of_its_own_channel() -> None:
    """For a large v, x * sigmoid(v x) is ReLU."""
    norm, x = EvoNormS0(2, groups=2), torch.randn(1, 2, 6, 6, generator=rng())
    before = norm(x)
    with torch.no_grad():
        norm.v[1] = 1e4
    after = norm(x)
    assert torch.equal(after[:, 0], before[:, 0])
    deviation = x[0, 1].var(correction=0).sqrt()
    torch.testing.assert_close(after[0, 1], x[0, 1].relu() / deviation, rtol=1e-3, atol=1e-3)


def test_the_scale_of_the_input_is_divided_out() -> None:
    """With v = 0 what comes out does not depend on the scale; and a constant stays finite."""
    norm, x = EvoNormS0(4, groups=1), torch.randn(2, 4, 6, 6, generator=rng())
    nn.init.zeros_(norm.v)
    torch.testing.assert_close(norm(100 * x), norm(x), rtol=1e-3, atol=1e-4)
    flat = torch.ones(1, 4, 6, 6, requires_grad=True)
    norm(flat).sum().backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_evonorm_has_three_numbers_a_channel_and_nothing_else() -> None:
    norm = EvoNormS0(12, groups=3)
    assert {name: p.numel() for name, p in norm.named_parameters()} == {
        "v": 12,
        "weight": 12,
        "bias": 12,
    }
    assert not list(norm.buffers())
    check_mixable({"norm": norm})


def test_training_mode_and_history_change_nothing() -> None:
    norm, x = EvoNormS0(4, groups=1), torch.randn(3, 4, 5, 5, generator=rng())
    before = norm.train()(x)
    norm(50 * x + 7)
    assert torch.equal(norm.eval()(x), before)


@pytest.mark.parametrize("groups", [0, -1, 5, 24])
def test_groups_must_divide_the_channels(groups: int) -> None:
    with pytest.raises(ValueError, match=rf"groups = {groups}: it must divide the 12 channels"):
        EvoNormS0(12, groups=groups)


# The network


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_vector_a_sample_of_any_size(shape: tuple[int, ...], norm: Norm) -> None:
    encoder = fresh(shape, 7, norm)
    for batch in (1, 3):
        features = encoder(torch.rand(batch, *shape, generator=rng()))
        assert features.shape == (batch, 7) and bool(features.isfinite().all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_no_sample_sees_another(norm: Norm, training: bool) -> None:
    """Replacing one sample changes its own output and none of the others."""
    encoder = fresh((3, 16, 16), 6, norm).train(training)
    x = torch.rand(4, 3, 16, 16, generator=rng())
    other = x.clone()
    other[1] = 50 * torch.randn(3, 16, 16, generator=rng(1))
    before, after = encoder(x).detach(), encoder(other).detach()
    rest = [0, 2, 3]
    torch.testing.assert_close(after[rest], before[rest], rtol=1e-6, atol=1e-6)
    assert float((after[1] - before[1]).abs().max()) > 1e-2


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_in_it_cannot_be_mixed(norm: Norm) -> None:
    encoder = fresh((3, 16, 16), 6, norm)
    check_mixable({"encoder": encoder})
    assert not list(encoder.buffers())
    assert not [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    encoder(torch.rand(2, 3, 16, 16, generator=rng())).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_the_parameters_are_all_there_is() -> None:
    """A flat copy loaded into another network makes it the same function."""
    one = fresh((1, 8, 8), 5)
    two = resnet20((1, 8, 8), 5)
    x = torch.rand(2, 1, 8, 8, generator=rng())
    assert not torch.equal(one(x), two(x))
    load_flat(two, flatten(one))
    assert digest(one) == digest(two) and torch.equal(one(x), two(x))


CONVOLUTIONS = 9 * (16 * 16 * 6 + (16 + 5 * 32) * 32 + (32 + 5 * 64) * 64) + 16 * 32 + 32 * 64
SECOND_NORMS = 2 * (3 * (16 + 32 + 64) + 32 + 64)  # GroupNorm, also of both shortcuts
FIRST_NORMS = 16 + 3 * (16 + 32 + 64)  # channels, times the numbers that each has


@pytest.mark.parametrize(("norm", "each"), [("evonorm", 3), ("groupnorm", 2)])
@pytest.mark.parametrize("features", [64, 10])
def test_parameters_counted_by_hand(norm: Norm, each: int, features: int) -> None:
    """The linear layer has 64 weights and a bias for each feature, the first convolution 432."""
    first = 9 * 3 * 16
    expected = first + CONVOLUTIONS + SECOND_NORMS + each * FIRST_NORMS + 65 * features
    assert num_parameters(resnet20((3, 32, 32), features, norm=norm)) == expected


def test_parameters_as_documented() -> None:
    """0.27 million, as ResNet-20 is known to have; of them 144 for each input channel."""
    assert num_parameters(resnet20((3, 32, 32), 64)) == 272_176 + 65 * 64 == 276_336
    assert num_parameters(resnet20((3, 32, 32), 10)) == 272_826
    assert num_parameters(resnet20((3, 8, 64), 10)) == 272_826
    assert num_parameters(resnet20((1, 32, 32), 10)) == 272_826 - 2 * 144
    assert num_parameters(resnet20((3, 32, 32), 10, norm="groupnorm")) == 272_826 - 352


def test_it_has_twenty_layers() -> None:
    """19 3x3 convolutions and the linear one; the two shortcuts are not counted."""
    layers = list(resnet20((3, 32, 32), 10).modules())
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + sum(isinstance(m, nn.Linear) for m in layers) == 20
    assert sum(isinstance(m, nn.Conv2d) for m in layers) == 21
    assert sum(isinstance(m, EvoNormS0) for m in layers) == 10


def test_convolutions_start_as_he_et_al_say() -> None:
    """Standard deviation sqrt(2 / (size^2 * width)) of 64 * 64 * 9 and of 32 * 64 draws."""
    encoder = fresh((3, 32, 32))
    by_shape = {tuple(m.weight.shape): m for m in encoder.modules() if isinstance(m, nn.Conv2d)}
    for shape, deviation in (((64, 64, 3, 3), (2 / 576) ** 0.5), ((64, 32, 1, 1), (2 / 64) ** 0.5)):
        weight = by_shape[shape].weight.detach()
        assert float(weight.std()) == pytest.approx(deviation, rel=0.06)
        assert abs(float(weight.mean())) < 0.1 * deviation


@pytest.mark.parametrize(("side", "pixels"), [(32, (32, 16, 8)), (8, (8, 4, 2)), (9, (9, 5, 3))])
def test_flops_by_hand(side: int, pixels: tuple[int, ...]) -> None:
    """Multiply-adds of each convolution: weights times output pixels; 2 FLOPs each."""
    large, middle, small = (n * n for n in pixels)
    multiply_adds = (
        9 * (3 * 16 + 6 * 16 * 16) * large
        + (9 * (16 + 5 * 32) * 32 + 16 * 32) * middle
        + (9 * (32 + 5 * 64) * 64 + 32 * 64) * small
        + 64 * 10
    )
    encoder, x = fresh((3, side, side)), torch.rand(2, 3, side, side, generator=rng())
    with FlopCounterMode(display=False) as counter:
        encoder(x)
    assert counter.get_total_flops() == 2 * 2 * multiply_adds
    if side == 32:
        assert multiply_adds / 1e6 == pytest.approx(40.8, abs=0.05)


@pytest.mark.parametrize("shape", [(3, 7, 32), (3, 32, 7), (1, 4, 4), (12,), (3, 32), (1, 3, 9, 9)])
def test_what_it_cannot_read_is_one_message(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        resnet20(shape, 10)
    assert str(shape) in str(caught.value) and "height and width of at least 8" in str(caught.value)


def test_an_unknown_norm_lists_the_allowed_ones() -> None:
    with pytest.raises(DataError, match=r"norm = 'batchnorm'; allowed: evonorm, groupnorm"):
        resnet20((3, 32, 32), 10, norm="batchnorm")  # type: ignore[arg-type]


# Training


def tiny_problem() -> tuple[Tensor, Tensor]:
    """Noise with a bright quarter; which of the four it is, is the class."""
    labels = torch.arange(4).repeat(8)
    x = torch.randn(32, 1, 8, 8, generator=rng())
    for sample, label in zip(x, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        sample[:, row : row + 4, column : column + 4] += 1.0
    return x, labels


@pytest.mark.parametrize("norm", NORMS)
def test_it_trains(norm: Norm) -> None:
    """From about log 4 = 1.39 to under 0.3 in 30 steps on 32 samples."""
    x, labels = tiny_problem()
    encoder = fresh((1, 8, 8), 4, norm)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(encoder(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 1.0 < losses[0] < 2.5
    assert losses[-1] < 0.3
