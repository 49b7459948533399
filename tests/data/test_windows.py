import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.data import DataError
from flwr_dmml.data.options import SeriesOptions
from flwr_dmml.data.reading.windows import Recording, Windowing, cut, resample, runs, stretches


def recording(times, labels, values=None) -> Recording:
    """Return a recording whose channels are time and label, or ``values``."""
    times, labels = np.asarray(times, dtype=float), np.asarray(labels, dtype=np.int64)
    columns = np.stack([times, labels], axis=1) if values is None else np.asarray(values, float)
    return Recording(times, columns.reshape(len(times), -1), labels)


# Resampling


def test_values_between_rows_lie_on_the_line_between_them():
    """At 0.1, 0.3, 0.5 of (0, 0), (0.2, 2), (0.6, 10): 1, 2 + 0.1/0.4 * 8 = 4, 2 + 0.3/0.4 * 8."""
    values, gaps = resample(
        np.array([0.0, 0.2, 0.6]), np.array([[0.0], [2.0], [10.0]]), np.array([0.1, 0.3, 0.5])
    )
    np.testing.assert_allclose(values[:, 0], [1, 4, 8])
    np.testing.assert_allclose(gaps, [0.2, 0.4, 0.4])


def test_rows_of_the_same_time_count_as_their_mean():
    """At 1 the mean of 2, 4 and 9 is 5; at 0.5 and 1.5 half way to 1 and to 7."""
    values, _ = resample(
        np.array([0.0, 1, 1, 1, 2]), np.array([[1.0], [2], [4], [9], [7]]), np.array([0.5, 1, 1.5])
    )
    np.testing.assert_allclose(values[:, 0], [3, 5, 6])


def test_a_row_is_in_no_gap_and_the_ends_are_held():
    values, gaps = resample(
        np.array([1.0, 3.0]), np.array([[5.0], [9.0]]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    )
    np.testing.assert_allclose(values[:, 0], [5, 5, 7, 9, 9])
    np.testing.assert_allclose(gaps, [0, 0, 2, 0, 0])


def test_channels_do_not_mix():
    values, _ = resample(np.array([0.0, 1.0]), np.array([[0.0, 8.0], [4.0, 0.0]]), np.array([0.25]))
    np.testing.assert_allclose(values, [[1, 6]])


# Stretches


def test_runs_are_as_long_as_can_be():
    assert runs(np.array([3, 3, 1, 3])) == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert runs(np.array([], dtype=np.int64)) == []


def test_a_stretch_is_what_both_devices_have_of_an_activity():
    """The first has 0 until 2 and 1 from 3 on, the second 0 from 1 to 4 and 1 from 5 to 6."""
    first = recording([0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 1, 1, 1, 1])
    second = recording([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 1])
    found = [(s.label, s.start, s.end, s.rows) for s in stretches([first, second])]
    assert found == [
        (0, 1, 2, (slice(0, 3), slice(0, 4))),
        (1, 5, 6, (slice(3, 8), slice(4, 6))),
    ]


def test_what_devices_do_not_agree_on_is_no_stretch():
    assert stretches([recording([0, 1], [0, 0]), recording([0, 1], [1, 1])]) == []
    assert stretches([recording([0, 1], [0, 0]), recording([2, 3], [0, 0])]) == []


# Windows


def test_windows_by_hand():
    """4 rows a second for 2 s at 2 Hz: samples at 0, 0.5, ..., 2; windows of 3, one apart."""
    (values,), labels, _ = cut(
        [recording(np.arange(9) / 4, [7] * 9)], Windowing(3, 1, rate_hz=2.0, max_gap_s=1.0)
    )
    assert values[:, 0].tolist() == [[0, 0.5, 1], [0.5, 1, 1.5], [1, 1.5, 2]]
    assert labels.tolist() == [7, 7, 7]


def test_a_window_starts_anew_after_a_change():
    """Label 0 lasts from 0 to 1.2, label 1 from 1.3 to 3: samples at 0, 1 and 1.3, 2.3."""
    times = np.arange(31) / 10
    (values,), labels, _ = cut(
        [recording(times, [0] * 13 + [1] * 18)], Windowing(2, 2, rate_hz=1.0, max_gap_s=1.0)
    )
    np.testing.assert_allclose(values[:, 0], [[0, 1], [1.3, 2.3]])
    np.testing.assert_allclose(values[:, 1], [[0, 0], [1, 1]])
    assert labels.tolist() == [0, 1]


def test_a_window_over_a_gap_is_dropped_on_all_devices():
    """No rows between 1.1 and 1.9: samples at 1.25, 1.5 and 1.75 are in the gap."""
    times = np.concatenate([np.arange(12) / 10, np.arange(19, 41) / 10])
    whole = np.arange(41) / 10
    pair = [recording(times, [0] * len(times)), recording(whole, [0] * len(whole))]
    windowing = Windowing(2, 2, rate_hz=4.0, max_gap_s=0.5)
    (first, second), labels, _ = cut(pair, windowing)
    starts = [0, 0.5, 2, 2.5, 3, 3.5]
    np.testing.assert_allclose(first[:, 0, 0], starts)
    np.testing.assert_allclose(second[:, 0, 0], starts)
    assert len(labels) == 6
    assert len(cut(pair, Windowing(2, 2, rate_hz=4.0, max_gap_s=0.9))[1]) == 8


def test_devices_are_paired_by_time():
    """The second started 0.35 s later, at another rate: both are cut from 0.35 on."""
    first = recording(np.arange(40) / 10, [2] * 40)
    second = recording(0.35 + np.arange(100) / 25, [2] * 100)
    (one, other), labels, _ = cut([first, second], Windowing(10, 5, rate_hz=10.0, max_gap_s=0.2))
    np.testing.assert_allclose(one, other, atol=1e-9)
    np.testing.assert_allclose(one[:, 0, 0], 0.35 + 0.5 * np.arange(len(labels)))
    assert one[-1, 0, -1] <= 3.9


def test_nothing_long_enough_is_no_window_but_keeps_the_shape():
    (values,), labels, _ = cut([recording([0, 1], [0, 0])], Windowing(9, 1, 5.0, 2.0))
    assert values.shape == (0, 2, 9) and labels.shape == (0,)


def test_options_become_whole_samples():
    """2.56 s at 50 Hz are 128 samples; half of 25 is rounded to 12."""
    usual = Windowing.of(SeriesOptions(), 0.1, 2.56)
    assert usual == Windowing(128, 64, 50.0, 0.1) and usual.length_s == 2.56
    assert Windowing.of(SeriesOptions(window_s=0.5), 0.1, 2.56) == Windowing(25, 12, 50.0, 0.1)
    assert Windowing.of(SeriesOptions(window_s=0.1, overlap=0.99), 0.1, 2.56).hop == 1
    with pytest.raises(DataError, match=r"series\.window-s = 0\.02 at series\.rate-hz = 50 is 1"):
        Windowing.of(SeriesOptions(window_s=0.02), 0.1, 2.56)


@st.composite
def recordings(draw):
    """Return one recording with timestamps that jitter, repeat and have gaps, in ms as a device."""
    steps = draw(st.lists(st.sampled_from([0, 0, 5, 9, 10, 11, 30, 400]), max_size=120))
    times = np.cumsum([0, *steps]) / 1000
    changes = draw(st.lists(st.integers(0, len(times)), max_size=4))
    labels = np.zeros(len(times), dtype=np.int64)
    for at in changes:
        labels[at:] += 1
    return recording(times, labels)


@given(
    st.lists(recordings(), min_size=1, max_size=3),
    st.integers(2, 12),
    st.integers(1, 12),
    st.sampled_from([20.0, 50.0, 130.0]),
)
def test_windows_are_of_one_activity_on_a_grid_of_time_and_never_over_a_gap(
    devices, steps, hop, rate_hz
):
    """The channels are time and label: a line and a constant, which resampling must keep."""
    windowing = Windowing(steps, hop, rate_hz, max_gap_s=0.1)
    parts, labels, _ = cut(devices, windowing)
    starts = parts[0][:, 0, :1]
    for device, values in zip(devices, parts, strict=True):
        assert values.shape == (len(labels), 2, steps)
        np.testing.assert_allclose(values[:, 0], starts + np.arange(steps) / rate_hz, atol=1e-6)
        np.testing.assert_array_equal(
            values[:, 1], np.broadcast_to(labels[:, None], values[:, 1].shape)
        )
        before, after = device.times[:-1], device.times[1:]
        long = after - before > 0.1 + 1e-9
        samples = values[:, 0].reshape(-1, 1)
        inside = (before[long] + 1e-6 < samples) & (samples < after[long] - 1e-6)
        assert not inside.any()
        assert (samples > device.times[0] - 1e-6).all()
        assert (samples < device.times[-1] + 1e-6).all()


@given(recordings(), st.integers(2, 12), st.integers(1, 12))
def test_without_gaps_as_many_windows_as_fit(device, steps, hop):
    _, labels, _ = cut([device], Windowing(steps, hop, 50.0, max_gap_s=1.0))
    expected = []
    for run in runs(device.labels):
        milliseconds = round(1000 * (device.times[run.stop - 1] - device.times[run.start]))
        samples = milliseconds // 20 + 1
        count = max(0, (samples - steps) // hop + 1)
        expected += [int(device.labels[run.start])] * count
    assert labels.tolist() == expected
