"""A message from a device, as the hub keeps it."""

from __future__ import annotations

import base64
from typing import Any

import msgspec


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """A device-to-cloud message that arrived."""

    id: int
    """Counts the messages of this data directory from 1, in order of arrival."""
    device: str
    arrived: float
    """When, in Unix seconds by the hub's clock."""
    payload: bytes
    system: dict[str, str]
    """`message_id`, `content_type`, `content_encoding`, `correlation_id`, … as far as they were sent."""
    properties: dict[str, str]
    duplicate: bool = False
    """A message with the same ledger properties (`os-node`, `os-stream`, `os-service`, `os-sequence`) came before."""

    @property
    def text(self) -> str:
        """The payload as text; bytes that are not UTF-8 become U+FFFD."""
        return self.payload.decode("utf-8", "replace")

    def json(self) -> Any:
        """The payload as JSON. Raises ValueError when it is none."""
        return msgspec.json.decode(self.payload)

    def document(self) -> dict[str, Any]:
        """The message as the HTTP API shows it.

        `body` is the JSON value when the payload is JSON, else its text; a payload that is not UTF-8 is in
        `body_base64` instead.
        """
        document: dict[str, Any] = {
            "id": self.id,
            "device": self.device,
            "arrived": self.arrived,
            "duplicate": self.duplicate,
            "system": self.system,
            "properties": self.properties,
        }
        try:
            document["body"] = self.json()
        except (ValueError, RecursionError):
            try:
                document["body"] = self.payload.decode("utf-8")
            except UnicodeDecodeError:
                document["body_base64"] = base64.b64encode(self.payload).decode()
        return document
