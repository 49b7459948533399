"""The log of a run: Flower's, found by its name, so that what logs does not need Flower."""

from logging import getLogger

log = getLogger("flwr").log
