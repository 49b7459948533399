"""Whatever a neighbour sends instead of a letter, or asks."""

import pytest
import torch
from fuzzing import fuzz

from flwr_dmml.payload.limits import Limits
from flwr_dmml.transport.letter import (
    FRAME,
    MAGIC,
    VERSION,
    Letter,
    LetterError,
    _digest,
    read_letter,
    write_letter,
)

ANSWERS = pytest.importorskip("flwr_dmml.transport.direct.answers", exc_type=ImportError)
LETTERS = [
    write_letter(Letter("7", 3, 12, tensors))
    for tensors in (
        {"encoder.audio": torch.linspace(-1, 1, 20), "head@2": torch.ones(3)},
        {"head": torch.ones(3, dtype=torch.int8), "head#scale": torch.ones(1)},
        {"stats.x": torch.zeros(0, 3), "stats.has": torch.tensor([True]), "head<1": torch.ones(3)},
    )
]
LIMITS = Limits({"encoder.audio": 20, "head": 3}, copies=4, statistics=100)
BETWEEN = b"\n\n"
"""Between header and tensors of a letter that is to get the frame that goes with them."""


def framed(data: bytes) -> bytes:
    """Return a letter with a right frame and digest around any header and tensors."""
    header, _, body = data.partition(BETWEEN)
    letter = FRAME.pack(MAGIC, VERSION, len(header)) + header + body
    return letter + _digest(letter)


def unframed(letter: bytes) -> bytes:
    start = FRAME.size + FRAME.unpack_from(letter)[2]
    return letter[FRAME.size : start] + BETWEEN + letter[start:-16]


def test_bytes_of_a_letter(pytestconfig: pytest.Config) -> None:
    fuzz(read_letter, (LetterError,), LETTERS, pytestconfig)


@pytest.mark.parametrize("limits", [None, LIMITS], ids=["any", "limits"])
def test_headers_and_tensors(limits: Limits | None, pytestconfig: pytest.Config) -> None:
    def read(data: bytes) -> None:
        letter = read_letter(framed(data), limits)
        for name, tensor in letter.tensors.items():
            assert name.isprintable() and tensor.ndim <= 8
            if limits:
                assert limits.problem(name, tensor.nbytes) is None

    fuzz(read, (LetterError,), [unframed(letter) for letter in LETTERS], pytestconfig, memory_mb=50)


def test_questions(pytestconfig: pytest.Config) -> None:
    def read(data: bytes) -> None:
        question = ANSWERS.Question.read(data.decode("latin1"))
        assert 0 <= question.wait_s <= 3600 and question.by < 100_000 and question.limit >= 0
        assert ANSWERS.Question.read(question.at("dmml/7/1")).server_round == question.server_round

    questions = [ANSWERS.Question(3, 1, 30.0, 1 << 20), ANSWERS.Question(3, 1)]
    examples = [question.at("dmml/7/1").encode() for question in questions]
    fuzz(read, (LetterError,), examples, pytestconfig)


def test_refusals(pytestconfig: pytest.Config) -> None:
    def read(data: bytes) -> None:
        words = ANSWERS.read_refusal(data)
        assert len(words) <= 200 and words.isprintable()

    example = ANSWERS.REFUSAL + "has no letter of round 2, the last is 5 …".encode()
    fuzz(read, (), [example], pytestconfig)
