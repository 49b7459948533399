"""Transports of payloads between neighbours: relayed by the coordinator, or direct; also sealed."""

from .relay import Relay, size_bytes

__all__ = ["Relay", "size_bytes"]
