"""Raw forms of inputs: what a sensor or a file gives, before it is a tensor."""

from typing import Annotated, Literal

from pydantic import Field

from ..base.options import Group
from .options import AudioOptions, ImageOptions


class RawSound(AudioOptions):
    """Sound, whose log-mel spectrogram is the input (:func:`~.reading.media.read_audio`).

    Attributes
    ----------
    noise_snr_db : float or None
        Signal-to-noise ratio of the noise that the data set adds to its sound, dB; None where it
        adds none. Nothing is added to sound that a trained model is given.
    """

    form: Literal["sound"] = "sound"
    noise_snr_db: float | None = None


class RawImage(ImageOptions):
    """A picture, whose pixels are the input (:func:`~.reading.media.read_image`).

    Attributes
    ----------
    visible : float
        Share of the rows, from the top, that is not blacked out.
    """

    form: Literal["image"] = "image"
    visible: float = Field(1.0, gt=0, le=1)


class RawNumbers(Group):
    """Numbers that are the input as they are: a vector, or a table with a row for each step.

    Attributes
    ----------
    unit : str
        Of the numbers; empty where the data do not say.
    rate_hz : float
        Steps a second, Hz; 0 where the data do not say.
    channels : tuple of str
        Names of the columns that they are in CSV files, in order; empty where these have none.
    """

    form: Literal["numbers"] = "numbers"
    unit: str = ""
    rate_hz: float = Field(0.0, ge=0)
    channels: tuple[str, ...] = Field((), strict=False)  # JSON has lists


Raw = Annotated[RawSound | RawImage | RawNumbers, Field(discriminator="form")]
