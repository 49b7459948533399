"""Check of whether this machine can run the package (``flwr-dmml doctor``)."""

from .checks import Finding, examine

__all__ = ["Finding", "examine"]
