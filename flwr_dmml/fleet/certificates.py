"""The fleet's own certificate authority, what it issues and takes back, and the keys of nodes.

No key is ever printed, logged or overwritten; those that are rotated are removed.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..base.files import write_whole
from ..transport.direct.security import UNREADABLE
from .config import FleetError, as_ip

CA_DAYS = 3650
CERTIFICATE_DAYS = 730
BACKDATED = timedelta(days=1)
"""A certificate is valid from a day before it is made: boards may have no clock of their own."""
REVOKED = "revoked.crl"
"""The authority's revocation list."""
REPLACED = "replaced"
"""Folder of certificates that others with the same key have replaced: they are still good."""
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
PEER = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def own_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Return the TLS key in ``file``; it is made if it is not there.

    Raises
    ------
    FleetError
        The file holds no such key.
    """
    if not file.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        write_whole(file, _private_bytes(made, serialization.PrivateFormat.PKCS8), 0o600)
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except UNREADABLE as error:
        raise FleetError(f"{file} holds no private key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FleetError(f"{file} holds no elliptic-curve key")
    return key


def make_node_key(file: Path, comment: str) -> bool:
    """Make the key pair of a SuperNode, P-384 in OpenSSH's formats; return False if it is there.

    The public key is ``file`` with ``.pub`` behind it; it is written again where it is missing.
    """
    public = file.with_name(file.name + ".pub")
    made = not file.exists()
    if made:
        fresh = ec.generate_private_key(ec.SECP384R1())
        write_whole(file, _private_bytes(fresh, serialization.PrivateFormat.OpenSSH), 0o600)
    if made or not public.exists():
        try:
            key = serialization.load_ssh_private_key(file.read_bytes(), None)
        except UNREADABLE as error:
            raise FleetError(f"{file} holds no OpenSSH key: {error}") from error
        line = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        write_whole(public, line + f" {comment}\n".encode(), 0o644)
    return made


def _private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def read_certificate(file: Path) -> x509.Certificate:
    """Read a certificate.

    Raises
    ------
    FleetError
        There is none.
    """
    try:
        found = x509.load_pem_x509_certificate(file.read_bytes())
        # The library parses these only when asked for them.
        _ = found.public_key(), found.extensions, found.subject, found.not_valid_after_utc
    except FileNotFoundError:
        raise FleetError(f"{file} is missing: run flwr-dmml fleet init") from None
    except (OSError, *UNREADABLE) as error:
        raise FleetError(f"{file} holds no certificate: {error}") from error
    return found


def days_left(certificate: x509.Certificate) -> int:
    """Return for how many whole days a certificate is still valid; negative: it is not."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).days


@dataclass(frozen=True)
class Wanted:
    """Contents that a certificate must have.

    Attributes
    ----------
    common_name : str
        Whose it is.
    addresses : tuple of str
        IP addresses and host names under which its owner is reached.
    usages : tuple of ObjectIdentifier
        Server, or client as well.
    """

    common_name: str
    addresses: tuple[str, ...]
    usages: tuple[x509.ObjectIdentifier, ...]

    @property
    def names(self) -> x509.SubjectAlternativeName:
        """The addresses as a certificate holds them."""
        return x509.SubjectAlternativeName([_general_name(text) for text in self.addresses])


def _general_name(text: str) -> x509.GeneralName:
    number = as_ip(text)
    return x509.DNSName(text) if number is None else x509.IPAddress(number)


class Authority:
    """The certificate authority in a folder: made when it is first needed, kept ever after.

    Its key is read only to issue a certificate, and may be kept elsewhere in between.
    """

    def __init__(self, folder: Path) -> None:
        self.certificate_file = folder / "ca.crt"
        self.key_file = folder / "ca.key"
        self.revoked_file = folder / REVOKED
        self._replaced = folder / REPLACED

    def make(self, name: str) -> bool:
        """Make what is missing: key and certificate, an empty revocation list.

        Returns False if the certificate is there.

        Raises
        ------
        FleetError
            The list is missing, and the authority's key is not there.
        """
        if self.certificate_file.exists():
            if not self.revoked_file.exists():
                self._write_list([])
            return False
        make_folder(self.key_file.parent)
        key = own_key(self.key_file)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = _builder(subject, subject, key.public_key(), CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(identifier, critical=False)
        _write_certificate(self.certificate_file, builder.sign(key, hashes.SHA256()))
        self._write_list([])
        return True

    def has_revoked(self, file: Path) -> bool:
        """Return whether the certificate in a file has been taken back.

        Raises
        ------
        FleetError
            There is no certificate, or the revocation list is damaged.
        """
        serial = read_certificate(file).serial_number
        return serial in {one.serial_number for one in self._listed()}

    def revoke(self, *certificates: x509.Certificate) -> None:
        """Add certificates, and earlier ones of the same keys, to the revocation list.

        Raises
        ------
        FleetError
            The list is damaged, or the authority's key is not there.
        """
        known = self._listed()
        held = {one.serial_number for one in known}
        now = datetime.now(UTC)
        keys = [certificate.public_key() for certificate in certificates]
        earlier = [read_certificate(file) for file in sorted(self._replaced.glob("*.crt"))]
        serials = [certificate.serial_number for certificate in certificates]
        serials += [one.serial_number for one in earlier if one.public_key() in keys]
        fresh = [
            x509.RevokedCertificateBuilder(serial, now).build()
            for serial in dict.fromkeys(serials)
            if serial not in held
        ]
        if fresh:
            self._write_list([*known, *fresh])

    def forget(self) -> None:
        """Remove the authority itself, so that nothing it has issued counts any more."""
        for file in (self.certificate_file, self.key_file, self.revoked_file):
            file.unlink(missing_ok=True)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _listed(self) -> list[x509.RevokedCertificate]:
        if not self.revoked_file.exists():
            return []
        try:
            return list(x509.load_pem_x509_crl(self.revoked_file.read_bytes()))
        except (OSError, *UNREADABLE) as error:
            raise FleetError(f"{self.revoked_file} is damaged: {error}") from error

    def _write_list(self, revoked: Sequence[x509.RevokedCertificate]) -> None:
        own, issuer, now = self.key(), read_certificate(self.certificate_file), datetime.now(UTC)
        made = x509.CertificateRevocationListBuilder(
            issuer.subject, now - BACKDATED, now + timedelta(days=CA_DAYS), [], list(revoked)
        ).sign(own, hashes.SHA256())
        write_whole(self.revoked_file, made.public_bytes(serialization.Encoding.PEM), 0o644)

    def key(self) -> ec.EllipticCurvePrivateKey:
        """Return the authority's private key.

        Raises
        ------
        FleetError
            It is not there.
        """
        if not self.key_file.exists():
            raise FleetError(
                f"{self.key_file} is missing: without it nothing can be issued or revoked"
            )
        return own_key(self.key_file)

    def issue(self, wanted: Wanted, key_file: Path, file: Path) -> x509.Certificate:
        """Issue a certificate for the key in ``key_file`` (made where missing) into ``file``.

        The one that it replaces is kept with the authority: it stays good, and :meth:`revoke` takes
        it back, too.

        Raises
        ------
        FleetError
            The authority's key is not there.
        """
        authority, own = read_certificate(self.certificate_file), self.key()
        public = own_key(key_file).public_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name)])
        builder = _builder(subject, authority.subject, public, CERTIFICATE_DAYS)
        ski = x509.SubjectKeyIdentifier.from_public_key
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key())
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(wanted.usages), critical=False)
        builder = builder.add_extension(wanted.names, critical=False)
        builder = builder.add_extension(ski(public), critical=False)
        builder = builder.add_extension(aki, critical=False)
        certificate = builder.sign(own, hashes.SHA256())
        if file.exists():
            old = read_certificate(file)
            make_folder(self._replaced)
            _write_certificate(self._replaced / f"{old.serial_number:x}.crt", old)
        _write_certificate(file, certificate)
        return certificate

    def objection(self, wanted: Wanted, key_file: Path, file: Path) -> str:
        """Return why a certificate that is there does not do, or nothing."""
        certificate, strange = read_certificate(file), f"is not from {self.certificate_file}"
        if not self.certificate_file.exists():
            return strange
        issuer = read_certificate(self.certificate_file)
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, *UNREADABLE):
            return strange
        names = [
            name
            for extension in certificate.extensions
            if isinstance(extension.value, x509.SubjectAlternativeName)
            for name in extension.value
        ]
        if set(names) != set(wanted.names):
            held = ", ".join(str(name.value) for name in names) or "no address"
            return f"is for {held}, not for {', '.join(wanted.addresses)}"
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if [one.value for one in common] != [wanted.common_name]:
            told = ", ".join(str(one.value) for one in common) or "nobody"
            return f"is that of {told}, not of {wanted.common_name}"
        if key_file.exists() and own_key(key_file).public_key() != certificate.public_key():
            return f"does not belong to {key_file.name}"
        return "" if key_file.exists() else f"has lost its key, {key_file.name}"


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - BACKDATED,
        not_valid_after=now + timedelta(days=days),
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_certificate(file: Path, certificate: x509.Certificate) -> None:
    write_whole(file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
