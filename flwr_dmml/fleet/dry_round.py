"""One round of this device by itself: ``python -m flwr_dmml.fleet.dry_round NODE_CONFIG``."""

import json
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from ..base.errors import UserError
from .status_app.client_app import describe_data

OF_A_DEVICE = "device", "torch-threads"
"""Settings of its node config that the round has, too."""


class DryRoundError(UserError):
    """What this device could not do in a run."""


def dry_round(node_config: Mapping[str, str | int]) -> None:
    """Look at the device's data, and train two devices on built-in ones for a round.

    Nothing is left of it.

    Raises
    ------
    DryRoundError
        Its data cannot be used, or a device has failed in the round.
    UserError
        The round cannot be run.
    """
    from ..api.simulating import simulate

    if problem := describe_data(node_config).get("problem"):
        raise DryRoundError(problem)
    settings: dict[str, Any] = {key: node_config[key] for key in OF_A_DEVICE if key in node_config}
    settings |= {"dataset": "digits", "num_nodes": 2, "num_server_rounds": 1, "local_iterations": 1}
    with tempfile.TemporaryDirectory() as folder:
        run = simulate(workers=0, progress=False, run_dir=folder, **settings)
        if run.problems:
            raise DryRoundError("; ".join(run.problems))


if __name__ == "__main__":
    try:
        dry_round(json.loads(sys.argv[1]))
    except UserError as error:
        sys.exit(f"Error: {error}")
