import pytest
import torch

from flwr_dmml.base.seeding import torch_generator
from flwr_dmml.data import KEY_FREQUENCIES_HZ, dtmf_tones

STEADY = {"duration_s": (1.0, 1.0), "window_s": 1.0, "gain_db": (0.0, 0.0), "twist_db": 0.0}

# ITU-T Q.23, table 1: rows 697, 770, 852, 941 Hz; columns 1209, 1336, 1477 Hz.
Q23 = {
    1: (697, 1209), 2: (697, 1336), 3: (697, 1477),
    4: (770, 1209), 5: (770, 1336), 6: (770, 1477),
    7: (852, 1209), 8: (852, 1336), 9: (852, 1477),
    0: (941, 1336),
}  # fmt: skip


def test_the_table_is_that_of_q23():
    assert dict(enumerate(KEY_FREQUENCIES_HZ)) == Q23


@pytest.mark.parametrize("digit", range(10))
def test_the_spectrum_has_the_two_lines_of_the_key(digit):
    """One second at 8 kHz: bin k of the FFT is k Hz. Without twist each line is a sine of
    amplitude 1, so its bin holds 8000 / 2 and all others 0.
    """
    tone = dtmf_tones(torch.tensor([digit]), torch_generator(digit), **STEADY)
    spectrum = torch.fft.rfft(tone[0].double()).abs()
    top = spectrum.topk(3)
    assert sorted(top.indices[:2].tolist()) == list(Q23[digit])
    assert top.values[:2].tolist() == pytest.approx([4000, 4000], rel=1e-4)
    assert top.values[2].item() < 0.1


def test_length_and_offset():
    """40 to 100 ms at 8 kHz are 320 to 800 samples; a window of 0.25 s has 2000."""
    tones = dtmf_tones(torch.arange(10).repeat(100), torch_generator(0))
    assert tones.shape == (1000, 2000) and tones.dtype == torch.float32
    positions = torch.arange(2000)
    sounding = tones != 0
    first = torch.where(sounding, positions, 2000).amin(dim=1)
    last = torch.where(sounding, positions, -1).amax(dim=1)
    length = last - first + 1
    assert 319 <= length.min() <= 330 and 790 <= length.max() <= 801
    assert first.min() < 50 and last.max() > 1950


def test_gain_is_the_power_while_the_tone_sounds():
    """-12 dB to 0 dB relative to unit variance, mean near -6 dB; twist leaves the sum as it is."""
    digits = torch.arange(10).repeat(40)
    tones = dtmf_tones(digits, torch_generator(0), duration_s=(0.25, 0.25))
    gain_db = 10 * tones.pow(2).mean(dim=1).log10()
    assert -12.2 < gain_db.min() < -11.5 and -0.5 < gain_db.max() < 0.2
    assert gain_db.mean().item() == pytest.approx(-6, abs=0.6)


def test_twist_is_the_ratio_of_the_two_lines():
    options = STEADY | {"twist_db": 4.0}
    tones = dtmf_tones(torch.full((200,), 5), torch_generator(0), **options)
    spectrum = torch.fft.rfft(tones).abs()
    twist_db = 20 * (spectrum[:, 1336] / spectrum[:, 770]).log10()
    assert -4.01 < twist_db.min() < -3.7 and 3.7 < twist_db.max() < 4.01
    assert tones.pow(2).mean(dim=1).tolist() == pytest.approx([1.0] * 200, abs=0.01)


def test_no_two_presses_are_alike():
    tones = dtmf_tones(torch.full((50,), 5), torch_generator(0))
    assert len(torch.unique(tones, dim=0)) == 50
