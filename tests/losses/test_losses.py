"""Losses: hand-computed numbers, and what must hold for any features."""

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flwr_dmml.losses import (
    diversity_loss,
    ensemble_loss,
    label_weights,
    latent_distillation_loss,
    orthogonality_loss,
    sampling_distribution,
    similarity_loss,
)

SEEDS = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1)


# Orthogonality


def test_orthogonality_of_independent_features_is_zero() -> None:
    """Columns (1, 1, -1, -1) and (1, -1, 1, -1): C^T S = 1 - 1 - 1 + 1 = 0."""
    loss = orthogonality_loss(column(1, 1, -1, -1), column(1, -1, 1, -1))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    loss = orthogonality_loss(column(5, 5, 3, 3), column(0, -8, 0, -8))  # the same once centred
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_orthogonality_of_aligned_features() -> None:
    """One feature each: every unit row is 1 or -1, C^T S the sum of 4 ones, (C^T S)^2 = 16.

    So it is (batch size)^2 where each sample's features agree up to a constant sign.
    """
    feature = column(3, -1, -4, 2)
    assert orthogonality_loss(feature, feature).item() == pytest.approx(16, rel=1e-5)
    assert orthogonality_loss(feature, -7 * feature + 2).item() == pytest.approx(16, rel=1e-5)


def test_orthogonality_by_hand() -> None:
    """Centred rows +-(3, 4) and +-(0, 2); unit rows +-(0.6, 0.8) and +-(0, 1).

    C^T S = 2 (0.6, 0.8)^T (0, 1) = [[0, 1.2], [0, 1.6]]; the mean of its squares over the four
    pairs of features is (1.44 + 2.56) / 4 = 1.
    """
    common = torch.tensor([[4.0, 4.0], [-2.0, -4.0]])  # mean (1, 0)
    specific = torch.tensor([[5.0, 2.0], [5.0, -2.0]])  # mean (5, 0)
    assert orthogonality_loss(common, specific).item() == pytest.approx(1, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.floats(0.1, 100), st.floats(0.1, 100))
def test_orthogonality_ignores_scale_and_offset(seed: int, a: float, b: float) -> None:
    common, specific = normal(seed, 8, 3), normal(seed + 1, 8, 5)
    loss = orthogonality_loss(common, specific)
    changed = orthogonality_loss(a * common + 1, b * specific - 2)
    assert loss > 0 and changed.item() == pytest.approx(loss.item(), rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_orthogonality_does_not_fall_by_shrinking_features(seed: int) -> None:
    """Scaling the features is no descent direction: <grad, c> = d/da loss(a c, s) = 0 at a = 1.

    Nor is scaling one sample: the rows v, -v, w, -w have mean 0, and still have when both v and -v
    grow, which leaves every unit row as it is.
    """
    half = normal(seed, 2, 3).repeat_interleave(2, dim=0)  # v, v, w, w
    common = (half * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])).requires_grad_()
    loss = orthogonality_loss(common, normal(seed + 1, 4, 3))
    (gradient,) = torch.autograd.grad(loss, common)
    size = float(gradient.norm() * common.detach().norm())
    assert size > 0
    along = (gradient * common.detach()).sum(dim=1)
    assert abs(float(along.sum())) < 1e-4 * size
    assert abs(float(along[:2].sum())) < 1e-4 * size
    assert abs(float(along[2:].sum())) < 1e-4 * size


def test_orthogonality_of_constant_features_is_zero_with_a_finite_gradient() -> None:
    """Nothing varies, so nothing varies together; 0/0 must not appear."""
    common = torch.ones(4, 3, requires_grad=True)
    loss = orthogonality_loss(common, normal(0, 4, 2))
    (gradient,) = torch.autograd.grad(loss, common)
    assert loss == 0 and bool(torch.isfinite(gradient).all())


# Similarity


def test_similarity_by_hand() -> None:
    """|1 - 0| and |2 - 4| average to 3/2."""
    assert similarity_loss([torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])]) == 1.5


def test_similarity_is_the_mean_over_pairs() -> None:
    """Features 0, 1 and 3 everywhere: pairs 1, 3 and 2 apart, mean 2."""
    parts = [torch.full((4, 5), value) for value in (0.0, 1.0, 3.0)]
    assert similarity_loss(parts) == 2
    assert similarity_loss(parts[::-1]) == 2


def test_similarity_of_equal_features_is_zero() -> None:
    features = normal(0, 6, 4)
    assert similarity_loss([features, features.clone()]) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_similarity_needs_two_modalities(count: int) -> None:
    with pytest.raises(ValueError, match="at least two"):
        similarity_loss([torch.zeros(2, 2)] * count)


# Diversity


def test_diversity_by_hand() -> None:
    """eps (0, 0) and (1, 2): mean square (1 + 4)/2 = 5/2. Features 0 and 3: mean distance 3.

    Two of the four pairs (i, j) are 5/2 * 3 = 15/2, two are 0: exp(-15/4).
    """
    loss = diversity_loss(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), column(0, 3))
    assert loss.item() == pytest.approx(exp(-15 / 4), rel=1e-6)


def test_diversity_of_a_collapsed_generator_is_one() -> None:
    """So it is with one sample, which has nothing to differ from."""
    assert diversity_loss(normal(0, 6, 3), torch.ones(6, 4)) == 1
    assert diversity_loss(normal(0, 1, 3), normal(1, 1, 4)) == 1


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.floats(0.01, 2))
def test_diversity_is_in_0_1_and_falls_as_features_spread(seed: int, scale: float) -> None:
    noise = torch.rand(6, 3, generator=torch.Generator().manual_seed(seed))
    features = scale * normal(seed, 6, 4)
    near, far = diversity_loss(noise, features), diversity_loss(noise, 2 * features)
    assert 0 < far < near < 1
    assert far.item() == pytest.approx(near.item() ** 2, rel=1e-4)  # exp(-2x) = exp(-x)^2


# Ensemble


def test_label_weights_and_sampling_by_hand() -> None:
    """Votes w_j n_j(y): (2, 0, 0), (0, 2, 0), (1, 2, 0); their sums over j are 3, 4 and 0."""
    mixing = torch.tensor([0.5, 0.25, 0.25])
    counts = torch.tensor([[4.0, 0, 0], [0, 8.0, 0], [4.0, 8.0, 0]])
    expected = torch.tensor([[2 / 3, 0, 0], [0, 1 / 2, 0], [1 / 3, 1 / 2, 0]])
    torch.testing.assert_close(label_weights(mixing, counts), expected)
    r = sampling_distribution(mixing, counts)
    torch.testing.assert_close(r, torch.tensor([3 / 7, 4 / 7, 0]))
    assert r[2] == 0  # exactly: it must never be drawn


def test_private_counts_leave_the_mixing_weights() -> None:
    mixing = torch.tensor([0.5, 0.3, 0.2])
    weights = label_weights(mixing, torch.ones(3, 4))
    torch.testing.assert_close(weights, mixing[:, None].expand(3, 4))
    torch.testing.assert_close(
        sampling_distribution(mixing, torch.ones(3, 4)), torch.full((4,), 0.25)
    )


@st.composite
def votes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    heads, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    size = heads * classes
    counts = draw(st.lists(st.integers(0, 50), min_size=size, max_size=size))
    mixing = draw(st.lists(st.floats(0.05, 1), min_size=heads, max_size=heads))
    counts[0] += 1  # a device has data
    return torch.tensor(mixing), torch.tensor(counts).float().reshape(heads, classes)


@settings(deadline=None)
@given(votes())
def test_label_weights_always(case: tuple[Tensor, Tensor]) -> None:
    mixing, counts = case
    weights, r = label_weights(mixing, counts), sampling_distribution(mixing, counts)
    held = (counts.sum(dim=0) > 0).float()
    torch.testing.assert_close(weights.sum(dim=0), held)  # each column sums to 1, or is all 0
    assert bool((weights >= 0).all()) and bool((weights[counts == 0] == 0).all())
    assert r.sum().item() == pytest.approx(1, abs=1e-6)
    assert bool(((r > 0) == (held > 0)).all())


def test_ensemble_loss_by_hand() -> None:
    """Label 0 of two classes. Head 1 gives it 3/4, head 2 gives it 1/2, weights 1/4 and 3/4.

    The loss is 1/4 ln(4/3) + 3/4 ln 2.
    """
    logits = torch.tensor([[[log(3), 0.0], [0.0, 0.0]]])  # [batch, heads, classes]
    weights = torch.tensor([[0.25, 0.0], [0.75, 0.0]])
    loss = ensemble_loss(logits, torch.tensor([0]), weights)
    assert loss.item() == pytest.approx(0.25 * log(4 / 3) + 0.75 * log(2), rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 4), st.integers(1, 6))
def test_ensemble_loss_is_a_loop_over_samples_and_heads(seed: int, heads: int, batch: int) -> None:
    logits, weights = normal(seed, batch, heads, 3), normal(seed, heads, 3).abs()
    labels = torch.randint(3, (batch,), generator=torch.Generator().manual_seed(seed))
    total = torch.tensor(0.0)
    for i in range(batch):
        for j in range(heads):
            cross_entropy = F.cross_entropy(logits[i, j : j + 1], labels[i : i + 1])
            total = total + weights[j, labels[i]] * cross_entropy
    torch.testing.assert_close(ensemble_loss(logits, labels, weights), total / batch)


def test_a_head_without_weight_for_the_class_does_not_matter() -> None:
    """Head 1 never saw class 1: what it says of a feature of class 1 changes nothing."""
    labels = torch.tensor([0, 1])
    weights = label_weights(torch.tensor([0.5, 0.5]), torch.tensor([[5.0, 0.0], [5.0, 5.0]]))
    logits = normal(0, 2, 2, 2)
    other = logits.clone()
    other[1, 0] = torch.tensor([1e4, -1e4])  # head 1 on the feature of class 1
    assert ensemble_loss(other, labels, weights) == ensemble_loss(logits, labels, weights)
    other[0, 0] += torch.tensor([1.0, -1.0])  # head 1 on the feature of class 0, which it knows
    assert ensemble_loss(other, labels, weights) < ensemble_loss(logits, labels, weights)


# Latent distillation


def test_latent_distillation_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2); second sample 0."""
    teacher = torch.tensor([[log(3), 0.0], [1.0, 2.0]])
    student = torch.tensor([[7.0, 7.0], [1.0, 2.0]])
    expected = (0.75 * log(1.5) + 0.25 * log(0.5)) / 2
    assert latent_distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_latent_distillation_is_zero_when_student_equals_teacher() -> None:
    logits = normal(0, 5, 4)
    assert latent_distillation_loss(logits, logits) == 0
    shifted = latent_distillation_loss(logits + 3, logits)  # the same probabilities
    assert shifted.item() == pytest.approx(0, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_latent_distillation_teaches_the_student_only(seed: int) -> None:
    """d KL(p || softmax(a)) / da = softmax(a) - p, over the batch size; the teacher gets none."""
    student = normal(seed, 4, 3).requires_grad_()
    teacher = normal(seed + 1, 4, 3).requires_grad_()
    loss = latent_distillation_loss(student, teacher)
    loss.backward()
    assert loss > 0 and teacher.grad is None
    expected = (student.softmax(dim=1) - teacher.softmax(dim=1)).detach() / 4
    torch.testing.assert_close(student.grad, expected, rtol=1e-4, atol=1e-6)
