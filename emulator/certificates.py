"""A throw-away certificate authority and the emulator's server certificate.

Nobody else trusts this authority, and its key never leaves the data directory. Its certificate is what a device is
given to verify the emulator with.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.errors import StorageError
from agent.files import write_atomically

# Fixed dates: a board without a real-time clock may believe in any year since the first of them.
_NOT_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(2049, 12, 31, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class ServerCertificates:
    """Files that a TLS server and its clients load."""

    authority: Path
    """The authority's certificate (PEM): give it to devices."""
    certificate: Path
    key: Path

    def authority_pem(self) -> str:
        """The authority's certificate as text."""
        return self.authority.read_text("ascii")


def ensure_certificates(folder: Path, names: Sequence[str]) -> ServerCertificates:
    """Make the authority and a server certificate for `names` in `folder`, or reuse what is there.

    `names` are host names and IP addresses; addresses go into the certificate as such. The authority is made once;
    the server certificate is made again when a name is not in it. Keys have mode 0600. Blocks on the disk.

    Raises StorageError when the folder cannot be written, or holds files that are no certificates.
    """
    paths = ServerCertificates(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem")
    authority_key_path = folder / "ca-key.pem"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (authority_key_path.exists() and paths.authority.exists()):
            key = ec.generate_private_key(ec.SECP256R1())
            write_atomically(authority_key_path, _key_pem(key))
            write_atomically(paths.authority, _pem(_make_authority(key)), mode=0o644)
        authority = x509.load_pem_x509_certificate(paths.authority.read_bytes())
        if not _serves(paths, authority, names):
            authority_key = _load_key(authority_key_path)
            key = ec.generate_private_key(ec.SECP256R1())
            write_atomically(paths.key, _key_pem(key))
            write_atomically(paths.certificate, _pem(_make_server(key, names, authority, authority_key)), mode=0o644)
    except OSError as error:
        raise StorageError(f"The certificates cannot be kept in {folder}: {error}.") from error
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"The certificates in {folder} cannot be read ({error}); move them away and new ones are made."
        ) from error
    return paths


def server_names(address: str, hostnames: Sequence[str]) -> list[str]:
    """Every name a device may dial: those given, the listening address, the local ones."""
    names = [*hostnames, address, "localhost"]
    if ipaddress.ip_address(address).is_unspecified:
        names = [*hostnames, socket.gethostname(), "localhost", "127.0.0.1"]
    return list(dict.fromkeys(name.lower() for name in names))


def _serves(paths: ServerCertificates, authority: x509.Certificate, names: Sequence[str]) -> bool:
    if not (paths.certificate.exists() and paths.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(paths.certificate.read_bytes())
    key = _load_key(paths.key)
    if key.public_key() != certificate.public_key() or certificate.issuer != authority.subject:
        return False
    known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return all(name in known for name in _general_names(names))


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path.name} is not an elliptic-curve key")
    return key


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_general_name(name) for name in names]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _make_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    serial = x509.random_serial_number()
    # Each authority has a name of its own, so that a certificate of an earlier one is seen as foreign.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Outstation local IoT Hub {serial:040x}"[:64])])
    return (
        _builder(name, name, key, serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _make_server(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "outstation-iothub")])
    issuer_key = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(subject, authority.subject, key, x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
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


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
