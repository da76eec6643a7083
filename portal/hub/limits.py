"""What one node's connection may take of the portal."""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import HubProtocolError
from agent.hub.protocol import PING_INTERVAL_SECONDS, SERVER_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Bounds of connections; only tests use others than these.

    Args:
        silence_seconds: a connection that says nothing for this long is closed.
        ping_seconds: how often the portal says something.
        handshake_seconds: time from negotiate to the WebSocket, and for the handshake.
        unknown_seconds: time until a connection must have signed in or announced itself.
        records_a_second: sustained rate of records.
        records_burst: how many may come at once.
        stranger_records_a_second: sustained rate of records while nobody has signed in.
        stranger_records_burst: how many of these may come at once.
        outgoing: records that may wait for a slow node.
        negotiations: connections that may be negotiated and not opened yet.
        announcements: machines that may wait to be claimed.
        command_seconds: how long a command waits for its answer.
    """

    silence_seconds: float = SERVER_TIMEOUT_SECONDS
    ping_seconds: float = PING_INTERVAL_SECONDS
    handshake_seconds: float = 30.0
    unknown_seconds: float = 30.0
    records_a_second: float = 500.0
    records_burst: int = 2000
    stranger_records_a_second: float = 5.0
    stranger_records_burst: int = 50
    outgoing: int = 256
    negotiations: int = 20_000
    announcements: int = 1000
    command_seconds: float = 10.0


class RateLimit:
    """A token bucket."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> None:
        """Count one more at `now` (monotonic seconds). Raises HubProtocolError when it is one too many."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            raise HubProtocolError(f"More than {self._rate:.0f} records a second.")
        self._left -= 1
