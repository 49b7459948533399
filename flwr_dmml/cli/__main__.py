"""``python -m flwr_dmml.cli``."""

from . import main

main()
