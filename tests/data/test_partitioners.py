"""What is drawn here in NumPy is, to the sample, what flwr-datasets and scikit-learn draw."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import (
    IidPartitioner,
    InnerDirichletPartitioner,
    NaturalIdPartitioner,
    Partitioner,
)
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from flwr_dmml.data import DataError, LoadOptions, load_source
from flwr_dmml.data.division import stratified_split
from flwr_dmml.data.partitioners import dirichlet, iid, natural


def parts_of(partitioner: Partitioner, **columns: np.ndarray) -> list[list[int]]:
    """The column ``index`` of every partition, by flwr-datasets itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not all samples are used; 0/0
        partitioner.dataset = Dataset.from_dict(columns)
        parts = range(partitioner.num_partitions)
        return [list(partitioner.load_partition(k)["index"]) for k in parts]


@pytest.mark.parametrize("seed", [0, 1, 2**62])
@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 100.0])
@pytest.mark.parametrize(
    ("samples", "num_nodes", "size"),
    [(1437, 12, 119), (600, 7, 40), (300, 30, 10), (60, 60, 1), (100, 1, 100)],
)
def test_dirichlet(seed: int, alpha: float, samples: int, num_nodes: int, size: int):
    """Also that the classes run out: then flwr-datasets draws with probabilities of nan."""
    rng = np.random.default_rng([seed, samples])
    labels, order = rng.integers(0, 10, samples), rng.permutation(samples)
    partitioner = InnerDirichletPartitioner([size] * num_nodes, "label", alpha, seed=seed)
    classes = np.unique(labels, return_inverse=True)[1]
    given = {"num_nodes": num_nodes, "size": size, "alpha": alpha, "seed": seed}
    try:
        expected = parts_of(partitioner, index=order, label=classes)
    except ValueError:
        with pytest.raises(DataError, match="the classes that a node draws from run out"):
            dirichlet(labels, order, **given)
        return
    found = dirichlet(labels, order, **given)
    assert [part.tolist() for part in found] == expected
    assert all(part.dtype == np.int64 for part in found)


def test_the_classes_do_run_out():
    """Two nodes of 50 from two classes of 50, each with nearly all of its weight on one class."""
    labels = np.repeat([0, 1], 50)
    with pytest.raises(DataError, match=r"alpha 0\.001 and 50 samples a node"):
        for seed in range(20):  # both on the same class in half of the seeds
            dirichlet(labels, np.arange(100), num_nodes=2, size=50, alpha=0.001, seed=seed)


@pytest.mark.parametrize(("samples", "num_nodes"), [(120, 12), (119, 3), (100, 7), (5, 5)])
def test_iid(samples: int, num_nodes: int):
    order = np.random.default_rng(samples).permutation(samples)
    found = [part.tolist() for part in iid(order, num_nodes)]
    assert found == parts_of(IidPartitioner(num_nodes), index=order)


def test_natural_ids():
    groups = np.array([30, 10, 30, 20, 10])
    found = [part.tolist() for part in natural(groups)]
    assert found == [[1, 4], [3], [0, 2]]
    assert found == parts_of(NaturalIdPartitioner("group"), index=np.arange(5), group=groups)


@pytest.mark.parametrize("random_state", [0, 1, 7])
@pytest.mark.parametrize(
    ("samples", "classes", "test"), [(1797, 10, 360), (400, 3, 133), (64, 8, 8), (1000, 10, 200)]
)
def test_a_stratified_split(random_state: int, samples: int, classes: int, test: int):
    labels = np.random.default_rng(samples).permutation(np.arange(samples) % classes) * 3
    expected = train_test_split(
        np.arange(samples), test_size=test, stratify=labels, random_state=random_state
    )
    found = stratified_split(labels, test, random_state)
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


def test_the_digits_are_scikit_learns():
    pixels, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(1797), test_size=0.2, stratify=labels, random_state=0)
    source = load_source("digits", LoadOptions())
    for samples, rows in ((source.train, train), (source.test, test)):
        assert samples.labels.tolist() == labels[rows].tolist()
        images = (pixels[rows] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        assert np.array_equal(samples.inputs["image"].numpy(), images)


def test_a_partition_imports_nothing_heavy():
    """A second and more in every process: the libraries that are only compared with here."""
    code = (
        "import sys\n"
        "from flwr_dmml.data import PartitionOptions, load_partition\n"
        "for scheme in ('dirichlet', 'iid'):\n"
        "    options = PartitionOptions('digits', 3, scheme=scheme, modality_pattern='auto')\n"
        "    load_partition(options, 0)\n"
        "heavy = {'flwr_datasets', 'datasets', 'pandas', 'pyarrow', 'sklearn', 'scipy'}\n"
        "print(heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
