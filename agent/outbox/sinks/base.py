"""What a sink is: the way of messages from the outbox to one far end.

The life cycle, which `tests/contract/sinks` checks for every sink:

1. It is built without touching the network; a bad setting raises ConfigError there and then.
2. `run(feed)` connects, reconnects and sends until it is cancelled. A far end that is down, refuses or stalls is no
   reason to return or raise: the sink gives back what it had taken, waits with jitter and tries again.
3. It takes messages (`feed.take`), sends them in order, and acknowledges each **after** its far end has confirmed it.
   What is unconfirmed when the connection ends is given back and sent again: at least once, and in order for each
   service and lane within a connection.
4. What a far end refuses for ever (too large, malformed) is parked with the far end's words; the rest goes on.
5. Cancelling `run` ends it within `CLOSE_SECONDS`: what was confirmed by then is acknowledged, the rest is given back.
   The sink may be run again afterwards.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from agent.clock import Clock
from agent.outbox.feed import Feed
from agent.outbox.message import Kind

CLOSE_SECONDS = 10.0


class SinkError(Exception):
    """The root of what a far end does to a sink; inside sinks only."""


class RetryableError(SinkError):
    """The far end is away, busy or asks to wait: the same messages go again later."""


class RefusedMessageError(SinkError):
    """The far end will never take this message: park it."""


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a sink stands."""

    name: str
    connected: bool
    since_wall: float
    """When `connected` last changed, in seconds since 1970 as the machine believed."""
    last_error: str
    """Why the far end was not reached, or refused us, the last time; empty when it never did."""
    connects: int
    """Connections since the start."""
    sent: int
    """Messages handed to the far end since the start, repeated ones too."""
    acknowledged: int
    """Messages that it confirmed since the start."""
    parked: int
    """Messages that it refused for ever since the start."""


class Sink(Protocol):
    """One far end."""

    @property
    def name(self) -> str:
        """Unique on the node; the outbox keeps this sink's place under it."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it wants from the outbox."""

    async def run(self, feed: Feed) -> None:
        """Send what the feed has until cancelled; see the module."""

    def status(self) -> SinkStatus:
        """How it stands now."""


class StatusBook:
    """Keeps a sink's status."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._connected = False
        self._since = clock.wall()
        self._last_error = ""
        self._connects = 0
        self.sent = 0
        self.acknowledged = 0
        self.parked = 0

    def connected(self) -> None:
        """The far end is there."""
        if not self._connected:
            self._since = self._clock.wall()
            self._connects += 1
        self._connected = True

    def disconnected(self, reason: str = "") -> None:
        """The far end is not there; `reason` is kept when there is one."""
        if self._connected:
            self._since = self._clock.wall()
        self._connected = False
        if reason:
            self._last_error = reason[:500]

    def status(self) -> SinkStatus:
        """What was kept."""
        return SinkStatus(
            name=self._name,
            connected=self._connected,
            since_wall=self._since,
            last_error=self._last_error,
            connects=self._connects,
            sent=self.sent,
            acknowledged=self.acknowledged,
            parked=self.parked,
        )
