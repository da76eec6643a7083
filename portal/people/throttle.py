"""Slows down who guesses: passwords at sign-in, verification codes at the node hub."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

from agent.clock import Clock
from portal.errors import TooManyError

FREE_ATTEMPTS = 5
LONGEST_WAIT_SECONDS = 900
FORGET_AFTER_SECONDS = 3600
KEYS_LIMIT = 20_000


def network_of(address: str) -> str:
    """Who an address counts as: itself, or its /64, of which an IPv6 host has every address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


@dataclass(slots=True)
class _Attempts:
    failed: int = 0
    next_at: float = 0.0
    last_at: float = 0.0


class Throttle:
    """After five failures each further attempt of the same key waits: 1 s, 2 s, 4 s … 15 minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: OrderedDict[tuple[str, ...], _Attempts] = OrderedDict()

    def check(self, *key: str) -> None:
        """Raise TooManyError while the key has to wait."""
        now = self._clock.monotonic()
        attempts = self._keys.get(key)
        if attempts is not None and now < attempts.next_at:
            wait = math.ceil(attempts.next_at - now)
            raise TooManyError(f"Too many failed attempts; try again in {wait} s.", retry_after_seconds=wait)

    def failed(self, *key: str) -> None:
        """Count a failed attempt."""
        now = self._clock.monotonic()
        attempts = self._keys.get(key)
        if attempts is None or now - attempts.last_at > FORGET_AFTER_SECONDS:
            attempts = self._keys[key] = _Attempts()
        self._keys.move_to_end(key)
        attempts.failed += 1
        attempts.last_at = now
        if attempts.failed >= FREE_ATTEMPTS:
            attempts.next_at = now + min(LONGEST_WAIT_SECONDS, 2 ** (attempts.failed - FREE_ATTEMPTS))
        while len(self._keys) > KEYS_LIMIT:
            self._keys.popitem(last=False)

    def begin(self, *key: str) -> None:
        """Check, and count the attempt as failed until `succeeded` is called.

        For attempts that take time, so that many at once do not get more tries than one after the other.
        """
        self.check(*key)
        self.failed(*key)

    def succeeded(self, *key: str) -> None:
        """The attempt was good: forget the failures."""
        self._keys.pop(key, None)
