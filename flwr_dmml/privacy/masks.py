"""Sums that hide their parts: each pair of senders adds and takes away one and the same mask."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..base.libraries import needed

BITS = 20
"""Binary places of a number behind the point."""
PURPOSE = b"flwr-dmml sum 1 "


class MaskError(ValueError):
    """A vector that cannot be masked: its numbers are too large."""


def new_key() -> tuple[bytes, bytes]:
    """Return a private key, of the operating system's random numbers, and the public one (X25519).

    Raises
    ------
    LibraryError
        The library cryptography is missing or does not load.
    """
    with needed("cryptography"):
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


@lru_cache(maxsize=4096)
def _shared(private: bytes, public: bytes) -> bytes:
    """Return the secret that two devices share (Diffie and Hellman)."""
    with needed("cryptography"):
        from cryptography.hazmat.primitives.asymmetric.x25519 import (
            X25519PrivateKey,
            X25519PublicKey,
        )
    own, other = X25519PrivateKey.from_private_bytes(private), X25519PublicKey
    return own.exchange(other.from_public_bytes(public))


def pair_mask(private: bytes, public: bytes, what: str, length: int) -> NDArray[np.uint32]:
    """Return the mask that two devices, and nobody else, know: ``[length]``, uniform.

    HKDF-SHA256 of their shared secret, and ChaCha20 of that.

    Parameters
    ----------
    private, public : bytes
        The own key, and the other device's.
    what : str
        What it is for: a mask is used once.
    length : int
        Of the vector.
    """
    with needed("cryptography"):
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    key = HKDF(SHA256(), 32, None, PURPOSE + what.encode()).derive(_shared(private, public))
    stream = Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(bytes(4 * length))
    return np.frombuffer(stream, "<u4").astype(np.uint32)


def masked(
    x: Tensor, share: float, me: int, partners: Mapping[int, bytes], private: bytes, what: str
) -> Tensor:
    """Return a device's part of a sum: ``2^20 share x``, rounded, and the masks, modulo 2^32.

    It adds the masks that it has with those above it, and takes away those with those below.

    Parameters
    ----------
    x : Tensor
        ``[length]`` float32, finite.
    share : float
        The weight of x in the sum.
    me : int
        Partition id.
    partners : mapping of int to bytes
        Public keys of the others whose parts are added, at least one, by partition id.
    private : bytes
        The own key.
    what : str
        Receiver, round and block: see :func:`pair_mask`.

    Returns
    -------
    Tensor
        ``[length]`` int32.

    Raises
    ------
    MaskError
        The sum might not fit into 32 bits.

    References
    ----------
    Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS
    2017, without its recovery of who drops out: the receiver then does without the sum.
    """
    whole = (x.double() * share * 2.0**BITS).round()
    most = 2.0**31 / (len(partners) + 1)
    if len(whole) and not float(whole.abs().max()) < most:
        raise MaskError(
            f"a number of {float(x.abs().max()):g} is too large for a secure sum; allowed: below "
            f"{most / share / 2**BITS:g}"
        )
    found = whole.long().numpy().astype(np.uint32)
    for other, public in partners.items():
        mask = pair_mask(private, public, what, len(found))
        found = found + mask if other > me else found - mask
    return torch.from_numpy(found.view(np.int32))


def is_part(x: Tensor, length: int) -> bool:
    """Return whether something received can be a part of a sum of vectors of this length."""
    return x.dtype == torch.int32 and x.shape == (length,)


def summed(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of all parts ``[length]`` int32, as float32: the masks cancel exactly."""
    total = np.zeros(len(parts[0]), np.uint32)
    for part in parts:
        total = total + part.numpy().view(np.uint32)
    return torch.from_numpy(total.view(np.int32) / 2.0**BITS).float()
