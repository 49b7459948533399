import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=0.0,
        help="Seconds for each fuzz test; by default each tries a fixed, small number of inputs.",
    )
