"""What the operator set, checked once at start; every message names the key."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set about a portal process.

    Args:
        data: folder of the database, keys and certificate; made with mode 0700 when missing.
        host: address to listen on (default 127.0.0.1).
        port: TCP port; 0 takes a free one (default 8080).
        database_url: `sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`; empty: `portal.db` in `data`.
        certificate: PEM of the certificate chain; needs `key`.
        key: PEM of its private key.
        self_signed: make a certificate once and keep it in `data`.
        public_url: how browsers and nodes reach the portal; empty: made from host and port.
        retention_days: how long timelines, faults and tracking records are kept (default 90 days).
        ready_file: written with `{"url", "port", "fingerprint", "setup_url"}` once the portal listens.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    database_url: str = field(default="", repr=False)
    certificate: Path | None = None
    key: Path | None = None
    self_signed: bool = False
    public_url: str = ""
    ready_file: Path | None = None
    retention_days: int = 90

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port (PORTAL_PORT) is {self.port}; it must be between 0 and 65535.")
        if not 1 <= self.retention_days <= 36_500:
            raise ConfigError(
                f"--retention-days (PORTAL_RETENTION_DAYS) is {self.retention_days}; it must be between 1 and 36500."
            )
        if not self.host:
            raise ConfigError("--host (PORTAL_HOST) is empty; give an address such as 127.0.0.1 or 0.0.0.0.")
        if (self.certificate is None) != (self.key is None):
            raise ConfigError(
                "--certificate (PORTAL_CERTIFICATE) and --key (PORTAL_KEY) belong together; give both or neither."
            )
        if self.certificate is not None and self.self_signed:
            raise ConfigError("--self-signed (PORTAL_SELF_SIGNED) and --certificate exclude each other; keep one.")
        for flag, path in (("--certificate (PORTAL_CERTIFICATE)", self.certificate), ("--key (PORTAL_KEY)", self.key)):
            if path is not None and not path.is_file():
                raise ConfigError(f"{flag} is {path}, which is not a file; give the path of a PEM file.")
        if self.database_url and not self.database_url.startswith(("sqlite+aiosqlite://", "postgresql+asyncpg://")):
            raise ConfigError(
                "--database-url (PORTAL_DATABASE_URL) must begin with sqlite+aiosqlite:// or postgresql+asyncpg://."
            )
        if self.public_url:
            self._check_public_url()

    def _check_public_url(self) -> None:
        parts = urlsplit(self.public_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(
                f"--public-url (PORTAL_PUBLIC_URL) is {self.public_url!r}; it must look like https://portal.example.net."
            )

    @property
    def tls(self) -> bool:
        """Whether the portal itself speaks TLS."""
        return self.self_signed or self.certificate is not None

    def url(self, port: int | None = None) -> str:
        """The portal's address without a slash at its end; `port` is the one that was really taken."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = self.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            host = "localhost"
        elif _is_ipv6(host):
            host = f"[{host}]"
        return f"{'https' if self.tls else 'http'}://{host}:{port or self.port}"

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL with the default filled in."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data / 'portal.db'}"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
