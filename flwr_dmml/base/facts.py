"""What a device knows of itself between messages: a file that each message writes anew."""

import os
from logging import WARNING
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .files import write_whole
from .log import log
from .text import one_line

FOLDER = "FLWR_DMML_RUN_DIR"
"""Variable of the environment: the folder of the file, which ``flwr-dmml fleet device`` sets."""
FILE = "facts.json"
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Amount = Annotated[float, Field(ge=0)]


class Facts(BaseModel):
    """A device's last message, and sums over all since its folder was made.

    Attributes
    ----------
    method, partition, modalities
        What it ran, and which device it is.
    round, rounds : int
        Its last round, and how many there are to be.
    loss, accuracy : float or None
        Training loss of the last round that trained, test accuracy of the last that evaluated.
    error : str
        Why the last message failed; empty if it did not.
    time_s : float
        When it ended, in seconds since 1970, UTC.
    heard : dict of int to int
        The last round in which a neighbour's payload came.
    received, sent : dict of int to int
        Bytes from neighbours and, device to device, to them.
    seconds : dict of str to float
        Of messages, by phase: ``letters`` (waiting for neighbours) and ``work``.
    joules : float
        By its own meter, as far as that was read.
    failures, rejected : int
        Messages that failed; letters and blocks that did not come or were refused.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    method: str = ""
    partition: Count = 0
    modalities: str = ""
    round: Count = 0
    rounds: Count = 0
    loss: float | None = None
    accuracy: float | None = None
    error: str = ""
    time_s: float = 0.0
    heard: dict[Count, Count] = {}
    received: dict[Count, Count] = {}
    sent: dict[Count, Count] = {}
    seconds: dict[str, Amount] = {}
    joules: Amount = 0.0
    failures: Count = 0
    rejected: Count = 0


def facts_file() -> Path | None:
    """Return where this device's facts are; None if it was not started by ``fleet device``."""
    folder = os.environ.get(FOLDER)
    return Path(folder) / FILE if folder else None


def read_facts(file: Path) -> Facts:
    """Read what is known: nothing yet, if the file is not there; a damaged one is named."""
    try:
        return Facts.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValidationError) as error:
        log(WARNING, "%s cannot be read, and begins anew: %s", file, one_line(str(error)))
    return Facts()


def write_facts(file: Path, facts: Facts) -> None:
    """Replace what is known.

    Raises
    ------
    WriteError
        It cannot be written.
    """
    write_whole(file, facts.model_dump_json(), 0o600)
