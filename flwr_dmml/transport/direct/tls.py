"""The certificate and the key that a device shows its neighbours."""

from dataclasses import dataclass
from pathlib import Path


class DirectError(RuntimeError):
    """A device cannot take part; the message says why."""


@dataclass(frozen=True)
class Tls:
    """PEM files of a device.

    Attributes
    ----------
    ca : Path
        Certificate of the fleet's authority; several may stand in the file.
    certificate : Path
        The device's, issued by it, with the common name ``device-<partition>`` and the addresses
        at which it listens as subject alternative names.
    key : Path
        The device's private key, not encrypted: Ed25519, elliptic curve or RSA.
    revoked : Path, optional
        Certificates that the authority has taken back, a revocation list signed by it (RFC 5280).
    """

    ca: Path
    certificate: Path
    key: Path
    revoked: Path | None = None
