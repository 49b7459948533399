"""Encoders of series and sequences: blind to what is not there, like torch's GRU, and counted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flwr_dmml.data import DataError
from flwr_dmml.models.series import Gru, MaskedConvolutions, conv1d_encoder
from flwr_dmml.models.tiny import tiny_sequence, tiny_series
from flwr_dmml.payload.blocks import num_parameters

Factory = Callable[[tuple[int, ...], int], nn.Module]


def masked_gru(shape: tuple[int, ...], features: int) -> nn.Module:
    return Gru(shape, features, masked=True)


SEQUENCE: list[Factory] = [MaskedConvolutions, masked_gru, tiny_sequence]
SERIES: list[Factory] = [conv1d_encoder, Gru, tiny_series]
sequence_encoders = pytest.mark.parametrize("make", SEQUENCE, ids=lambda f: f.__name__)
series_encoders = pytest.mark.parametrize("make", SERIES, ids=lambda f: f.__name__)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sequences(lengths: list[int], steps: int, channels: int = 4) -> Tensor:
    """Return ``[len(lengths), channels + 1, steps]``: random, zeros behind each end."""
    x = torch.randn(len(lengths), channels + 1, steps, generator=rng())
    for sample, length in zip(x, lengths, strict=True):
        sample[-1] = 1.0
        sample[:, length:] = 0.0
    return x


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


# Sequences


@sequence_encoders
@pytest.mark.parametrize("steps", [4, 7, 8, 16, 33])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_steps_that_are_not_there_change_nothing(make: Factory, steps: int, length: int) -> None:
    """The window, the sequence cut at its end, and a window that goes on for longer."""
    encoder, x = make((5, steps), 6), sequences([length], steps)
    expected = encoder(x)
    assert close(encoder(x[:, :, :length]), expected)
    for more in range(1, 9):
        longer = torch.cat([x, torch.zeros(1, 5, more)], dim=2)
        assert close(encoder(longer), expected), more


@sequence_encoders
def test_nor_does_what_stands_behind_the_end(make: Factory) -> None:
    encoder, x = make((5, 30), 6), sequences([11], 30)
    expected = encoder(x)
    x[:, :-1, 11:] = 1e3
    assert close(encoder(x), expected)


@sequence_encoders
def test_sequences_of_a_batch_end_where_they_end(make: Factory) -> None:
    lengths = [1, 5, 12, 20, 0]
    encoder, x = make((5, 20), 6), sequences(lengths, 20)
    together = encoder(x)
    for row, length in enumerate(lengths[:-1]):
        assert close(encoder(x[row : row + 1, :, :length])[0], together[row]), length


@sequence_encoders
@pytest.mark.parametrize("step", [0, 7, 10])
def test_every_step_that_is_there_counts(make: Factory, step: int) -> None:
    encoder, x = make((5, 30), 6), sequences([11], 30)
    before = encoder(x)
    x[:, 0, step] += 3.0
    assert float((encoder(x) - before).detach().abs().max()) > 1e-4


@sequence_encoders
def test_without_any_step_the_last_layer_gets_zeros(make: Factory) -> None:
    encoder = make((5, 12), 6)
    features = encoder(torch.zeros(2, 5, 12))
    last = encoder.linear
    assert isinstance(last, nn.Linear)
    assert torch.equal(features, last.bias.expand(2, 6))
    features.sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


def test_masked_convolutions_by_the_layers_of_torch() -> None:
    """All 20 steps: 10 after the first stride, 5 after the second, 5 after the third (below 8)."""
    encoder, x = MaskedConvolutions((5, 20), 6), sequences([20, 20], 20)
    assert encoder.strides == [2, 2, 1]
    z = x[:, :-1]
    for stride, conv, norm in zip((2, 2, 1), encoder.convolutions, encoder.norms, strict=True):
        assert isinstance(conv, nn.Conv1d) and isinstance(norm, nn.LayerNorm)
        z = nn.functional.conv1d(z, conv.weight, conv.bias, stride=stride, padding=2)
        z = nn.functional.layer_norm(z.mT, (z.shape[1],), norm.weight, norm.bias).mT.relu()
    assert z.shape == (2, 64, 5)
    assert close(encoder(x), encoder.linear(z.mean(dim=2)))


# The GRU


def of_torch(gru: Gru, channels: int) -> nn.GRU:
    """Return torch's own with the same parameters."""
    other = nn.GRU(channels, gru.width, batch_first=True)
    other.load_state_dict(
        {
            "weight_ih_l0": gru.of_input.weight,
            "weight_hh_l0": gru.of_state.weight,
            "bias_ih_l0": gru.of_input.bias,
            "bias_hh_l0": gru.of_state.bias,
        }
    )
    return other


def test_the_gru_is_that_of_torch() -> None:
    gru, x = Gru((3, 17), 6), torch.randn(4, 3, 17, generator=rng())
    states, _ = of_torch(gru, 3)(x.mT)
    assert close(gru(x), gru.linear(states[:, -1]))


def test_of_a_sequence_it_gives_the_state_after_the_last_step_that_is_there() -> None:
    lengths = [1, 9, 17]
    gru, x = Gru((5, 17), 6, masked=True), sequences(lengths, 17)
    for row, length in enumerate(lengths):
        states, _ = of_torch(gru, 4)(x[row : row + 1, :-1, :length].mT)
        assert close(gru(x)[row], gru.linear(states[0, -1]))


def test_the_order_of_steps_matters_to_the_gru() -> None:
    gru, x = Gru((3, 17), 6), torch.randn(4, 3, 17, generator=rng())
    assert not torch.allclose(gru(x), gru(x.flip(2)), atol=1e-3)


# Series


@series_encoders
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 128])
def test_windows_of_any_length(make: Factory, steps: int) -> None:
    encoder = make((3, steps), 7)
    for batch in (1, 5):
        features = encoder(torch.randn(batch, 3, steps, generator=rng()))
        assert features.shape == (batch, 7) and bool(features.isfinite().all())


@pytest.mark.parametrize(("steps", "left"), [(4, 4), (7, 7), (8, 4), (16, 4), (32, 4), (128, 16)])
def test_short_windows_are_not_thinned_out(steps: int, left: int) -> None:
    """A stride of 2, at most three times, while there are 8 steps or more."""
    before_the_pool = conv1d_encoder((3, steps), 7)[:9]  # type: ignore[index]
    assert before_the_pool(torch.zeros(1, 3, steps)).shape == (1, 64, left)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        # 5 * (9 * 16 + 16 * 32 + 32 * 64) weights, 112 biases, 224 in norms, 64 * 64 + 64
        (conv1d_encoder((9, 128), 64), 80 * 9 + 13_136 + 65 * 64),
        (MaskedConvolutions((10, 128), 64), 80 * 9 + 13_136 + 65 * 64),
        (Gru((9, 128), 64), 192 * 9 + 12_672 + 65 * 64),
        (masked_gru((10, 128), 64), 192 * 9 + 12_672 + 65 * 64),
    ],
)
def test_parameters_as_documented(encoder: nn.Module, expected: int) -> None:
    assert num_parameters(encoder) == expected


@pytest.mark.parametrize("shape", [(9,), (1, 28, 28), (1, 9)])
def test_what_they_cannot_read_is_one_message(shape: tuple[int, ...]) -> None:
    """(1, 9) is a series of one channel, but as a sequence a mask of nothing."""
    for make in [*SEQUENCE, *(SERIES if shape != (1, 9) else [])]:
        with pytest.raises(DataError) as caught:
            make(shape, 5)
        assert str(shape) in str(caught.value) and "steps)" in str(caught.value)


# What they cost


def flops(encoder: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return the counted operations of a forward pass, and of forward and backward."""
    with FlopCounterMode(display=False) as forward:
        encoder(x)
    with FlopCounterMode(display=False) as training:
        encoder(x).sum().backward()
    return forward.get_total_flops(), training.get_total_flops()


@pytest.mark.parametrize(
    ("encoder", "channels"),
    [(conv1d_encoder((6, 32), 10), 6), (MaskedConvolutions((6, 32), 10), 5)],
    ids=["series", "sequence"],
)
def test_flops_of_convolutions_by_hand(encoder: nn.Module, channels: int) -> None:
    """n multiply-adds: weights times steps. 2n forward, 4n back, 2n in the first layer."""
    first = 5 * channels * 16 * 16
    others = 5 * 16 * 32 * 8 + 5 * 32 * 64 * 4 + 64 * 10
    forward, training = flops(encoder, torch.ones(3, 6, 32))
    assert forward == 3 * 2 * (first + others)
    assert training == 3 * (4 * first + 6 * others)


@pytest.mark.parametrize("masked", [False, True])
def test_flops_of_the_gru_by_hand(masked: bool) -> None:
    """A step has 3 * 64 rows for the channels and for the state, which begins as a constant."""
    channels = 6 - masked
    inputs, state = 32 * channels * 192, 64 * 192
    forward, training = flops(Gru((6, 32), 10, masked=masked), torch.ones(3, 6, 32))
    assert forward == 3 * 2 * (inputs + 32 * state + 64 * 10)
    assert training == 3 * (4 * inputs + 6 * 32 * state - 2 * state + 6 * 64 * 10)


# Training


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["conv", "gru", "tiny"])
def test_they_learn(name: str, masked: bool) -> None:
    """Slow or fast swings in noise, of which a sequence has 12 to 24 steps."""
    labels = torch.arange(64) % 2
    turns = torch.arange(24) * torch.where(labels == 0, 0.4, 1.6)[:, None]
    noise = 0.3 * torch.randn(64, 2, 24, generator=rng(1))
    x = torch.stack([turns.sin(), turns.cos()], dim=1) + noise
    if masked:
        mask = (torch.arange(24) < torch.randint(12, 25, (64, 1), generator=rng())).float()
        x = torch.cat([x * mask[:, None], mask[:, None]], dim=1)
    make = dict(zip(("conv", "gru", "tiny"), SEQUENCE if masked else SERIES, strict=True))[name]
    torch.manual_seed(0)
    encoder = make(tuple(x.shape[1:]), 2)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(encoder(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5 and losses[-1] < 0.1
