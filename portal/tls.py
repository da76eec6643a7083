"""The portal's certificate: a given one, or one that it makes itself once and keeps."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import ConfigError, StorageError
from agent.files import write_atomically
from portal.settings import Settings

_VALID = datetime.timedelta(days=3650)
"""Nodes pin it, so that it changes only when somebody wants that."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files for the server, and what nodes pin when it is self-made."""

    certificate: Path
    key: Path
    fingerprint: str | None


def certificate_for(settings: Settings) -> Certificate | None:
    """The certificate to serve with; None without TLS. Blocks.

    Raises ConfigError when the given files do not belong together, StorageError when one cannot be made.
    """
    if settings.certificate is not None and settings.key is not None:
        _check_pair(settings.certificate, settings.key, "--certificate and --key (PORTAL_CERTIFICATE, PORTAL_KEY)")
        return Certificate(settings.certificate, settings.key, None)
    if not settings.self_signed:
        return None
    certificate, key = settings.data / "certificate.pem", settings.data / "certificate.key"
    try:
        if not (certificate.exists() and key.exists()):
            _make(certificate, key, _names(settings))
        content = certificate.read_bytes()
    except OSError as error:
        raise StorageError(
            f"The portal's certificate cannot be kept in {settings.data}: {error.strerror or error}."
        ) from error
    _check_pair(certificate, key, f"{certificate} and {key}")
    der = x509.load_pem_x509_certificate(content).public_bytes(serialization.Encoding.DER)
    return Certificate(certificate, key, hashlib.sha256(der).hexdigest())


def _check_pair(certificate: Path, key: Path, what: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(f"{what} cannot be used together: {reason}.") from error


def _names(settings: Settings) -> list[str]:
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    if settings.host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        names.append(settings.host)
    if host := urlsplit(settings.public_url).hostname:
        names.append(host)
    return list(dict.fromkeys(names))


def _make(certificate: Path, key: Path, names: list[str]) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Outstation portal")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        # Nodes may start with a clock that is behind.
        .not_valid_before(now - datetime.timedelta(days=365))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    write_atomically(
        key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
    write_atomically(certificate, made.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
