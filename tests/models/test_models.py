"""Models: shapes, what is shared from the start, additive fusion, and a generator that learns."""

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from flwr_dmml.data import DataError, Modality
from flwr_dmml.losses import label_weights, sampling_distribution
from flwr_dmml.models import (
    ENCODERS,
    IMAGE_ENCODERS,
    DecomposedClassifier,
    EncoderChoice,
    Features,
    Generator,
    GeneratorTraining,
    ModalityNetworks,
    TwoProjectorClassifier,
    draw_labels,
    make_encoder,
    train_generators,
)
from flwr_dmml.payload.blocks import check_mixable, flatten, num_parameters

AUDIO = Modality("audio", (1, 32, 16))
IMAGE = Modality("image", (1, 8, 8))
ALL = {"audio": AUDIO, "image": IMAGE, "motion": Modality("vector", (6,))}

EVERY_SHAPE = [
    Modality("image", (1, 8, 8)),
    Modality("image", (1, 28, 28)),
    Modality("image", (3, 5, 3)),
    Modality("audio", (1, 32, 63)),
    Modality("audio", (1, 32, 16)),
    Modality("vector", (12,)),
    Modality("vector", (3, 4)),
    Modality("series", (3, 50)),
    Modality("series", (1, 4)),
    Modality("sequence", (6, 20)),
    Modality("sequence", (2, 4)),
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(*names: str, seed: int = 0) -> DecomposedClassifier:
    owned = {name: ALL[name] for name in names}
    return DecomposedClassifier(owned, 5, common_dim=4, specific_dim=3, seed=seed)


def some(modality: Modality, batch: int) -> Tensor:
    """Random samples; a sequence of n steps has all, or all but the last one, in turn."""
    samples = torch.rand(batch, *modality.shape, generator=rng())
    if modality.kind == "sequence":
        samples[:, -1] = 1.0
        samples[1::2, :, -1] = 0.0
    return samples


def inputs(*names: str, batch: int = 6) -> dict[str, Tensor]:
    return {name: torch.rand(batch, *ALL[name].shape, generator=rng(1)) for name in names}


# Encoders

EVERY_ENCODER = [
    (modality, name)
    for modality in EVERY_SHAPE
    for name in ENCODERS[modality.kind]
    if name != "resnet18" and not (name == "resnet20" and min(modality.shape[1:]) < 8)
]


def encoder_of(modality: Modality, name: str, features: int = 10) -> nn.Module:
    kind = "series" if modality.kind == "sequence" else modality.kind
    return make_encoder(modality, features, EncoderChoice(**{kind: name}))


@pytest.mark.parametrize(("modality", "name"), EVERY_ENCODER, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_encoders_give_one_vector_a_sample(modality: Modality, name: str, batch: int) -> None:
    encoder, samples = encoder_of(modality, name), some(modality, batch)
    features = encoder(samples)
    assert features.shape == (batch, 10) and bool(torch.isfinite(features).all())
    alone = torch.cat([encoder(sample[None]) for sample in samples])
    torch.testing.assert_close(features, alone, rtol=1e-3, atol=1e-4)  # no sample sees another
    if batch > 1:
        assert float((features[0] - features[2]).detach().abs().max()) > 1e-6  # but itself


@pytest.mark.parametrize(("modality", "name"), EVERY_ENCODER, ids=str)
def test_encoders_can_be_mixed(modality: Modality, name: str) -> None:
    encoder = encoder_of(modality, name)
    check_mixable({"encoder": encoder})
    assert not list(encoder.buffers())
    encoder(some(modality, 2)).sum().backward()
    unused = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert unused == []


def test_every_kind_of_encoder_is_tested() -> None:
    tested = {(modality.kind, name) for modality, name in EVERY_ENCODER}
    every = {(kind, name) for kind, named in ENCODERS.items() for name in named}
    assert every - tested == {("image", "resnet18"), ("audio", "resnet18")}  # test_resnet18.py


@pytest.mark.parametrize(
    ("modality", "expected"),
    [
        (Modality("image", (1, 8, 8)), "conv"),
        (Modality("audio", (1, 32, 16)), "conv"),
        (Modality("vector", (6,)), "mlp"),
        (Modality("series", (3, 50)), "conv1d"),
        (Modality("sequence", (6, 20)), "conv1d"),
    ],
    ids=str,
)
def test_the_encoder_that_nobody_chose(modality: Modality, expected: str) -> None:
    plain = make_encoder(modality, 10)
    factory = ENCODERS[modality.kind][expected]
    assert str(plain) == str(factory(modality.shape, 10))


def test_an_encoder_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(DataError, match=r"no encoder 'gru' of kind audio; allowed: conv, resnet18"):
        EncoderChoice(audio="gru")


@pytest.mark.parametrize(
    ("modality", "expected"),
    [
        (Modality("image", (1, 28, 28)), 72 + 1_224 + 65 * 64),
        (Modality("audio", (3, 32, 16)), 3 * 72 + 1_224 + 65 * 64),
        (Modality("vector", (26,)), 26 * 16 + 16 + 32 + 17 * 64),
        (Modality("series", (9, 128)), 9 * 24 + 456 + 17 * 64),
        (Modality("sequence", (10, 40)), 9 * 24 + 456 + 17 * 64),  # one channel is the mask
    ],
    ids=str,
)
def test_tiny_encoders_are(modality: Modality, expected: int) -> None:
    """Convolutions: biases 8 + 16, norms 16 + 32; 2-d 9 * 8 * 16 = 1,152, 1-d 3 * 8 * 16 = 384."""
    assert num_parameters(encoder_of(modality, "tiny", 64)) == expected < 6_000


# Encoders of images, by name


@pytest.mark.parametrize("name", [name for name in IMAGE_ENCODERS if name != "resnet18"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 9, 13)], ids=str)
def test_image_encoders_give_one_vector_a_sample_and_can_be_mixed(
    name: str, shape: tuple[int, ...]
) -> None:
    encoder = IMAGE_ENCODERS[name](shape, 10)
    samples = torch.rand(3, *shape, generator=rng())
    features = encoder(samples)
    assert features.shape == (3, 10) and bool(torch.isfinite(features).all())
    alone = torch.cat([encoder(sample[None]) for sample in samples])
    torch.testing.assert_close(features, alone, rtol=1e-3, atol=1e-4)
    check_mixable({"encoder": encoder})
    assert not list(encoder.buffers())
    features.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("shape", "features", "expected"),
    [
        ((1, 28, 28), 10, 11_258),  # the classifier of the calibration of IDKD
        ((1, 28, 28), 64, 6_128 + 513 * 64),  # 4 x 4 pixels of 32 channels are 512
        ((3, 32, 32), 64, 6_528 + 513 * 64),  # 2 more channels are 2 * 25 * 8 = 400 more weights
        ((1, 17, 5), 2, 6_128 + (3 * 1 * 32 + 1) * 2),  # 17 -> 9 -> 5 -> 3 and 5 -> 3 -> 2 -> 1
    ],
    ids=str,
)
def test_parameters_of_the_small_encoder(
    shape: tuple[int, ...], features: int, expected: int
) -> None:
    """Convolutions 208 + 1,168 + 4,640 and norms 16 + 32 + 64 are 6,128 numbers."""
    assert num_parameters(IMAGE_ENCODERS["conv3"](shape, features)) == expected


def test_the_small_encoder_keeps_where_something_is() -> None:
    """A mark in one corner or another: unlike after a mean over all pixels, features differ."""
    encoder = IMAGE_ENCODERS["conv3"]((1, 32, 32), 10)
    x = torch.zeros(2, 1, 32, 32)
    x[0, :, 8, 8] = x[1, :, 24, 24] = 1.0
    linear = encoder.get_submodule("10")
    assert isinstance(linear, nn.Linear) and linear.in_features == 32 * 4 * 4
    one, other = encoder(x).detach()
    assert not torch.allclose(one, other, atol=1e-3)


# The decomposed classifier


def test_nodes_share_the_same_start_whatever_they_own() -> None:
    ears, both = classifier("audio"), classifier("image", "audio")
    for name, block in ears.blocks().items():
        assert torch.equal(flatten(block), flatten(both.blocks()[name])), name
    assert set(both.blocks()) - set(ears.blocks()) == {"encoder.image", "head.image"}


def test_another_seed_gives_other_numbers() -> None:
    one, other = classifier("audio", seed=1), classifier("audio", seed=2)
    for name, block in one.blocks().items():
        assert not torch.equal(flatten(block), flatten(other.blocks()[name])), name


def test_blocks_of_equal_shape_start_from_different_numbers() -> None:
    twins = {"left": AUDIO, "right": AUDIO}
    blocks = DecomposedClassifier(twins, 5, common_dim=4, specific_dim=3).blocks()
    for kind in ("encoder", "head"):
        left, right = flatten(blocks[f"{kind}.left"]), flatten(blocks[f"{kind}.right"])
        assert left.shape == right.shape and not torch.equal(left, right)


def test_building_models_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    built = flatten(classifier("audio", "image")), flatten(Generator(3, 4))
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(4)  # nor do the models depend on it
    again = flatten(classifier("audio", "image")), flatten(Generator(3, 4))
    assert all(torch.equal(a, b) for a, b in zip(built, again, strict=True))


@pytest.mark.parametrize("names", [["audio"], ["image", "motion"], ["audio", "image", "motion"]])
def test_blocks_are_named_and_cover_every_parameter_once(names: list[str]) -> None:
    model = classifier(*names)
    blocks = model.blocks()
    assert set(blocks) == {"head.common"} | {
        f"{part}.{name}" for part in ("encoder", "head") for name in names
    }
    covered = Counter(id(p) for block in blocks.values() for p in block.parameters())
    assert covered == Counter(id(p) for p in model.parameters())
    assert set(covered.values()) == {1}
    check_mixable(blocks)
    assert [name for name, value in model.named_buffers() if value.is_floating_point()] == []


def test_encode_splits_each_feature_into_common_and_specific() -> None:
    model, x = classifier("audio", "image"), inputs("audio", "image")
    features = model.encode(x)
    for name in x:
        assert features.common[name].shape == (6, 4) and features.specific[name].shape == (6, 3)
        whole = torch.cat([features.common[name], features.specific[name]], dim=1)
        assert torch.equal(whole, model.encoders[name](x[name]))


def test_fusion_by_hand() -> None:
    """Common features (1, 2) and (3, 4) average to (2, 3).

    The common head, weights ((1, 0), (0, 1), (1, 1)) and bias (0, 0, 10), gives (2, 3, 15). The
    specific parts are 1 and 2, and their heads (1, 0, -1) and (0, 5, 0): (1, 0, -1) + (0, 10, 0).
    Together (3, 13, 14); audio alone gives (1, 2, 13) + (1, 0, -1) = (2, 2, 12).
    """
    owned = {"audio": AUDIO, "image": IMAGE}
    model = DecomposedClassifier(owned, 3, common_dim=2, specific_dim=1)
    with torch.no_grad():
        model.head_common.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        model.head_common.bias.copy_(torch.tensor([0.0, 0, 10]))
        model.heads["audio"].weight.copy_(torch.tensor([[1.0], [0], [-1]]))
        model.heads["image"].weight.copy_(torch.tensor([[0.0], [5], [0]]))
    features = Features(
        common={"audio": torch.tensor([[1.0, 2.0]]), "image": torch.tensor([[3.0, 4.0]])},
        specific={"audio": torch.tensor([[1.0]]), "image": torch.tensor([[2.0]])},
    )
    assert model.fuse(features).tolist() == [[3, 13, 14]]
    assert model.fuse(features.only(["audio"])).tolist() == [[2, 2, 12]]
    assert model.common_logits(features.common["audio"]).tolist() == [[1, 2, 13]]


@pytest.mark.parametrize(
    "subset", [["audio"], ["motion"], ["image", "audio"], ["motion", "audio", "image"]]
)
def test_any_subset_works_and_an_absent_modality_adds_nothing(subset: list[str]) -> None:
    """A node with three sensors and one of which only some work compute the very same numbers."""
    x = inputs(*subset)
    logits = classifier("audio", "image", "motion")(x)
    assert logits.shape == (6, 5)
    assert torch.equal(logits, classifier(*subset)(x))


def test_only_keeps_what_is_named() -> None:
    features = classifier("audio", "image").encode(inputs("audio", "image"))
    kept = features.only(("image",))
    assert list(kept.common) == list(kept.specific) == ["image"]
    assert kept.common["image"] is features.common["image"]


def test_the_specific_heads_have_no_bias() -> None:
    """A specific part of zeros must add exactly nothing."""
    model = classifier("audio", "image")
    for head in model.heads.values():
        assert isinstance(head, nn.Linear) and head.bias is None
        assert bool((head(torch.zeros(2, 3)) == 0).all())


# The generator


def test_generator_shapes() -> None:
    generator = Generator(5, 7, noise_dim=3)
    noise = generator.noise(4, rng())
    assert noise.shape == (4, 3)
    assert generator(torch.tensor([0, 1, 4, 4]), noise).shape == (4, 7)
    check_mixable({"generator": generator})


def test_noise_is_seeded_and_uniform() -> None:
    """2,000 draws of U(0, 1): mean 1/2 +- 5 * sqrt(1/12/2000) = 0.032, and near both ends."""
    generator = Generator(5, 7, noise_dim=20)
    noise = generator.noise(100, rng(1))
    assert bool((noise >= 0).all()) and bool((noise < 1).all())
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.033)
    assert float(noise.min()) < 0.02 and float(noise.max()) > 0.98
    assert torch.equal(noise, generator.noise(100, rng(1)))
    assert not torch.equal(noise, generator.noise(100, rng(2)))


def test_generator_depends_on_label_noise_and_seed() -> None:
    generator, other = Generator(5, 7), Generator(5, 7, seed=1)
    noise, labels = generator.noise(2, rng()), torch.tensor([0, 0])
    features = generator(labels, noise)
    assert torch.equal(features, Generator(5, 7)(labels, noise))
    assert not torch.equal(features, other(labels, noise))
    assert not torch.equal(features, generator(torch.tensor([1, 1]), noise))
    assert not torch.equal(features[0], features[1])


def test_draw_labels_follows_the_distribution() -> None:
    """4,000 draws: class 0 is never drawn, class 1 in 3/4 +- 5 * sqrt(3/16/4000) = 0.034."""
    labels = draw_labels(torch.tensor([0.0, 0.75, 0.25]), 4000, rng())
    counts = labels.bincount(minlength=3)
    assert labels.dtype == torch.int64 and counts[0] == 0
    assert float(counts[1]) / 4000 == pytest.approx(0.75, abs=0.034)
    assert torch.equal(labels, draw_labels(torch.tensor([0.0, 0.75, 0.25]), 4000, rng()))


def prototype_head(classes: int = 4, common_dim: int = 6) -> nn.Linear:
    """Return the head that knows a prototype for each class: the first unit vectors, times 4."""
    head = nn.Linear(common_dim, classes)
    with torch.no_grad():
        head.weight.copy_(4 * torch.eye(classes, common_dim))
        head.bias.zero_()
    return head.requires_grad_(False)


def heads_of(*heads: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of the heads that one device hears."""
    weights, biases = ([getattr(h, name) for h in heads] for name in ("weight", "bias"))
    return torch.stack(weights)[None], torch.stack(biases)[None]


def test_a_generator_learns_what_a_head_recognises_without_collapsing() -> None:
    """Features of a class stay apart, and further apart than without the diversity loss."""
    head, labels = prototype_head(), torch.arange(4).repeat_interleave(50)
    noise = Generator(4, 6, noise_dim=8).noise(200, rng(9))

    def features_after(steps: int, diversity_weight: float = 1.0) -> Tensor:
        generator = Generator(4, 6, noise_dim=8, hidden_dim=32)
        train_generators(
            [generator],
            heads_of(head),
            label_weights=torch.ones(1, 1, 4),
            label_distributions=[torch.full((4,), 0.25)],
            how=GeneratorTraining(steps, learning_rate=5e-3, diversity_weight=diversity_weight),
            rngs=[rng()],
        )
        return generator(labels, noise).detach()

    def accuracy(features: Tensor) -> float:
        return float((head(features).argmax(dim=1) == labels).float().mean())

    def spread(features: Tensor) -> Tensor:  # mean pairwise distance within each class
        return torch.stack([torch.pdist(of_class).mean() for of_class in features.split(50)])

    trained = features_after(steps=150)
    assert accuracy(features_after(steps=0)) < 0.6 and accuracy(trained) > 0.9
    assert bool((spread(trained) > 0.1).all())
    assert bool((spread(trained) > spread(features_after(150, diversity_weight=0.0))).all())


def test_a_generator_follows_the_head_that_knows_the_class() -> None:
    """Head 1 holds classes 0 and 1 only, head 2 holds 2 and 3, and each misreads the others.

    Head 2 is head 1 with the classes in another order, so no feature pleases both: with counts for
    weights, each class is generated for the head that has seen it.
    """
    one, two = prototype_head(), prototype_head()
    two.weight.copy_(one.weight[[1, 2, 3, 0]])
    counts = torch.tensor([[10.0, 10, 0, 0], [0, 0, 10, 10]])
    mixing = torch.tensor([0.5, 0.5])
    generator = Generator(4, 6, noise_dim=8, hidden_dim=32)
    train_generators(
        [generator],
        heads_of(one, two),
        label_weights(mixing, counts)[None],
        [sampling_distribution(mixing, counts)],
        GeneratorTraining(steps=150, learning_rate=5e-3),
        [rng()],
    )
    for head, known in ((one, (0, 1)), (two, (2, 3))):
        labels = torch.tensor(known).repeat_interleave(50)
        guess = head(generator(labels, generator.noise(100, rng(9)))).argmax(dim=1)
        assert float((guess == labels).float().mean()) > 0.9


def test_training_a_generator_touches_nothing_else() -> None:
    """The head keeps its parameters and has no gradient; equal draws give equal generators."""
    head, before = prototype_head(), flatten(prototype_head())
    trained = []
    for _ in range(2):
        generator = Generator(4, 6)
        train_generators(
            [generator],
            heads_of(head),
            torch.ones(1, 1, 4),
            [torch.full((4,), 0.25)],
            GeneratorTraining(steps=3),
            [rng(5)],
        )
        trained.append(flatten(generator))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], flatten(Generator(4, 6)))
    assert torch.equal(flatten(head), before)
    assert head.weight.grad is None


def test_generators_that_are_trained_together_are_those_trained_alone() -> None:
    """To the last bit: three devices, each with heads, labels and draws of its own."""
    heads = [torch.randn(3, 2, 4, 6, generator=rng(1)), torch.randn(3, 2, 4, generator=rng(2))]
    omega = torch.rand(3, 2, 4, generator=rng(3))
    near = list(torch.rand(3, 4, generator=rng(4)))
    how = GeneratorTraining(steps=4, batch_size=7)

    def trained(devices: list[int]) -> list[Tensor]:
        generators = [Generator(4, 6, noise_dim=5, hidden_dim=9, seed=k) for k in devices]
        train_generators(
            generators,
            (heads[0][devices], heads[1][devices]),
            omega[devices],
            [near[k] for k in devices],
            how,
            [rng(10 + k) for k in devices],
        )
        return [flatten(generator) for generator in generators]

    together = trained([0, 1, 2])
    for k in range(3):
        assert torch.equal(trained([k])[0], together[k])
    assert torch.equal(trained([2, 0])[1], together[0])


def test_a_modality_may_have_the_name_of_an_attribute() -> None:
    """Of a module, of a ModuleDict or of a dict: the blocks are as under any other name."""
    names = [
        "values",
        "type",
        "half",
        "keys",
        "items",
        "train",
        "pop",
        "of_x",
        "training",
        "forward",
    ]
    forms = {name: Modality("vector", (4,)) for name in names}
    for model in (
        DecomposedClassifier(forms, 3, fusion="detached"),
        TwoProjectorClassifier(forms, names, 3),
        ModalityNetworks(forms, names, 3),
    ):
        assert [*model.encoders] == [*model.encoders.keys()] == names
        assert "values" in model.encoders and "x" not in model.encoders
        assert {f"encoder.{name}" for name in names} <= model.blocks().keys()
        copied = copy.deepcopy(model)
        copied.load_state_dict(model.state_dict())
        inputs = {name: torch.ones(2, 4) for name in names}
        predict = {
            m: m.fused if isinstance(m, ModalityNetworks) else m.forward for m in (model, copied)
        }
        first, second = (predict[m](inputs) for m in (model, copied))
        assert torch.equal(first, second) and first.shape == (2, 3)
