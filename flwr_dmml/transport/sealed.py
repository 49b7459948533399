"""Sealed payloads and states: only devices can read them, whoever relays or stores them.

A device's X25519 key comes from its TLS key: nothing has to be kept, and it is the same after a
restart. Its certificate signs the public half. A payload is encrypted once, under a key of its own,
and that key once for each recipient, under what the two devices share (Diffie-Hellman) and the run,
the round and both their names. Every encryption has a key that was never used before.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from torch import Tensor

from ..base.formats import parse_json
from ..payload.blocks import STATISTICS, addressed, unaddressed, without_companion
from ..payload.limits import Limits
from .direct.security import UNREADABLE, Seal
from .direct.tls import DirectError, Tls
from .letter import MAX_HEADER, Letter, LetterError, letter_bytes, read_letter, write_letter

SEALED, KEY, OWN = "sealed", "key", "own"
"""Names in a sealed payload: its ciphertext, and by recipient (``key@3``) the key to it and what is
addressed to it alone."""
KEYS, SESSION = "keys", "session"
"""The record of the neighbours' public keys in a message, and the id of the run in it."""
KEY_BYTES, SALT_BYTES = 32, 32
LENGTH = struct.Struct("<I")
PURPOSE = "flwr-dmml sealed 1"
NONCE = bytes(12)  # a key is used once


class Identity:
    """A device's own keys: announces the public one, checks those of others.

    Parameters
    ----------
    tls : Tls
        The device's files.
    partition : int
        Its partition id, as in its certificate.

    Raises
    ------
    DirectError
        If a file cannot be read, or the certificate is not one of the fleet's for this device.
    """

    def __init__(self, tls: Tls, partition: int) -> None:
        self.partition = partition
        self._seal = Seal(tls, partition)
        self._private = X25519PrivateKey.from_private_bytes(own_secret(tls.key, "payloads"))
        self.public = self._private.public_key().public_bytes_raw()
        """32 bytes."""

    def announcement(self) -> bytes:
        """Return the public key and, behind it, the proof that it is this device's."""
        return self.public + self._seal.sign(_announced(self.public, self.partition))

    def check(self, announcement: bytes, device: int) -> bytes:
        """Return the public key that a device has announced.

        Raises
        ------
        LetterError
            If it is not signed by this device of the fleet, or nothing can be encrypted with it.
        """
        public, proof = announcement[:KEY_BYTES], announcement[KEY_BYTES:]
        self._seal.check(_announced(public, device), proof, device)
        self.shared(public)
        return public

    def shared(self, public: bytes) -> bytes:
        """Return what only this device and the owner of a public key know, 32 bytes.

        Raises
        ------
        LetterError
            If it is no public key.
        """
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise LetterError(f"its public key cannot be used: {error}") from error


def seal_letter(
    letter: Letter,
    identity: Identity,
    recipients: Mapping[int, bytes],
    apart: Mapping[tuple[str, ...], Mapping[int, bytes]] | None = None,
) -> dict[str, bytes]:
    """Return a sealed payload: ciphertexts and keys by name (:data:`SEALED` and so on).

    What is addressed to one recipient (``block@3``) is encrypted for it alone, blocks that couriers
    carry for their readers (:func:`part_of`), the rest once for all.

    Parameters
    ----------
    letter : Letter
        Of this device; ``run`` is the id that all devices of the run have been told.
    identity : Identity
        This device's.
    recipients : mapping of int to bytes
        Their public keys, checked, by partition id.
    apart : mapping of tuple of str to mapping of int to bytes, optional
        By the names of blocks that are sealed together, the public keys of those who may read them.

    Raises
    ------
    LetterError
        If the letter cannot be written, or a public key is none.
    """
    about, secret = (letter.run, letter.sender, letter.server_round), os.urandom(KEY_BYTES)
    common, to_one = dict[str, Tensor](), dict[str, Tensor]()
    whose = {block: blocks for blocks in apart or {} for block in blocks}
    to_some: dict[tuple[str, ...], dict[str, Tensor]] = {blocks: {} for blocks in apart or {}}
    for name, tensor in letter.tensors.items():
        if (block := without_companion(name)) in whose:
            to_some[whose[block]][name] = tensor
            continue
        to_all = name.startswith(STATISTICS) or without_companion(name) == unaddressed(name)
        (common if to_all else to_one)[name] = tensor
    sealed = lock(secret, write_letter(Letter(*about, common)), SEALED, *about)
    parts = {SEALED: sealed}
    for recipient, public in recipients.items():
        shared = identity.shared(public)
        context = (*about, recipient, identity.public.hex(), public.hex(), _digest(sealed))
        parts[addressed(KEY, recipient)] = lock(shared, secret, KEY, *context)
        if own := {n: x for n, x in to_one.items() if _is_for(recipient, n)}:
            data = write_letter(Letter(*about, own))
            parts[addressed(OWN, recipient)] = lock(shared, data, OWN, *context)
    for blocks, readers in (apart or {}).items():
        data = write_letter(Letter(*about, to_some[blocks]))
        parts[part_of(blocks)] = _seal_apart(data, about, identity, readers)
    return parts


def part_of(blocks: Sequence[str]) -> str:
    """Return the name in a sealed payload of blocks that are sealed together, apart from others."""
    return f"{SEALED}:{blocks[0]}"


def _seal_apart(
    data: bytes, about: tuple[str, int, int], identity: Identity, readers: Mapping[int, bytes]
) -> bytes:
    """Return a ciphertext behind the keys to it: the length of these (u32), JSON, ciphertext."""
    secret = os.urandom(KEY_BYTES)
    sealed = lock(secret, data, SEALED, *about)
    keys: dict[str, str] = {}
    for reader, public in readers.items():
        context = (*about, reader, identity.public.hex(), public.hex(), _digest(sealed))
        keys[str(reader)] = lock(identity.shared(public), secret, KEY, *context).hex()
    head = json.dumps(keys).encode()
    return LENGTH.pack(len(head)) + head + sealed


def open_apart(
    part: bytes,
    identity: Identity,
    run: str,
    sender: int,
    server_round: int,
    public: bytes,
    limits: Limits | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a part (:func:`part_of`) that is for this device, near or far.

    Parameters and errors are those of :func:`open_letter`.
    """
    about, me = (run, sender, server_round), identity.partition
    check_size(len(part), limits)
    try:
        (length,) = LENGTH.unpack(part[: LENGTH.size])
        keys = parse_json(part[LENGTH.size : LENGTH.size + length])
        key = bytes.fromhex(keys[str(me)])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise LetterError("a part of its payload is not encrypted for this device") from error
    sealed = part[LENGTH.size + length :]
    context = (*about, me, public.hex(), identity.public.hex(), _digest(sealed))
    secret = unlock(identity.shared(public), key, KEY, *context)
    return dict(read_letter(unlock(secret, sealed, SEALED, *about), limits).tensors)


def open_letter(
    parts: Mapping[str, bytes],
    identity: Identity,
    run: str,
    sender: int,
    server_round: int,
    public: bytes,
    limits: Limits | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a sealed payload that are for this device.

    Parameters
    ----------
    parts : mapping of str to bytes
        As received; not trusted.
    identity : Identity
        This device's.
    run, sender, server_round : str, int and int
        What the payload has to be of.
    public : bytes
        The sender's public key, checked.
    limits : Limits, optional
        What it may hold, as in :func:`~.letter.read_letter`.

    Raises
    ------
    LetterError
        If it is damaged, too long, of another run, sender or round, or not for this device, or
        holds what it may not; it says which.
    """
    about, me = (run, sender, server_round), identity.partition
    check_size(sum(map(len, parts.values())), limits)
    if SEALED not in parts or addressed(KEY, me) not in parts:
        raise LetterError("its payload is not encrypted for this device")
    context = (*about, me, public.hex(), identity.public.hex(), _digest(parts[SEALED]))
    shared = identity.shared(public)
    secret = unlock(shared, parts[addressed(KEY, me)], KEY, *context)
    found = [unlock(secret, parts[SEALED], SEALED, *about)]
    if addressed(OWN, me) in parts:
        found.append(unlock(shared, parts[addressed(OWN, me)], OWN, *context))
    return {name: x for data in found for name, x in read_letter(data, limits).tensors.items()}


def check_size(num_bytes: int, limits: Limits | None) -> None:
    """Refuse a sealed payload that is longer than one that holds what it may.

    Raises
    ------
    LetterError
        It is.
    """
    limit = letter_bytes(limits) + MAX_HEADER  # of the keys
    if num_bytes > limit:
        raise LetterError(f"{num_bytes} bytes, allowed are {limit}")


def own_secret(key: Path, purpose: str) -> bytes:
    """Return 32 bytes that follow from a device's TLS key, others for each purpose.

    Raises
    ------
    DirectError
        If the file cannot be read, or holds a key of another kind than :class:`~.peer.Tls` allows.
    """
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, *UNREADABLE) as error:
        raise DirectError(f"TLS: {error}") from error
    # The number itself: how a key is written in a file may change with the library's version.
    if isinstance(private, ed25519.Ed25519PrivateKey):
        number = int.from_bytes(private.private_bytes_raw(), "big")
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        number = private.private_numbers().private_value
    elif isinstance(private, rsa.RSAPrivateKey):
        number = private.private_numbers().d
    else:
        raise DirectError(f"TLS: {key} is neither Ed25519 nor an elliptic curve nor RSA")
    return _derived(number.to_bytes(number.bit_length() // 8 + 1, "big"), b"", "own", purpose)


def lock(secret: bytes, data: bytes, *context: str | int) -> bytes:
    """Return data encrypted under a secret: a random salt, ciphertext, and a tag of 16 bytes.

    The key follows from the secret, the salt and the context (HKDF, RFC 5869): ChaCha20-Poly1305
    (RFC 8439) has a new key every time, and data opened in another context are refused.

    Parameters
    ----------
    secret : bytes
        At least 32, not to be guessed.
    data : bytes
        What is to be hidden.
    *context : str or int
        What it is, of whom and for whom.
    """
    salt = os.urandom(SALT_BYTES)
    return salt + ChaCha20Poly1305(_derived(secret, salt, *context)).encrypt(NONCE, data, None)


def unlock(secret: bytes, data: bytes, *context: str | int) -> bytes:
    """Return what :func:`lock` has encrypted with the same secret and context.

    Raises
    ------
    LetterError
        If it was another secret or context, or the data are not what was written.
    """
    key = _derived(secret, data[:SALT_BYTES], *context)
    try:
        return ChaCha20Poly1305(key).decrypt(NONCE, data[SALT_BYTES:], None)
    except InvalidTag as error:
        raise LetterError(
            "cannot be opened: damaged, or of another run, round, sender or recipient"
        ) from error


def _derived(secret: bytes, salt: bytes, *context: str | int) -> bytes:
    info = json.dumps([PURPOSE, *context]).encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def _announced(public: bytes, partition: int) -> bytes:
    return f"{PURPOSE} public key of device {partition}: {public.hex()}".encode()


def _is_for(recipient: int, name: str) -> bool:
    return without_companion(name) == addressed(unaddressed(name), recipient)


def _digest(data: bytes) -> str:
    return blake2b(data).hexdigest()
