"""What a node measures of itself, as the charts of its page show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reading:
    """One quantity: where it is in the facts, and how it is shown."""

    name: str
    label: str
    unit: str
    top: float | None
    digits: int
    keys: tuple[str, ...]
    """Places in the facts, the first that holds a number counts; a dot goes one level down."""


READINGS: tuple[Reading, ...] = (
    Reading("cpu", "Processor", "%", 100, 0, ("cpuPercent", "cpu.percent", "cpu")),
    Reading("memory", "Memory", "%", 100, 0, ("memory.percent", "memoryPercent", "memory")),
    Reading("disk", "Disk", "%", 100, 0, ("disk.percent", "diskPercent", "disk")),
    Reading("temperature", "Temperature", "°C", 100, 1, ("temperatureCelsius", "temperature.celsius", "temperature")),
    Reading("outbox", "Outbox", " msg", None, 0, ("outbox.depth", "outboxDepth", "outbox")),
    Reading("delivered", "Delivered", " msg", None, 0, ("outbox.acknowledged",)),
)
DELIVERED_LIMIT = 2**63 - 1


def readings_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """The quantities that `facts` holds; a node that cannot measure one leaves it out."""
    found: dict[str, float] = {}
    for reading in READINGS:
        for key in reading.keys:
            value = _at(facts, key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[reading.name] = float(value)
                break
    return found


def delivered_of(facts: Mapping[str, Any]) -> int:
    """How many messages have reached the node's cloud; 0 for what cannot be a number of them."""
    value = _at(facts, "outbox.acknowledged")
    return min(value, DELIVERED_LIMIT) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def text_of(facts: Mapping[str, Any], key: str) -> str:
    """A text among the facts; empty where there is none."""
    value = facts.get(key)
    return value if isinstance(value, str) else ""


def _at(facts: Mapping[str, Any], key: str) -> Any:
    value: Any = facts
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
