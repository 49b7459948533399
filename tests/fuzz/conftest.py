import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=0.0,
        help="Seconds for each fuzz test, after the small, fixed number of inputs of the default.",
    )
