"""Telephone keypad tones: dual-tone multi-frequency signals (ITU-T Recommendation Q.23)."""

import math

import torch

from ..reading.audio import SAMPLE_RATE_HZ

_ROWS_HZ = (697.0, 770.0, 852.0, 941.0)
_COLUMNS_HZ = (1209.0, 1336.0, 1477.0)

WINDOW_S = 0.25

KEY_FREQUENCIES_HZ: tuple[tuple[float, float], ...] = (
    (_ROWS_HZ[3], _COLUMNS_HZ[1]),  # 0 stands below 8
    *((row, column) for row in _ROWS_HZ[:3] for column in _COLUMNS_HZ),  # 1 to 9
)
"""The low and the high frequency of the keys 0 to 9, in Hz."""


def dtmf_tones(
    digits: torch.Tensor,
    generator: torch.Generator,
    *,
    window_s: float = WINDOW_S,
    duration_s: tuple[float, float] = (0.04, 0.1),
    gain_db: tuple[float, float] = (-12.0, 0.0),
    twist_db: float = 4.0,
    sample_rate: int = SAMPLE_RATE_HZ,
) -> torch.Tensor:
    """Return one key press per digit, each somewhere in a window of silence.

    Every press has its own length, offset, gain, twist and pair of phases, all uniform.

    Parameters
    ----------
    digits : torch.Tensor
        ``[n]`` integers in 0 to 9.
    generator : torch.Generator
        Source of all that is random.
    window_s : float
        Length of the result in seconds.
    duration_s : tuple of float
        Shortest and longest tone in seconds; at most ``window_s``. Q.24 has receivers accept
        tones from about 40 ms on.
    gain_db : tuple of float
        Weakest and strongest tone, in dB relative to unit variance while it sounds.
    twist_db : float
        The high component is up to this much stronger or weaker than the low one, in dB.
    sample_rate : int
        In Hz.

    Returns
    -------
    torch.Tensor
        ``[n, round(window_s * sample_rate)]`` float32.

    References
    ----------
    ITU-T Recommendations Q.23 (frequencies) and Q.24 (reception); ranges: this project.
    """
    draws = torch.rand(6, len(digits), 1, generator=generator, dtype=torch.float64)
    frequency_hz = torch.tensor(KEY_FREQUENCIES_HZ, dtype=torch.float64)[digits]  # [n, 2]
    time_s = torch.arange(round(window_s * sample_rate), dtype=torch.float64) / sample_rate  # [T]

    length_s = duration_s[0] + (duration_s[1] - duration_s[0]) * draws[0]  # [n, 1]
    start_s = (window_s - length_s) * draws[1]
    gain = 10 ** ((gain_db[0] + (gain_db[1] - gain_db[0]) * draws[2]) / 20)
    ratio = 10 ** (twist_db * (2 * draws[3] - 1) / 20)  # high over low amplitude
    low = gain * torch.sqrt(2 / (1 + ratio**2))  # so that (low^2 + high^2) / 2 = gain^2
    high = low * ratio

    def sine(component: int, phase: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * math.pi * (frequency_hz[:, component, None] * time_s + phase))

    sounding = (time_s >= start_s) & (time_s < start_s + length_s)  # [n, T]
    tones = (low * sine(0, draws[4]) + high * sine(1, draws[5])) * sounding
    return tones.to(torch.float32)
