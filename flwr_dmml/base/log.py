"""The log of a run: Flower's logger, found by name, so that modules that log do not need Flower."""

from logging import getLogger

log = getLogger("flwr").log
