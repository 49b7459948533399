import pytest
import torch

from flwr_dmml.data import DataError, Samples


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
