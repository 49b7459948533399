"""Flower's SuperExec with shorter waits: ``python -m flwr_dmml.supernode.superexec ARGUMENTS``."""

import sys

from ..base.programs import program
from ..base.waits import quicken


def main() -> None:
    """Run ``flower-superexec`` in this process."""
    run = program("flower-superexec")
    quicken("SuperExec")
    sys.argv[0] = "flower-superexec"
    run()


if __name__ == "__main__":
    main()
