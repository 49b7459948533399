"""Provenance of a run: its command, versions, machine, and the state of the source."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("flwr-dmml", "flwr", "torch", "numpy", "cvxpy", "ray")
SCHEMA = 1


def provenance(seed: object) -> dict[str, Any]:
    """Return what goes into ``run.json``.

    Schema, time (UTC), command (:func:`command`), seed, versions, git and platform. ``git`` is that
    of the current folder: its revision, and whether tracked files were changed; None outside of a
    repository.
    """
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "seed": seed,
        "versions": versions(),
        "git": _git(),
        "platform": platform.platform(),
    }


def command(arguments: Sequence[str]) -> str | None:
    """Return the ``flwr-dmml`` command that a process was started with, for a shell.

    None of any other program: it is not known what its arguments mean, and those of Flower's
    processes hold tokens.

    Parameters
    ----------
    arguments : sequence of str
        The program and what follows it, as in ``sys.argv``.
    """
    program = Path(arguments[0]).parts
    if program[-1:] == ("flwr-dmml",) or program[-3:] == ("flwr_dmml", "cli", "__main__.py"):
        return shlex.join(["flwr-dmml", *arguments[1:]])
    return None


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found


def _git() -> dict[str, Any] | None:
    try:
        revision = _ask("rev-parse", "HEAD")
        changed = _ask("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # no git here, or no repository
        return None
    return {"revision": revision, "dirty": bool(changed)}


def _ask(*arguments: str) -> str:
    asked = ["git", *arguments]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
