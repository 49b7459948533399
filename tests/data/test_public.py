import math
from importlib.metadata import EntryPoint

import pytest
import torch

from flwr_dmml.base.registry import installed
from flwr_dmml.data import (
    DataError,
    Dataset,
    LoadOptions,
    Modality,
    PartitionOptions,
    Samples,
    Source,
    load_partition,
    load_public,
    load_source,
    public_problems,
    registry,
)
from flwr_dmml.data.options import PublicOptions
from flwr_dmml.data.partition import divide
from flwr_dmml.data.public import _convert

NODES = 4
LEFT = 1437 - NODES * 300  # training samples of digits that no node gets
BASE = PartitionOptions(
    "digits",
    num_nodes=NODES,
    samples_per_node=300,
    validation_fraction=0.1,
    modality_pattern="audio+image,image",
)
OWN = PublicOptions()


def changed(**changes) -> PartitionOptions:
    return PartitionOptions(**(vars(BASE) | changes))


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def made(name: str, modalities: dict[str, Modality], num_train: int) -> Dataset:
    """A data set whose sample i is constant: (i + 1) / 200, in the test part 1."""

    def load(options: LoadOptions) -> Source:
        values = (torch.arange(num_train) + 1) / 200

        def part(values: torch.Tensor) -> Samples:
            inputs = {
                key: values.reshape(-1, *[1] * len(modality.shape)).repeat(1, *modality.shape)
                for key, modality in modalities.items()
            }
            return Samples(inputs, torch.zeros(len(values), dtype=torch.int64))

        return Source(name, modalities, 10, part(values), part(torch.ones(5)))

    return Dataset(name, tuple(modalities), False, False, load, "made for tests")


SOUND, IMAGE = Modality("audio", (1, 32, 16)), Modality("image", (1, 8, 8))
PLAIN = made("plain", {"image": IMAGE}, 100)
BOTH = made("both", {"image": IMAGE, "extra": Modality("vector", (3,)), "audio": SOUND}, 60)
COLOUR = made("colour", {"image": Modality("image", (3, 32, 32))}, 100)
LARGE = made("large", {"image": Modality("image", (1, 20, 30))}, 100)
TWO_CHANNELS = made("two-channels", {"image": Modality("image", (2, 8, 8))}, 10)
HEARD = made("heard", {"audio": SOUND}, 30)
LONG = made("long", {"audio": Modality("audio", (1, 32, 63)), "image": IMAGE}, 10)
STRANGE = made("strange", {"acceleration": Modality("vector", (6,))}, 10)
MISNAMED = made("misnamed", {"image": Modality("audio", (1, 8, 8))}, 10)
EMPTY = made("empty", {"image": IMAGE}, 0)
MADE = {d.name: name for name, d in globals().items() if isinstance(d, Dataset)}


@pytest.fixture(autouse=True)
def _made_data_sets(monkeypatch):
    """Register the data sets made here besides the real ones."""

    def both(group: str) -> dict[str, EntryPoint]:
        mine = {key: EntryPoint(key, f"{__name__}:{MADE[key]}", group) for key in MADE}
        return {**installed(group), **mine}

    monkeypatch.setattr(registry, "installed", both)


# What no node got


def test_all_that_no_node_got():
    public = load_public(OWN, BASE)
    assert len(public) == LEFT == len(public.inside)
    assert public.modalities == ("audio", "image")
    assert public.inputs["audio"].shape == (LEFT, 1, 32, 16)
    assert public.inputs["image"].shape == (LEFT, 1, 8, 8)
    assert public.inputs["image"].dtype == torch.float32 and public.inside.dtype == torch.bool
    assert bool(public.inside.all())


@pytest.mark.parametrize("scheme", ["dirichlet", "iid"])
def test_no_image_is_on_a_node_or_in_the_test_set(scheme):
    """The 1,797 images are all different, so an image is a sample."""
    partition = changed(scheme=scheme)
    public = rows(load_public(OWN, partition).inputs["image"])
    parts = [load_partition(partition, node) for node in range(NODES)]
    private = [
        row for p in parts for s in (p.train, p.validation) for row in rows(s.inputs["image"])
    ]
    test = rows(parts[0].test.inputs["image"])
    assert len(set(public)) == LEFT and len(set(private)) == NODES * 300 and len(test) == 360
    assert not set(public) & set(private)
    assert not set(public) & set(test)
    train = rows(load_source("digits", LoadOptions()).train.inputs["image"])
    assert set(public) | set(private) == set(train)


def test_sound_image_and_truth_belong_together():
    public = load_public(OWN, BASE)
    train = load_source("digits", LoadOptions()).train
    at = {row: i for i, row in enumerate(rows(train.inputs["image"]))}
    index = torch.tensor([at[row] for row in rows(public.inputs["image"])])
    assert torch.equal(public.inputs["audio"], train.inputs["audio"][index])
    assert torch.equal(public.truth, train.labels[index])
    assert public.truth.dtype == torch.int64


def test_the_own_name_is_the_same_as_none():
    named, unnamed = load_public(PublicOptions(dataset="digits"), BASE), load_public(OWN, BASE)
    assert torch.equal(named.inputs["image"], unnamed.inputs["image"])
    assert torch.equal(named.truth, unnamed.truth)


def test_fewer_are_a_part_of_more():
    all_rows = set(rows(load_public(OWN, BASE).inputs["image"]))
    fifty = set(rows(load_public(PublicOptions(samples=50), BASE).inputs["image"]))
    ten = set(rows(load_public(PublicOptions(samples=10), BASE).inputs["image"]))
    assert (len(fifty), len(ten)) == (50, 10)
    assert ten < fifty < all_rows


def test_a_handful_left_over_is_a_public_set():
    """1,437 samples over 4 nodes: 359 each, 1 left."""
    assert len(load_public(OWN, changed(samples_per_node=0))) == 1


# Drawing


def test_the_same_in_every_call():
    options = PublicOptions(samples=80, outside="plain")
    first = load_public(options, BASE)
    assert load_public(PublicOptions(samples=80, outside="plain"), BASE) is first
    load_public.cache_clear()
    again = load_public(options, BASE)
    assert again is not first
    assert torch.equal(again.inputs["image"], first.inputs["image"])
    assert torch.equal(again.inside, first.inside) and torch.equal(again.truth, first.truth)


def test_the_seed_decides_what_is_drawn():
    """Of another data set: here the partition has no influence."""
    options = PublicOptions(dataset="plain", samples=50)
    first, other = (load_public(options, changed(seed=seed)).inputs["image"] for seed in (0, 1))
    assert set(rows(first)) != set(rows(other))


def test_public_options_do_not_change_the_partition():
    divide.cache_clear()
    before = [rows(load_partition(BASE, node).train.inputs["image"]) for node in range(NODES)]
    divide.cache_clear()
    for options in (OWN, PublicOptions(samples=9), PublicOptions(dataset="both", outside="plain")):
        load_public(options, BASE)
    after = [rows(load_partition(BASE, node).train.inputs["image"]) for node in range(NODES)]
    assert before == after


def test_the_partition_changes_another_data_set_in_nothing():
    options = PublicOptions(dataset="both", outside="plain", samples=40)
    here, there = load_public(options, BASE), load_public(options, changed(samples_per_node=20))
    assert torch.equal(here.inputs["image"], there.inputs["image"])
    assert torch.equal(here.inside, there.inside)


def test_the_global_generators_are_not_touched():
    state = torch.get_rng_state()
    load_public.cache_clear()
    load_public(PublicOptions(samples=20, outside="plain"), BASE)
    assert torch.equal(torch.get_rng_state(), state)


def test_neither_the_noise_nor_the_load_seed_change_who_is_drawn():
    here = load_public(PublicOptions(samples=20), BASE)
    there = load_public(PublicOptions(samples=20), changed(load=LoadOptions(snr_db=-5.0)))
    assert torch.equal(here.inputs["image"], there.inputs["image"])
    assert not torch.equal(here.inputs["audio"], there.inputs["audio"])


# A mixture


@pytest.mark.parametrize(("samples", "share"), [(100, 0.5), (90, 0.3), (7, 0.5), (101, 0.25)])
def test_the_mixture_is_exact(samples, share):
    public = load_public(PublicOptions(samples=samples, outside="plain", outside_share=share), BASE)
    assert len(public) == samples
    assert int((~public.inside).sum()) == round(share * samples)
    assert len(set(rows(public.inputs["image"]))) == samples  # drawn without replacement


def test_inside_says_where_a_sample_is_from():
    public = load_public(PublicOptions(samples=100, outside="plain"), BASE)
    images = public.inputs["image"].flatten(1)
    constant = images.amin(dim=1) == images.amax(dim=1)  # no digit is
    assert torch.equal(constant, ~public.inside)
    assert public.modalities == ("image",)  # "plain" has no sound
    known = dict(
        zip(
            rows(load_source("digits", LoadOptions()).train.inputs["image"]),
            load_source("digits", LoadOptions()).train.labels.tolist(),
            strict=True,
        )
    )
    truth = [known.get(row, -1) for row in rows(public.inputs["image"])]
    assert public.truth.tolist() == truth
    assert truth.count(-1) == 50


def test_the_mixture_is_shuffled():
    inside = load_public(PublicOptions(samples=100, outside="plain"), BASE).inside
    switches = int((inside[1:] != inside[:-1]).sum())
    assert 30 < switches < 70  # 50 expected, standard deviation 5; sorted, it were 1


def test_the_inside_samples_do_not_depend_on_the_outside_ones():
    def inside_rows(**options) -> set[bytes]:
        public = load_public(PublicOptions(**options), BASE)
        return set(rows(public.inputs["image"][public.inside]))

    half = inside_rows(samples=100, outside="plain")
    assert inside_rows(samples=100, outside="both") == half
    assert inside_rows(samples=50) == half
    assert half < inside_rows(samples=100, outside="plain", outside_share=0.25)


@pytest.mark.parametrize(
    ("share", "total"),
    [(0.5, 201), (0.1, 263), (0.9, 111), (0.25, 316)],
)
def test_without_a_number_as_many_as_the_share_allows(share, total):
    """There are 237 inside and 100 outside: one part is used up, and one more would not fit."""
    public = load_public(PublicOptions(outside="plain", outside_share=share), BASE)
    outside = int((~public.inside).sum())
    assert (len(public), outside) == (total, round(share * total))
    more = round(share * (total + 1))
    assert outside <= 100 and total - outside <= LEFT
    assert more > 100 or total + 1 - more > LEFT


def test_another_data_set_comes_whole_and_without_truth():
    public = load_public(PublicOptions(dataset="both"), BASE)
    assert len(public) == 60 and public.truth is None and bool(public.inside.all())
    assert public.modalities == ("audio", "image")  # in the run's order, without "extra"
    values = (torch.arange(60) + 1) / 200  # the training samples, not the test samples
    torch.testing.assert_close(public.inputs["image"][:, 0, 0, 0].sort().values, values)
    assert torch.equal(public.inputs["image"][:, 0, 0, 0], public.inputs["audio"][:, 0, 0, 0])


def test_a_mixture_of_two_other_data_sets():
    public = load_public(PublicOptions(dataset="both", outside="plain", samples=100), BASE)
    assert public.modalities == ("image",) and public.truth is None
    assert public.inside.sum() == 50
    values = public.inputs["image"][:, 0, 0, 0]
    assert values[public.inside].max() <= 60 / 200 < values[~public.inside].max()


# Conversion of images


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 50, 20), (3, 16, 64), (1, 32, 32)])
def test_a_constant_image_stays_constant(shape):
    grey = torch.tensor([0.0, 0.3, 1.0]).reshape(3, 1, 1, 1).repeat(1, 3, 32, 32)
    result = _convert(grey, shape)
    assert result.shape == (3, *shape)
    expected = grey[:, :1, :1, :1].expand(3, *shape)
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)  # the weights' sum is 0.9999
    assert result.min() >= 0 and result.max() <= 1


def test_grey_of_pure_colours():
    pure = torch.eye(3).reshape(3, 3, 1, 1).repeat(1, 1, 32, 32)
    grey = _convert(pure, (1, 28, 28))
    weights = torch.tensor([0.2989, 0.587, 0.114]).reshape(3, 1, 1, 1).expand(3, 1, 28, 28)
    torch.testing.assert_close(grey, weights, atol=1e-6, rtol=1e-6)


def test_colour_of_grey_is_three_copies():
    image = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_convert(image, (3, 8, 8)), image.repeat(1, 3, 1, 1))


def test_smaller_images_are_averages_not_single_pixels():
    """Of 4 columns the two inner ones are white; without antialiasing only these would count."""
    stripes = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(8).expand(1, 1, 32, 32)
    inner = _convert(stripes, (1, 8, 8))[..., 1:-1]
    assert inner.min() > 0.4 and inner.max() < 0.7


def test_what_is_where_stays_there():
    corner = torch.zeros(1, 1, 32, 32)
    corner[..., :16, 16:] = 1  # upper right
    small = _convert(corner, (1, 8, 8))[0, 0]
    assert small[:3, 5:].min() == 1 and small[5:].max() == 0 and small[:, :3].max() == 0


def test_the_noisiest_images_stay_within_bounds():
    noise = torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round()
    for shape in ((1, 28, 28), (3, 64, 64)):
        result = _convert(noise, shape)
        assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("dataset", ["colour", "large"])
def test_images_are_converted_where_it_is_asked_for(dataset):
    public = load_public(PublicOptions(dataset=dataset, convert_images=True), BASE)
    images = public.inputs["image"]
    assert images.shape == (100, 1, 8, 8) and images.dtype == torch.float32
    values = (torch.arange(100) + 1) / 200
    torch.testing.assert_close(images[:, 0, 4, 4].sort().values, values, atol=1e-4, rtol=0)


def test_the_own_samples_are_not_converted():
    options = PublicOptions(samples=40, outside="colour", convert_images=True)
    public = load_public(options, BASE)
    train = set(rows(load_source("digits", LoadOptions()).train.inputs["image"]))
    assert [row in train for row in rows(public.inputs["image"])] == public.inside.tolist()


def test_conversion_leaves_the_source_as_it_was():
    before = load_source("colour", LoadOptions()).train.inputs["image"].clone()
    load_public(PublicOptions(dataset="colour", convert_images=True, samples=3), BASE)
    after = load_source("colour", LoadOptions()).train.inputs["image"]
    assert after.shape == (100, 3, 32, 32) and torch.equal(before, after)


# What is refused


def refused(partition: PartitionOptions = BASE, **options) -> str:
    """What is refused only once the data are there."""
    assert public_problems(PublicOptions(**options), partition) == []
    with pytest.raises(DataError) as caught:
        load_public(PublicOptions(**options), partition)
    return str(caught.value)


def problem(partition: PartitionOptions = BASE, **options) -> str:
    """The one problem, known without data, for which loading is refused too."""
    problems = public_problems(PublicOptions(**options), partition)
    assert len(problems) == 1
    with pytest.raises(DataError) as caught:
        load_public(PublicOptions(**options), partition)
    assert str(caught.value) == problems[0]
    return problems[0]


@pytest.mark.parametrize("outside", ["", "plain"])
def test_an_empty_set_is_refused(outside):
    """1,437 over 3 nodes: nothing is left."""
    message = refused(changed(num_nodes=3, samples_per_node=0), outside=outside)
    assert message.startswith("public.dataset = '': the public set is empty")
    assert "lower samples-per-node (it is 0; 0 deals out all samples)" in message


def test_a_data_set_without_samples_is_refused():
    assert "public.dataset = 'empty': the public set is empty" in refused(dataset="empty")
    message = refused(outside="empty")
    assert "there are 237 that no node got and 0; " in message and "each part at least 1" in message


def test_more_than_there_are_is_refused():
    message = refused(samples=238)
    assert message.startswith("public.samples = 238: takes 238 inside ")
    assert "there are 237 that no node got" in message and "allowed: up to 237" in message
    assert "a lower samples-per-node leaves more" in message
    assert len(load_public(PublicOptions(samples=237), BASE)) == 237


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"outside": "plain", "samples": 202}, "takes 101 inside and 101 outside"),
        ({"outside": "plain", "samples": 264, "outside_share": 0.1}, "takes 238 inside and 26 "),
        ({"dataset": "both", "samples": 61}, "takes 61 inside and 0 outside samples, there are 60"),
    ],
    ids=["outside", "inside", "another data set"],
)
def test_more_than_there_are_of_a_part_is_refused(options, text):
    message = refused(**options)
    assert message.startswith(f"public.samples = {options['samples']}: {text}")
    assert ("samples-per-node" in message) == ("dataset" not in options)
    assert f"allowed: up to {options['samples'] - 1}" in message


@pytest.mark.parametrize(("samples", "share"), [(1, 0.5), (2, 0.1), (3, 0.9)])
def test_a_mixture_of_one_part_is_refused(samples, share):
    message = refused(samples=samples, outside="plain", outside_share=share)
    assert f"public.samples = {samples}: " in message and "of each part at least 1" in message


def test_another_shape_is_refused():
    for key in ("dataset", "outside"):
        message = refused(**{key: "colour"})
        assert message.startswith(f"public.{key} = 'colour': image is of shape (3, 32, 32), here ")
        assert "(1, 8, 8)" in message and "public.convert-images = true" in message


def test_sound_of_another_shape_is_refused_even_when_images_are_converted():
    for convert in (False, True):
        message = refused(dataset="long", convert_images=convert)
        assert "public.dataset = 'long': audio is of shape (1, 32, 63), here (1, 32, 16)" in message


def test_other_shapes_do_not_matter_of_what_is_not_kept():
    """The sound of "long" would not do, but "plain" has none, so neither has the set."""
    public = load_public(PublicOptions(dataset="long", outside="plain"), BASE)
    assert public.modalities == ("image",)
    assert len(public) == 20


def test_other_channels_cannot_be_converted():
    message = refused(dataset="two-channels", convert_images=True)
    assert "public.dataset = 'two-channels': image is of shape (2, 8, 8), here (1, 8, 8)" in message
    assert "as many channels, 3 for 1, or 1 for 3" in message


@pytest.mark.parametrize("key", ["dataset", "outside"])
def test_no_shared_modality_is_refused(key):
    message = problem(**{key: "strange"})
    assert message.startswith(f"public.{key} = 'strange': node 0 owns audio, image, ")
    assert "the public set then has no modality" in message


def test_the_same_name_for_another_kind_is_not_shared():
    message = refused(dataset="misnamed")
    assert message.startswith("public.dataset = 'misnamed': node 0 owns audio, image")
    assert "no modality" in message


def test_two_data_sets_that_share_nothing_are_refused():
    message = problem(changed(modality_pattern="audio+image"), dataset="plain", outside="heard")
    assert message.startswith("public.outside = 'heard': node 0 owns audio, image, ")
    assert "no modality" in message


@pytest.mark.parametrize("key", ["dataset", "outside"])
def test_a_node_without_a_shared_modality_is_refused(key):
    partition = changed(modality_pattern="image,audio+image,audio,audio")
    message = problem(partition, **{key: "plain"})
    assert message.startswith(f"public.{key} = 'plain': node 2 owns audio, ")
    assert "the public set then has image; every node must own one" in message
    assert public_problems(PublicOptions(**{key: "both"}), partition) == []


def test_shares_of_modalities_are_checked_too():
    partition = changed(modality_pattern="", modality_shares="audio=0.25,image=0.75")
    assert "owns audio, the public set then has image" in problem(partition, dataset="plain")


@pytest.mark.parametrize("key", ["dataset", "outside"])
def test_an_unknown_name_is_refused(key):
    message = problem(**{key: "imagenet"})
    assert message.startswith(
        f"public.{key} = 'imagenet': there is no data set 'imagenet'; allowed"
    )
    assert "av-digits, " in message


@pytest.mark.parametrize(
    "options",
    [
        {"outside": "digits"},
        {"outside": "digits", "dataset": "digits"},
        {"outside": "plain", "dataset": "plain"},
        {"outside": "digits", "dataset": "plain"},  # the nodes' own samples
    ],
    ids=str,
)
def test_outside_is_another_data_set(options):
    message = problem(**options)
    assert message.startswith(f"public.outside = '{options['outside']}': is inside already")


@pytest.mark.parametrize("key", ["dataset", "outside"])
def test_a_missing_folder_is_refused(key):
    assert (
        problem(**{key: "mnist"}) == f"public.{key} = 'mnist': reads a folder; set data-path to it"
    )
    with_path = changed(load=LoadOptions(path="somewhere"))
    assert public_problems(PublicOptions(**{key: "mnist"}), with_path) == []


def test_all_problems_are_named_at_once():
    options = PublicOptions(dataset="imagenet", outside="strange")
    problems = public_problems(options, BASE)
    assert [text.split(" = ")[0] for text in problems] == ["public.dataset", "public.outside"]
    with pytest.raises(DataError) as caught:
        load_public(options, BASE)
    assert str(caught.value) == "; ".join(problems)


def test_a_partition_that_cannot_be_is_for_others_to_report():
    wrong = changed(modality_pattern="smell")
    assert public_problems(PublicOptions(dataset="imagenet"), wrong) == []
    with pytest.raises(DataError, match="smell"):
        load_public(OWN, wrong)
    assert public_problems(OWN, changed(dataset="imagenet")) == []


# Real data


@pytest.fixture(scope="module")
def mnist(real_data) -> PartitionOptions:
    load = LoadOptions(path=str(real_data))
    return PartitionOptions(
        "mnist", num_nodes=4, load=load, samples_per_node=200, modality_pattern="image"
    )


def test_mnist_with_cifar10(mnist):
    options = PublicOptions(samples=1000, outside="cifar10", outside_share=0.3, convert_images=True)
    public = load_public(options, mnist)
    images = public.inputs["image"]
    assert images.shape == (1000, 1, 28, 28)
    assert images.min() >= 0 and images.max() <= 1
    assert int(public.inside.sum()) == 700
    assert torch.equal(public.truth == -1, ~public.inside)
    assert set(public.truth[public.inside].tolist()) == set(range(10))
    border = images[:, 0, :2].mean(dim=(1, 2))  # black in MNIST, not in photographs
    assert border[public.inside].mean() < 0.01 and border[~public.inside].mean() > 0.3
    grey = load_source("cifar10", mnist.load).train.inputs["image"].mean()
    assert math.isclose(images[~public.inside].mean(), grey, abs_tol=0.03)


def test_no_real_image_is_on_a_node(mnist):
    public = load_public(PublicOptions(samples=2000), mnist)
    private = [load_partition(mnist, node).train.inputs["image"] for node in range(4)]
    assert not set(rows(public.inputs["image"])) & set(rows(torch.cat(private)))


def test_cifar10_with_mnist_in_colour(mnist):
    partition = PartitionOptions(**(vars(mnist) | {"dataset": "cifar10"}))
    public = load_public(PublicOptions(samples=60, outside="mnist", convert_images=True), partition)
    outside = public.inputs["image"][~public.inside]
    assert outside.shape == (30, 3, 32, 32)
    assert torch.equal(outside[:, 0], outside[:, 2]) and outside.amax(dim=(1, 2, 3)).min() > 0.5


def test_hidden_rows_are_hidden_here_too(mnist):
    half = LoadOptions(path=mnist.load.path, image_visible=0.5)
    partition = PartitionOptions(**(vars(mnist) | {"load": half}))
    options = PublicOptions(samples=100, outside="cifar10", convert_images=True)
    images = load_public(options, partition).inputs["image"]
    assert not images[:, :, 15:].any()  # row 14 has a little of the row above, by interpolation
    assert images[:, :, :14].flatten(1).any(dim=1).all()
