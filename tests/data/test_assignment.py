from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.data import DataError, assign_modalities

AVAILABLE = ("audio", "image")


def assign(num_nodes=6, **keys):
    return assign_modalities(num_nodes, available=AVAILABLE, seed=keys.pop("seed", 0), **keys)


def test_a_pattern_is_repeated():
    assert assign(5, pattern="audio, image ,image+audio") == [
        ("audio",),
        ("image",),
        ("audio", "image"),
        ("audio",),
        ("image",),
    ]


def test_shares_are_rounded_by_largest_remainder():
    """7 nodes: 0.5 is 3.5, 0.3 is 2.1, 0.2 is 1.4. Floors 3, 2, 1 leave one node, for 0.5."""
    owned = assign(7, shares="audio=0.5,image=0.3,audio+image=0.2")
    assert Counter(owned) == {("audio",): 4, ("image",): 2, ("audio", "image"): 1}


def test_exact_shares_are_kept_in_spite_of_rounding_errors():
    """In floating point 0.7 * 10 and 0.1 * 30 are not 7 and 3."""
    assert Counter(assign(10, shares="audio=0.7,image=0.3"))[("audio",)] == 7
    assert Counter(assign(30, shares="audio=0.1,image=0.9"))[("audio",)] == 3


def test_shares_are_shuffled_by_the_seed():
    orders = [assign(12, shares="audio=0.5,image=0.5", seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len({*orders[0][:6]}) == 2


def test_a_share_of_zero_has_no_node():
    assert set(assign(shares="audio=0,image=1")) == {("image",)}


@given(st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any), st.integers(1, 50))
def test_every_count_is_a_quota_rounded_up_or_down(weights, num_nodes):
    shares = [weight / sum(weights) for weight in weights]
    sets = ("audio", "image", "audio+image")
    text = ",".join(f"{name}={share!r}" for name, share in zip(sets, shares, strict=True))
    counts = Counter("+".join(owned) for owned in assign(num_nodes, shares=text))
    assert sum(counts.values()) == num_nodes
    for name, share in zip(sets, shares, strict=True):
        assert abs(counts[name] - share * num_nodes) < 1 + 1e-6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "exactly one of modality-pattern and modality-shares"),
        ({"pattern": "audio", "shares": "audio=1"}, "exactly one of"),
        ({"pattern": "audio,radar"}, "modality-pattern: 'audio,radar' .*unknown modality 'radar'"),
        ({"pattern": "audio,,image"}, "modality-pattern: 'audio,,image' has an empty item"),
        ({"pattern": "audio+"}, "modality-pattern: 'audio\\+' has an empty item"),
        ({"pattern": "audio+audio"}, "names 'audio' twice in 'audio\\+audio'"),
        ({"shares": "audio=0.5,radar=0.5"}, "modality-shares: .*unknown modality 'radar'"),
        ({"shares": "audio=half,image=0.5"}, "modality-shares: .* 0 to 1 in 'audio=half'"),
        ({"shares": "audio,image=1"}, "a share from 0 to 1 in 'audio'"),
        ({"shares": "audio=-0.5,image=1.5"}, "a share from 0 to 1 in 'audio=-0.5'"),
        ({"shares": "audio=nan,image=1"}, "a share from 0 to 1 in 'audio=nan'"),
        ({"shares": "audio=0.5,image=0.4"}, "modality-shares: .* shares of sum 0.9"),
        ({"shares": "audio+image=0.5,image+audio=0.5"}, "gives the set 'image\\+audio' twice"),
        ({"shares": "audio=0.5,image=0.5,"}, "modality-shares: .* has an empty item"),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(keys, message):
    with pytest.raises(DataError, match=message) as caught:
        assign(**keys)
    if "exactly" not in message:
        assert str(caught.value).endswith("of the modalities audio, image")
