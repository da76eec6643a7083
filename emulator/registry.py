"""The hub's identity registry: which devices exist and how each proves who it is."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from emulator.errors import DeviceInvalidError, DeviceNotFoundError
from emulator.sas import decode_key
from emulator.store import Store
from emulator.twin import TwinSection

# IoT Hub's alphabet without what MQTT topics (# + /) and connection strings (;) give a meaning to.
_NAME = re.compile(r"[A-Za-z0-9_.:%*?!(),=@$'-]{1,128}")
_THUMBPRINT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})")


class Device(msgspec.Struct, kw_only=True):
    """A registered device, with its twin and its session."""

    id: str
    authentication: Literal["sas", "x509"] = "sas"
    enabled: bool = True
    primary_key: str = ""
    secondary_key: str = ""
    """Base64; empty on an X.509 device."""
    thumbprints: list[str] = []
    """Lower-case hexadecimal SHA-1 or SHA-256 of the certificates (DER) that the device may sign in with."""
    desired: TwinSection = msgspec.field(default_factory=TwinSection)
    reported: TwinSection = msgspec.field(default_factory=TwinSection)
    subscriptions: dict[str, int] = {}
    """Topic filters and their QoS; kept over links when the device asks for a persistent session."""

    def credentials(self) -> tuple[object, ...]:
        """All that it may sign in with."""
        return self.authentication, self.primary_key, self.secondary_key, self.thumbprints

    def holds(self, certificate: bytes) -> bool:
        """Whether `certificate` (DER) is one of this device's."""
        found = False
        for thumbprint in certificate_thumbprints(certificate):
            for registered in self.thumbprints:
                found |= hmac.compare_digest(thumbprint, registered)
        return found


class CloudMessage(msgspec.Struct, kw_only=True):
    """A cloud-to-device message that waits until the device acknowledges it."""

    id: int = 0
    payload: bytes
    system: dict[str, str]
    properties: dict[str, str]
    expires: float
    """Unix seconds; dropped then."""


class Registry:
    """The devices in memory, each change stored before it counts. For the loop only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._devices: dict[str, Device] = {}
        self._thumbprints: frozenset[str] = frozenset()
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Read what an earlier run stored."""
        rows = await self._store.call(lambda connection: connection.execute("SELECT document FROM device").fetchall())
        devices = (msgspec.json.decode(document, type=Device) for (document,) in rows)
        self._devices = {device.id: device for device in devices}
        self._index()

    def __len__(self) -> int:
        return len(self._devices)

    def devices(self) -> list[Device]:
        """Every device, by name."""
        return sorted(self._devices.values(), key=lambda device: device.id)

    def find(self, device_id: str) -> Device | None:
        """The device of that name."""
        return self._devices.get(device_id)

    def get(self, device_id: str) -> Device:
        """The device of that name. Raises DeviceNotFoundError."""
        device = self._devices.get(device_id)
        if device is None:
            raise DeviceNotFoundError(
                f"No device is named {device_id[:128]!r}; create it with PUT /devices/{{id}} first."
            )
        return device

    def knows_thumbprint(self, certificate: bytes) -> bool:
        """Whether any device is registered with `certificate` (DER)."""
        return any(thumbprint in self._thumbprints for thumbprint in certificate_thumbprints(certificate))

    @property
    def has_certificates(self) -> bool:
        """Whether any device signs in with a certificate."""
        return bool(self._thumbprints)

    async def put(
        self,
        device_id: str,
        *,
        thumbprints: Sequence[str] | None = None,
        primary_key: str | None = None,
        secondary_key: str | None = None,
        enabled: bool | None = None,
    ) -> Device:
        """Create a device, or change what is given of an existing one.

        With `thumbprints` it signs in with a certificate, else with keys (made when not given).
        Raises DeviceInvalidError with nothing changed.
        """
        if not _NAME.fullmatch(device_id):
            raise DeviceInvalidError(
                f"{device_id[:128]!r} cannot be a device's name: "
                "1 to 128 letters, digits and -_.:%*?!(),=@$' are allowed."
            )
        if thumbprints and (primary_key or secondary_key):
            raise DeviceInvalidError("A device signs in with keys or with certificates, not with both.")
        async with self._changing:
            old = self._devices.get(device_id)
            device = Device(id=device_id) if old is None else msgspec.structs.replace(old)
            if enabled is not None:
                device.enabled = enabled
            if thumbprints:
                device.authentication = "x509"
                device.thumbprints = [normalise_thumbprint(thumbprint) for thumbprint in thumbprints]
                device.primary_key = device.secondary_key = ""
            elif old is None or primary_key or secondary_key:
                device.authentication = "sas"
                device.thumbprints = []
                device.primary_key = _key(primary_key or device.primary_key)
                device.secondary_key = _key(secondary_key or device.secondary_key)
            await self._save(device)
        return device

    async def change(self, device_id: str, edit: Callable[[Device], None]) -> Device:
        """Apply `edit` to a copy of the device, store it, and let it count; one change at a time.

        Raises DeviceNotFoundError, and whatever `edit` raises, with nothing changed.
        """
        async with self._changing:
            device = msgspec.structs.replace(self.get(device_id))
            edit(device)
            await self._save(device)
        return device

    async def _save(self, device: Device) -> None:
        document = msgspec.json.encode(device)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO device VALUES (?, ?)", (device.id, document))

        await self._store.call(write)
        self._devices[device.id] = device
        self._index()

    async def delete(self, device_id: str) -> None:
        """Forget a device and the messages that wait for it. Raises DeviceNotFoundError."""
        self.get(device_id)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM device WHERE id = ?", (device_id,))
            connection.execute("DELETE FROM cloud_message WHERE device = ?", (device_id,))

        async with self._changing:
            await self._store.call(write)
            self._devices.pop(device_id, None)
            self._index()

    async def enqueue(self, device_id: str, message: CloudMessage) -> CloudMessage:
        """Store a cloud-to-device message; it gets its number."""
        document = msgspec.msgpack.encode(message)

        def write(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "INSERT INTO cloud_message (device, document) VALUES (?, ?)", (device_id, document)
            )
            return cursor.lastrowid or 0

        return msgspec.structs.replace(message, id=await self._store.call(write))

    async def dequeue(self, ids: Sequence[int]) -> None:
        """Forget cloud-to-device messages."""
        rows = [(number,) for number in ids]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM cloud_message WHERE id = ?", rows)

        await self._store.call(write)

    async def queued(self, device_id: str) -> list[CloudMessage]:
        """The cloud-to-device messages that wait for a device, oldest first."""

        def select(connection: sqlite3.Connection) -> list[tuple[int, bytes]]:
            return connection.execute(
                "SELECT id, document FROM cloud_message WHERE device = ? ORDER BY id", (device_id,)
            ).fetchall()

        return [
            msgspec.structs.replace(msgspec.msgpack.decode(document, type=CloudMessage), id=number)
            for number, document in await self._store.call(select)
        ]

    def _index(self) -> None:
        self._thumbprints = frozenset(
            thumbprint for device in self._devices.values() for thumbprint in device.thumbprints
        )


def certificate_thumbprints(certificate: bytes) -> tuple[str, str]:
    """SHA-256 and SHA-1 of a certificate (DER), as IoT Hub knows certificates by."""
    return (
        hashlib.sha256(certificate).hexdigest(),
        hashlib.sha1(certificate, usedforsecurity=False).hexdigest(),
    )


def pem_thumbprint(certificate: str) -> str:
    """The SHA-256 thumbprint of a certificate (PEM). Raises DeviceInvalidError."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise DeviceInvalidError("The certificate is not PEM; paste it with its BEGIN and END lines.") from error
    return certificate_thumbprints(parsed.public_bytes(Encoding.DER))[0]


def normalise_thumbprint(thumbprint: str) -> str:
    """`AB:CD…` or `abcd…` as lower-case hexadecimal. Raises DeviceInvalidError unless it is a SHA-1 or SHA-256."""
    plain = thumbprint.replace(":", "").replace(" ", "").lower()
    if not _THUMBPRINT.fullmatch(plain):
        raise DeviceInvalidError(
            "A thumbprint is 40 (SHA-1) or 64 (SHA-256) hexadecimal digits: "
            "openssl x509 -in device.pem -noout -fingerprint -sha256"
        )
    return plain


def _key(key: str) -> str:
    """`key`, or a new one when it is empty. Raises DeviceInvalidError."""
    if not key:
        return base64.b64encode(secrets.token_bytes(32)).decode()
    try:
        decode_key(key)
    except ValueError as error:
        raise DeviceInvalidError(f"The device's key cannot be used: {error}.") from error
    return key
