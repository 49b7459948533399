"""Certificates that no library writes: of a key whose type nobody knows."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256

from flwr_dmml.fleet.certificates import Authority
from flwr_dmml.transport.direct.security import LENGTH

ED25519, UNKNOWN = bytes.fromhex("06032b6570"), bytes.fromhex("06032b6579")
"""Object identifiers in DER: 1.3.101.112, and 1.3.101.121, which stands for nothing."""
ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


def of_an_unknown_key(common_name: str, authority: Authority) -> bytes:
    """Return such a certificate in DER, really signed by an authority."""
    known = content_of_a_certificate(common_name, authority)
    assert known.count(ED25519) == 1
    return signed(known.replace(ED25519, UNKNOWN), authority)


def content_of_a_certificate(common_name: str, authority: Authority) -> bytes:
    """Return what is signed in a certificate of an Ed25519 key, in DER."""
    issuer = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    made = (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
        .public_key(ed25519.Ed25519PrivateKey.generate().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .sign(authority.key(), SHA256())
    )
    return made.tbs_certificate_bytes


def signed(content: bytes, authority: Authority) -> bytes:
    """Return a certificate in DER of any content, with an authority's signature."""
    signature = authority.key().sign(content, ec.ECDSA(SHA256()))
    return _encoded(0x30, content + ECDSA_WITH_SHA256 + _encoded(0x03, b"\x00" + signature))


def seal_with(certificate: bytes) -> bytes:
    """Return the seal of a letter with a certificate in DER, and a signature of zeros."""
    return LENGTH.pack(64) + bytes(64) + certificate


def _encoded(tag: int, content: bytes) -> bytes:
    size = len(content)
    number = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
    length = number if size < 128 else bytes([128 + len(number)]) + number
    return bytes([tag]) + length + content
