"""What a device prints: its unit's journal, or the file that its start.sh prints to."""

import os
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ..base.text import escaped
from .config import Fleet, FleetError
from .remote import Remote
from .scripts import LOG, unit_of

MOST = 4000
"""Characters of a line that are shown."""
COMMAND = """\
if systemctl cat {unit} >/dev/null 2>&1; then
  exec journalctl --no-pager --unit {unit} --lines {lines} {journal_follow}
fi
file=$(cat {log}) || exit
[ -f "$file" ] || {{ echo "there is no unit {unit}, and start.sh prints to no file" >&2; exit 1; }}
exec tail -n {lines} {tail_follow} -- "$file"
"""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def read_log(
    fleet: Fleet, name: str, remote: Remote, lines: int, *, follow: bool = False
) -> Iterator[str]:
    """Yield the last lines of a device's log, without colours, control characters escaped.

    Parameters
    ----------
    fleet : Fleet
        The fleet.
    name : str
        The device's.
    remote : Remote
        Runs commands on it.
    lines : int, >= 1
        How many.
    follow : bool (default: False)
        Whether to go on with what is printed from now on.

    Raises
    ------
    FleetError
        There is no such device, or its log cannot be read.
    """
    (device,) = fleet.called([name])
    command = COMMAND.format(
        unit=shlex.quote(unit_of(fleet, device)),
        log=shlex.quote(f"{fleet.folder_of(device)}/{LOG}"),
        lines=lines,
        journal_follow="--follow" if follow else "",
        tail_follow="-F" if follow else "",
    )
    read, write = os.pipe()

    def run() -> str:
        with os.fdopen(write, "wb") as into:
            return remote(device, command, into=into)

    with os.fdopen(read, encoding="utf-8", errors="replace", newline="\n") as said:
        pool = ThreadPoolExecutor(1)
        problem = pool.submit(run)
        pool.shutdown(wait=False)
        while line := said.readline(MOST):
            yield escaped(_COLOUR.sub("", line.removesuffix("\n")).expandtabs())
        if why := problem.result():
            raise FleetError(f"{name}: {why}")
