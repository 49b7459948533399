"""How a run was started, as ``run.json`` tells it."""

import pytest
from pydantic import ValidationError

from flwr_dmml.report.lines import RunInfo


@pytest.mark.parametrize("command", ["\n", " ", '"', "flwr-dmml 'x"])
def test_a_command_that_no_shell_could_run_is_refused(command: str) -> None:
    with pytest.raises(ValidationError, match="command"):
        RunInfo(command=command)


@pytest.mark.parametrize("command", [None, "", "flwr-dmml simulate 'my app'"])
def test_any_other_is_kept(command: str | None) -> None:
    assert RunInfo(command=command).command == command
