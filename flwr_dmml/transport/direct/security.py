"""Signatures of letters and questions, with the key of the sender's certificate.

Zenoh's TLS and access control end at the next node. The signature holds from device to device,
whatever routers are in between.
"""

import socket
import ssl
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from ...base.text import one_line
from ..letter import LetterError
from .tls import DirectError, Tls

LENGTH = struct.Struct("<H")  # of the signature, which follows it; the certificate comes last
MAX_SEAL = 1 << 14
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
UNREADABLE = (
    *(ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""What the library raises about a file or a certificate, often only when a field is asked for."""
PURPOSE = b"flwr-dmml letter 1\n"


def device_name(partition: int) -> str:
    """Return the common name in the certificate of a device."""
    return f"device-{partition}"


class Seal:
    """Signs a device's letters, and checks those of others.

    Parameters
    ----------
    tls : Tls
        The device's files.
    partition : int
        Its partition id.

    Raises
    ------
    DirectError
        If a file cannot be read, or the certificate is not one of the fleet's for this device.
    """

    def __init__(self, tls: Tls, partition: int) -> None:
        try:
            self._authorities = x509.load_pem_x509_certificates(tls.ca.read_bytes())
            self._certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
            key = load_pem_private_key(tls.key.read_bytes(), password=None)
            self._revoked = _revoked(tls.revoked, self._authorities) if tls.revoked else set()
        except (OSError, *UNREADABLE) as error:  # TypeError: the key is encrypted
            raise DirectError(f"TLS: {error}") from error
        if not isinstance(
            key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        ):
            raise DirectError(f"TLS: {tls.key} is neither Ed25519 nor an elliptic curve nor RSA")
        if key.public_key() != self._certificate.public_key():
            raise DirectError(f"TLS: {tls.key} is not the key of {tls.certificate}")
        self._key = key
        try:
            self._owner(self._certificate, partition)
        except LetterError as error:
            raise DirectError(f"TLS: {tls.certificate}: {error}") from error

    def sign(self, data: bytes) -> bytes:
        """Return the signature of a letter, with this device's certificate."""
        text = _signed(data)
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            signature = self._key.sign(text)
        elif isinstance(self._key, ec.EllipticCurvePrivateKey):
            signature = self._key.sign(text, ec.ECDSA(SHA256()))
        else:
            signature = self._key.sign(text, padding.PKCS1v15(), SHA256())
        return (
            LENGTH.pack(len(signature)) + signature + self._certificate.public_bytes(Encoding.DER)
        )

    def check(self, data: bytes, seal: bytes, device: int) -> None:
        """Check that a device of the fleet has signed a letter.

        Raises
        ------
        LetterError
            If it is not signed, or not by this device.
        """
        if not LENGTH.size < len(seal) <= MAX_SEAL:
            raise LetterError("certificate refused: it is not signed")
        end = LENGTH.size + LENGTH.unpack_from(seal)[0]
        try:
            certificate = x509.load_der_x509_certificate(seal[end:])
        except UNREADABLE as error:
            raise LetterError("certificate refused: it cannot be read") from error
        public = self._owner(certificate, device)
        signature, text = seal[LENGTH.size : end], _signed(data)
        try:
            if isinstance(public, ed25519.Ed25519PublicKey):
                public.verify(signature, text)
            elif isinstance(public, ec.EllipticCurvePublicKey):
                public.verify(signature, text, ec.ECDSA(SHA256()))
            else:
                public.verify(signature, text, padding.PKCS1v15(), SHA256())
        except (InvalidSignature, *UNREADABLE) as error:
            raise LetterError("the signature is not that of the letter") from error

    def _owner(self, certificate: x509.Certificate, device: int) -> PublicKey:
        """Return the key in a certificate that the fleet has issued to a device.

        Raises
        ------
        LetterError
            It is another's, or not valid any more.
        """
        if not any(_issued(certificate, authority) for authority in self._authorities):
            raise LetterError("certificate refused: not issued by the fleet's authority")
        try:
            serial, public = certificate.serial_number, certificate.public_key()
            first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        except UNREADABLE as error:
            raise LetterError(f"certificate refused: {one_line(str(error))}") from error
        if serial in self._revoked:
            raise LetterError("certificate refused: it is revoked")
        if not first <= datetime.now(UTC) <= last:
            raise LetterError("certificate refused: not valid today")
        found = [str(name.value) for name in names]
        if found != [device_name(device)]:
            raise LetterError(
                f"certificate refused: of {one_line(str(found))}, not '{device_name(device)}'"
            )
        if not isinstance(public, PublicKey):
            raise LetterError("certificate refused: its key is of another kind")
        return public


def why_refused(
    host: str, port: int, tls: Tls, device: int | None, alert_s: float, timeout_s: float
) -> str:
    """Return why there is no TLS connection to an address, empty if not for a certificate.

    Parameters
    ----------
    host, port : str and int
        An IPv6 address may stand in brackets.
    tls : Tls
        This device's files.
    device : int or None
        Whose certificate is expected; None for a router's.
    alert_s : float
        Seconds to wait for the other to refuse this device's certificate.
    timeout_s : float
        At most so many seconds are waited at every step.
    """
    host = host.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            subject = (secure.getpeercert() or {}).get("subject", ())
            names = [pair[1] for part in subject for pair in part if pair[0] == "commonName"]
            if device is not None and names != [device_name(device)]:
                found = one_line(str(names))
                return f"certificate refused: of {found}, not '{device_name(device)}'"
            secure.settimeout(min(alert_s, timeout_s))
            secure.recv(1)  # a refusal of our own certificate comes only after the handshake
    except ssl.SSLCertVerificationError as error:
        return f"certificate refused: {error.verify_message}"
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return f"certificate refused by the other: {error.reason}"
    except (OSError, ValueError):  # ValueError: a name that no machine can have
        return ""
    return ""


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _revoked(file: Path, authorities: Sequence[x509.Certificate]) -> set[int]:
    """Return the serial numbers in a revocation list that one of these has signed.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or nobody of them has signed it.
    """
    listed = x509.load_pem_x509_crl(file.read_bytes())
    keys = [authority.public_key() for authority in authorities]
    if not any(isinstance(k, PublicKey) and listed.is_signature_valid(k) for k in keys):
        raise ValueError(f"{file} is not signed by the fleet's authority")
    return {one.serial_number for one in listed}


def _signed(data: bytes) -> bytes:
    return PURPOSE + blake2b(data).digest()
