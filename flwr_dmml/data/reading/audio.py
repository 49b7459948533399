"""From waves to log-mel features, and the noise and placement that make them harder."""

import torch

from ...base.libraries import needed
from ..forms import RawSound

SAMPLE_RATE_HZ, MELS, WINDOW, HOP = 8000, 32, 256, 128
FLOOR = 1e-4
"""Added to the power of a mel band before its logarithm."""
SILENT = 1e-3
"""Least deviation that a spectrogram is divided by."""
_CHUNK = 200  # waves transformed at once: bounds the memory of the spectrogram


def log_mel(
    waves: torch.Tensor,
    sample_rate: int = SAMPLE_RATE_HZ,
    n_mels: int = MELS,
    n_fft: int = WINDOW,
    hop: int = HOP,
) -> torch.Tensor:
    """Return the log-mel spectrogram of each wave, standardised per sample.

    ``log(power + FLOOR)``, then zero mean and unit variance over the bands and frames of a sample.

    Parameters
    ----------
    waves : torch.Tensor
        ``[n, T]`` float32.
    sample_rate : int
        In Hz.
    n_mels, n_fft, hop : int
        Mel bands, window length and hop in samples.

    Returns
    -------
    torch.Tensor
        ``[n, 1, n_mels, T // hop + 1]`` float32.
    """
    with needed("torchaudio"):
        import torchaudio
    transform = torchaudio.transforms.MelSpectrogram(
        sample_rate=sample_rate, n_fft=n_fft, hop_length=hop, n_mels=n_mels
    )
    features = torch.empty(len(waves), 1, n_mels, waves.shape[1] // hop + 1)
    for start in range(0, len(waves), _CHUNK):
        mel = torch.log(transform(waves[start : start + _CHUNK]) + FLOOR)  # [chunk, n_mels, frames]
        mean = mel.mean(dim=(1, 2), keepdim=True)
        deviation = mel.std(dim=(1, 2), keepdim=True, correction=0)
        features[start : start + _CHUNK, 0] = (mel - mean) / deviation.clamp_min(SILENT)
    return features


def sound_at_8_khz(seconds: float, snr_db: float) -> RawSound:
    """Return what :func:`log_mel` is given with its defaults: sound at :data:`SAMPLE_RATE_HZ`.

    Parameters
    ----------
    seconds : float
        Its length.
    snr_db : float
        Signal-to-noise ratio of the noise that is added to it, dB.
    """
    per_ms = SAMPLE_RATE_HZ / 1000
    return RawSound(
        rate_hz=SAMPLE_RATE_HZ,
        seconds=seconds,
        mels=MELS,
        window_ms=WINDOW / per_ms,
        hop_ms=HOP / per_ms,
        noise_snr_db=snr_db,
    )


def noise_deviation(snr_db: float) -> float:
    """Return the standard deviation of noise ``snr_db`` dB below a signal of unit variance."""
    return float(10 ** (-snr_db / 20))


def add_noise(waves: torch.Tensor, snr_db: float, generator: torch.Generator) -> torch.Tensor:
    """Return ``waves`` with white Gaussian noise, at ``snr_db`` for a signal of unit variance.

    Parameters
    ----------
    waves : torch.Tensor
        ``[..., T]`` float32.
    snr_db : float
        Signal-to-noise ratio in dB: the noise has standard deviation ``10^(-snr_db/20)``. The
        draws do not depend on it, so two ratios give the same noise at two volumes.
    generator : torch.Generator
        Source of the noise.
    """
    return waves + noise_deviation(snr_db) * torch.randn(waves.shape, generator=generator)


def unit_variance(wave: torch.Tensor) -> torch.Tensor:
    """Return ``wave``, ``[T]``, with zero mean and unit variance (zeros if it is constant)."""
    centred = wave - wave.mean()
    return centred / centred.std(correction=0).clamp_min(1e-6)


def place(recording: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``recording`` at a random offset in ``length`` zeros, or cropped at random if longer.

    Parameters
    ----------
    recording : torch.Tensor
        ``[T]``.
    length : int
        Samples of the result, at least 1.
    generator : torch.Generator
        Source of the offset, uniform over all that fit.

    Returns
    -------
    torch.Tensor
        ``[length]``.
    """
    spare = length - len(recording)
    offset = int(torch.randint(abs(spare) + 1, (), generator=generator))
    if spare < 0:
        return recording[offset : offset + length]
    return torch.nn.functional.pad(recording, (offset, spare - offset))
