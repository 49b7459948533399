"""Certificates that no library writes: of a key whose type nobody knows."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from flwr_dmml.fleet.certificates import Authority
from flwr_dmml.transport.direct.security import LENGTH

ED25519, UNKNOWN = bytes.fromhex("06032b6570"), bytes.fromhex("06032b6579")
"""Object identifiers in DER: 1.3.101.112, and 1.3.101.121, which stands for nothing."""


def of_an_unknown_key(common_name: str, authority: Authority) -> bytes:
    """Return such a certificate in DER, really signed by an authority."""
    issuer = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    key = load_pem_private_key(authority.key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    made = (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
        .public_key(ed25519.Ed25519PrivateKey.generate().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .sign(key, SHA256())
    )
    whole, old = made.public_bytes(Encoding.DER), made.tbs_certificate_bytes
    assert old.count(ED25519) == 1
    new = old.replace(ED25519, UNKNOWN)
    start = whole.index(old)
    algorithm = _element(whole[start + len(old) :])  # as it was: ECDSA with SHA-256
    signature = _encoded(0x03, b"\x00" + key.sign(new, ec.ECDSA(SHA256())))
    return _encoded(0x30, new + algorithm + signature)


def seal_with(certificate: bytes) -> bytes:
    """Return the seal of a letter with a certificate in DER, and a signature of zeros."""
    return LENGTH.pack(64) + bytes(64) + certificate


def _element(data: bytes) -> bytes:
    """Return the first element of a DER encoding, shorter than 128 bytes."""
    return data[: 2 + data[1]]


def _encoded(tag: int, content: bytes) -> bytes:
    size = len(content)
    number = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
    length = number if size < 128 else bytes([128 + len(number)]) + number
    return bytes([tag]) + length + content
