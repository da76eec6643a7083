"""How much the outbox keeps, and how large one message may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent.errors import ConfigError
from agent.outbox.message import Submission

DAY_SECONDS = 86_400.0
LEAST_BYTES = 1 << 20

IOT_HUB_LIMIT_BYTES = 262_144
"""What an IoT Hub accepts in one message, properties included."""

LEDGER_PROPERTIES_BYTES = 512
"""Kept free in each message for the properties that the agent adds."""

DropReason = Literal["expired", "age", "full"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The outbox's bounds.

    Args:
        bytes: what all waiting messages may take together, at least 1 MiB (default 256 MiB).
        age_seconds: how old a message may get while it waits, or None for any age (default 30 days). Within a boot
        this is
            counted by the monotonic clock; an earlier boot's messages count from the start of this boot, the least they
            can be, because a board without a real-time clock does not know better.
    """

    bytes: int = 256 << 20
    age_seconds: float | None = 30 * DAY_SECONDS

    def __post_init__(self) -> None:
        if self.bytes < LEAST_BYTES:
            raise ConfigError(f"outbox bytes is {self.bytes}; it must be at least {LEAST_BYTES} (1 MiB).")
        if self.age_seconds is not None and self.age_seconds <= 0:
            raise ConfigError(f"outbox age_seconds is {self.age_seconds}; it must be above 0, or absent for any age.")


def check_size(submission: Submission) -> None:
    """Refuse what an IoT Hub would refuse for ever, before it is stored.

    Raises ValueError, saying how large the message is and how large it may be. Needs nothing but the message: from any
    thread.
    """
    properties = sum(len(key.encode()) + len(value.encode()) for key, value in submission.properties.items())
    size = len(submission.payload) + properties + LEDGER_PROPERTIES_BYTES
    if size > IOT_HUB_LIMIT_BYTES:
        raise ValueError(
            f"A message of {submission.service} is too large: {len(submission.payload)} bytes and {properties} bytes "
            f"of properties; together they may be {IOT_HUB_LIMIT_BYTES - LEDGER_PROPERTIES_BYTES}. Send it in parts."
        )
