"""What the outbox says about itself."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.outbox.message import Kind, OutboxMessage
from agent.outbox.schema import SHELVES


class ServiceStats(msgspec.Struct, frozen=True, kw_only=True):
    """One service's messages of one kind, counted since this stream began; restarts do not reset them."""

    service: str
    kind: Kind
    submitted: int = 0
    """The last sequence given out."""
    repeated: int = 0
    """Hand-ins answered as stored already."""
    acknowledged: dict[str, int] = {}
    """By sink."""
    parked: dict[str, int] = {}
    """By sink: refused by its far end for ever."""
    dropped: dict[str, int] = {}
    """By reason: `expired` (its own time to live), `age` (the outbox's), `full`."""


class OutboxStats(msgspec.Struct, frozen=True, kw_only=True):
    """How the outbox stands."""

    stream: str
    depth: int
    """Messages that wait for at least one sink, or for a sink to be set up."""
    bytes: int
    """What they take, about."""
    limit_bytes: int
    waiting: dict[str, int]
    """Depth by kind and lane, as `telemetry/live`."""
    services: list[ServiceStats]
    recovered_from: str | None = None
    """The new name of a damaged file that this stream replaced."""


class ParkedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a far end refused for ever, kept for a person to look at."""

    sink: str
    reason: str
    parked_wall: float
    message: OutboxMessage


def gather(
    counters: Mapping[tuple[str, str, str, str], int], *, stream: str, limit_bytes: int, recovered_from: str | None
) -> OutboxStats:
    """The counters, for people and programs."""
    services: dict[tuple[str, str], ServiceStats] = {}
    for (what, service, kind, detail), value in counters.items():
        if not service:
            continue
        found = services.get((service, kind))
        if found is None:
            found = ServiceStats(
                service=service,
                kind=kind,  # type: ignore[arg-type]  # written by us, from a Kind
                submitted=counters.get(("submitted", service, kind, ""), 0),
                repeated=counters.get(("repeated", service, kind, ""), 0),
                acknowledged={},
                parked={},
                dropped={},
            )
            services[service, kind] = found
        if what in ("acknowledged", "parked", "dropped"):
            getattr(found, what)[detail] = value
    waiting = {
        f"{shelf.kind}/{shelf.lane}": counters.get(("messages", "", shelf.kind, shelf.lane), 0) for shelf in SHELVES
    }
    return OutboxStats(
        stream=stream,
        depth=sum(waiting.values()),
        bytes=sum(counters.get(("bytes", "", shelf.kind, shelf.lane), 0) for shelf in SHELVES),
        limit_bytes=limit_bytes,
        waiting={name: count for name, count in waiting.items() if count},
        services=[services[key] for key in sorted(services)],
        recovered_from=recovered_from,
    )
