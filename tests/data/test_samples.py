import numpy as np
import pytest
import torch

from flwr_dmml.data import DataError, Modality, Samples, Source
from flwr_dmml.data.samples import hide_rows


def make_samples() -> Samples:
    return Samples(
        inputs={"audio": torch.arange(8.0).reshape(4, 2), "image": torch.arange(4.0)[:, None]},
        labels=torch.tensor([3, 2, 1, 0]),
        groups=torch.tensor([7, 7, 8, 8]),
    )


def test_subset_takes_the_same_rows_of_everything():
    part = make_samples().subset(torch.tensor([2, 0]))
    assert len(part) == 2
    assert part.inputs["audio"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert part.inputs["image"].tolist() == [[2.0], [0.0]]
    assert part.labels.tolist() == [1, 3]
    assert part.groups is not None and part.groups.tolist() == [8, 7]


def test_an_empty_subset_keeps_the_shapes():
    part = make_samples().subset(torch.tensor([], dtype=torch.int64))
    assert len(part) == 0 and part.inputs["audio"].shape == (0, 2)


def test_restrict_keeps_the_order_asked_for_and_copies_nothing():
    samples = make_samples()
    assert list(samples.restrict(("image", "audio")).inputs) == ["image", "audio"]
    only = samples.restrict(["image"])
    assert list(only.inputs) == ["image"]
    assert only.inputs["image"] is samples.inputs["image"]


def test_restrict_names_an_unknown_modality_and_those_there_are():
    with pytest.raises(DataError, match=r"'radar'.*'audio', 'image'"):
        make_samples().restrict(["audio", "radar"])


@pytest.mark.parametrize("field", ["inputs", "groups"])
def test_lengths_must_agree(field):
    values = {"inputs": {"audio": torch.zeros(4, 2)}, "labels": torch.zeros(4, dtype=torch.int64)}
    values["groups"] = torch.zeros(4, dtype=torch.int64)
    values[field] = {"audio": torch.zeros(3, 2)} if field == "inputs" else torch.zeros(3)
    with pytest.raises(DataError, match=r"different lengths.*3"):
        Samples(**values)


def make_source(height: int = 4) -> Source:
    """Two images a split (of 2 channels), and audio and vectors of the same shapes beside them."""
    inputs = {
        "image": 1 + torch.arange(2.0 * 2 * height * 3).reshape(2, 2, height, 3),
        "audio": torch.ones(2, 1, height, 3),
        "vector": torch.ones(2, height),
    }
    kinds = {name: Modality(name, x.shape[1:]) for name, x in inputs.items()}  # type: ignore[arg-type]
    samples = Samples(inputs, torch.tensor([0, 1]), torch.tensor([5, 6]))
    return Source("made", kinds, 2, samples, samples.subset(torch.tensor([1, 0])))


@pytest.mark.parametrize(
    ("height", "visible", "rows"),
    [
        (4, 0.5, 2),
        (4, 0.75, 3),
        (8, 0.3, 2),  # 2.4 rows
        (8, 0.7, 6),  # 5.6 rows
        (4, 0.1, 0),  # 0.4 rows: none
        (4, 1.0, 4),
    ],
)
def test_images_are_black_below_what_is_visible(height: int, visible: float, rows: int):
    source = make_source(height)
    hidden = hide_rows(source, visible)
    for part, full in ((hidden.train, source.train), (hidden.test, source.test)):
        image = part.inputs["image"]
        assert torch.equal(image[..., :rows, :], full.inputs["image"][..., :rows, :])
        assert not image[..., rows:, :].any()
        assert image.shape == full.inputs["image"].shape


def test_only_images_are_hidden():
    source = make_source()
    hidden = hide_rows(source, 0.25)
    for part, full in ((hidden.train, source.train), (hidden.test, source.test)):
        assert list(part.inputs) == list(full.inputs)
        for name in ("audio", "vector"):
            assert torch.equal(part.inputs[name], full.inputs[name])
        assert part.labels is full.labels and part.groups is full.groups
    assert hidden.modalities == source.modalities and hidden.name == source.name
    assert hidden.num_classes == source.num_classes


def test_hiding_copies_and_leaves_the_source_as_it_is():
    source = make_source()
    before = {name: x.clone() for name, x in source.train.inputs.items()}
    hide_rows(source, 0.25).train.inputs["image"].zero_()
    assert all(torch.equal(source.train.inputs[name], x) for name, x in before.items())


def test_a_subset_of_a_subset_is_a_view_of_the_first():
    """Rows 4, 2, 0 and of these the last and the first: 0 and 4."""
    x = torch.arange(10.0).reshape(5, 2)
    samples = Samples({"a": x, "b": -x}, torch.arange(5))
    part = samples.subset(torch.tensor([4, 2, 0])).subset(np.array([2, 0]))
    assert part.labels.tolist() == [0, 4] and len(part) == 2
    assert part.inputs["a"].tolist() == [[0, 1], [8, 9]]
    only = part.restrict(["b"])
    assert list(only.inputs) == ["b"] and only.inputs["b"].tolist() == [[0, -1], [-8, -9]]
    x[4] = 7.0
    assert part.inputs["a"].tolist() == [[0, 1], [7, 7]], "nothing has been copied"
    own = part.gathered()
    x[4] = 8.0
    assert own.inputs["a"].tolist() == [[0, 1], [7, 7]] and dict(own.inputs) == own.inputs


def test_labels_that_do_not_fit_a_view_are_refused():
    view = Samples({"a": torch.zeros(5, 1)}, torch.zeros(5)).subset([0, 1]).inputs
    with pytest.raises(DataError, match=r"different lengths: \{'a': 2, 'labels': 3\}"):
        Samples(view, torch.zeros(3))
