import math

import pytest
import torch

from flwr_dmml.base.seeding import torch_generator
from flwr_dmml.data import add_noise, log_mel, place
from flwr_dmml.data.reading.audio import unit_variance


@pytest.mark.parametrize(("snr_db", "power"), [(0.0, 1.0), (10.0, 0.1), (-6.0206, 4.0)])
def test_noise_power_at_a_set_snr(snr_db, power):
    """-6.0206 dB is 20 log10(1/2): noise of twice the signal's deviation, four times its power.

    The power of 400,000 draws has a relative deviation of sqrt(2/400000) = 0.22 %; 1 % is 4.5 of
    them.
    """
    noise = add_noise(torch.zeros(50, 8000), snr_db, torch_generator(0, "noise"))
    assert noise.pow(2).mean().item() == pytest.approx(power, rel=0.01)
    assert abs(noise.mean().item()) < 0.01 * math.sqrt(power)


def test_noise_is_white():
    """A flat spectrum: each quarter of the band holds a quarter of the power."""
    noise = add_noise(torch.zeros(50, 8000), 0.0, torch_generator(0, "noise"))
    power = torch.fft.rfft(noise).abs().pow(2)[:, 1:4001].reshape(50, 4, 1000).mean(dim=(0, 2))
    assert torch.allclose(power / power.mean(), torch.ones(4), atol=0.02)


def test_two_ratios_give_the_same_noise_at_two_volumes():
    silence = torch.zeros(2, 100)
    loud = add_noise(silence, 0.0, torch_generator(3))
    assert torch.allclose(add_noise(silence, 20.0, torch_generator(3)), loud / 10)


def test_log_mel_shape_and_standardisation():
    waves = torch.randn(3, 8000, generator=torch_generator(0))
    features = log_mel(waves)
    assert features.shape == (3, 1, 32, 63) and features.dtype == torch.float32  # 8000 // 128 + 1
    assert torch.allclose(features.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(features.std(dim=(1, 2, 3), correction=0), torch.ones(3), atol=1e-4)


@pytest.mark.parametrize(("frequency_hz", "band"), [(500, 8), (1000, 14), (3000, 28)])
def test_a_tone_peaks_in_its_mel_band(frequency_hz, band):
    """Band k is centred on (k+1) m/33 mel where m is the mel of 4000 Hz.

    mel(f) = 2595 log10(1 + f/700), so m = 2146.06 and the spacing is 65.03 mel.
    500 Hz = 607.4 mel = 9.34 spacings: nearest centre 9, band 8. 1000 Hz = 1000.0 mel = 15.38:
    centre 15, band 14. 3000 Hz = 1876.6 mel = 28.86: centre 29, band 28.
    """
    time_s = torch.arange(8000) / 8000
    features = log_mel(torch.sin(2 * math.pi * frequency_hz * time_s)[None])
    assert features[0, 0].mean(dim=1).argmax().item() == band


def test_features_do_not_depend_on_the_batch():
    waves = torch.randn(450, 1000, generator=torch_generator(1))  # more than two chunks
    features = log_mel(waves)
    assert torch.equal(features[449:], log_mel(waves[449:]))


def test_silence_stays_near_zero():
    assert log_mel(torch.zeros(1, 2000)).abs().max() < 0.01
    assert unit_variance(torch.full((500,), 0.1)).abs().max() < 0.1


def test_unit_variance():
    """[1, 3] has mean 2 and deviation 1."""
    assert torch.allclose(unit_variance(torch.tensor([1.0, 3.0])), torch.tensor([-1.0, 1.0]))


def test_place_reaches_every_offset_and_keeps_the_recording():
    generator = torch_generator(0)
    placed = {tuple(place(torch.tensor([1.0, 2.0]), 4, generator).tolist()) for _ in range(100)}
    assert placed == {(1.0, 2.0, 0.0, 0.0), (0.0, 1.0, 2.0, 0.0), (0.0, 0.0, 1.0, 2.0)}


def test_place_crops_a_longer_recording():
    generator = torch_generator(0)
    placed = {tuple(place(torch.arange(4.0), 2, generator).tolist()) for _ in range(100)}
    assert placed == {(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)}
    assert place(torch.arange(4.0), 4, generator).tolist() == [0.0, 1.0, 2.0, 3.0]
