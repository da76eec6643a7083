"""How much the outbox keeps, and how large one message may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from agent.errors import ConfigError
from agent.outbox.message import PROPERTY_PREFIX, Submission

DAY_SECONDS = 86_400.0
LEAST_BYTES = 1 << 20

IOT_HUB_LIMIT_BYTES = 262_144
"""What an IoT Hub accepts in one message, properties included."""

RESERVED_BYTES = 2_048
"""Of that, what the agent's own properties may take, as Azure's SDK counts."""

PROPERTIES_LIMIT_BYTES = 60_000
"""For all properties together, percent-encoded: they travel in the MQTT topic, which ends at 65,535 bytes."""

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
    """Refuse what an IoT Hub would refuse for ever, before it is stored, and properties in the node's own name.

    Raises ValueError, saying how large the message is and how large it may be. From any thread.
    """
    for name in submission.properties:
        if name.startswith(PROPERTY_PREFIX):
            raise ValueError(
                f"The property {name} of a message of {submission.service} is not its own: names that begin with "
                f"{PROPERTY_PREFIX} are the node's. Give it another name."
            )
    encoded = sum(len(quote(text, safe="")) + 1 for pair in submission.properties.items() for text in pair)
    if encoded > PROPERTIES_LIMIT_BYTES:
        raise ValueError(
            f"The properties of a message of {submission.service} are too large: {encoded} bytes percent-encoded; "
            f"together they may be {PROPERTIES_LIMIT_BYTES}. Put what is long into the message itself."
        )
    properties = sum(_counted(text) for pair in submission.properties.items() for text in pair)
    if len(submission.payload) + properties > IOT_HUB_LIMIT_BYTES - RESERVED_BYTES:
        raise ValueError(
            f"A message of {submission.service} is too large: {len(submission.payload)} bytes and {properties} bytes "
            f"of properties; together they may be {IOT_HUB_LIMIT_BYTES - RESERVED_BYTES}. Send it in parts."
        )


def _counted(text: str) -> int:
    # Azure's SDK checks the size that Python's objects have in memory, and refuses above it.
    return len(text) + 56 if text.isascii() else 4 * len(text) + 80
