"""How payloads travel between neighbours."""

from .relay import Relay, size_bytes

__all__ = ["Relay", "size_bytes"]
