"""A message on its way from a service to the far end."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["telemetry", "fault", "tracking"]
Lane = Literal["live", "bulk"]

KIND_LETTERS: dict[Kind, str] = {"telemetry": "t", "fault": "f", "tracking": "k"}
"""As a message's id has them: each kind is counted on its own."""

PROPERTY_PREFIX = "os-"
"""Properties that the agent adds to a cloud message; a service's own may not start with it."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What the outbox takes in: a message without its place in the ledger."""

    service: str
    payload: bytes
    kind: Kind = "telemetry"
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    properties: dict[str, str] = {}
    lane: Lane = "live"
    ttl_seconds: float | None = None
    producer: str = ""
    """The run of a service process that hands this in. Empty: no check for a repeated hand-in."""
    producer_sequence: int = 0
    """Counts a producer's submissions from 1. The outbox takes each number once, in rising order: a number that is not
    above the highest one committed is answered as stored and not stored again (a hand-in repeated after a crash)."""


class OutboxMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A stored message, as a sink gets it."""

    id: int
    """The outbox's own number: rising within a kind and lane, never used twice in a stream."""
    node: str
    stream: str
    """The outbox file's random name; a new one after a damaged file was set aside, so that sequences never lie."""
    boot: str
    """The kernel's boot id when the message was submitted."""
    service: str
    sequence: int
    """Counts this service's messages of this kind in this stream from 1 without gaps, across restarts."""
    kind: Kind
    lane: Lane
    payload: bytes
    content_type: str
    content_encoding: str
    properties: dict[str, str]
    created_wall: float
    """Seconds since 1970 at submission, as the machine believed."""
    created_monotonic: float
    """Seconds since boot at submission."""
    expires_wall: float | None = None

    @property
    def message_id(self) -> str:
        """Stable over every attempt, so that the far end can drop duplicates."""
        return f"{self.stream}-{self.service}-{KIND_LETTERS[self.kind]}{self.sequence}"

    def ledger_properties(self) -> dict[str, str]:
        """What the far end needs to prove completeness: `os-node os-stream os-boot os-service os-sequence`."""
        return {
            "os-node": self.node,
            "os-stream": self.stream,
            "os-boot": self.boot,
            "os-service": self.service,
            "os-sequence": str(self.sequence),
        }
