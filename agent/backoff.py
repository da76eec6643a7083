"""How long to wait before trying again."""

from __future__ import annotations

import random


class FullJitterBackoff:
    """Exponential back-off with full jitter: each delay is uniform between 0 and a doubling cap.

    Args:
        first_seconds: the cap of the first delay (default 1 s).
        most_seconds: the cap that is never exceeded (default 300 s).

    Full jitter spreads ten thousand nodes that lose one portal over the whole window, not only over its end.
    """

    def __init__(
        self,
        *,
        first_seconds: float = 1.0,
        most_seconds: float = 300.0,
        random_source: random.Random | None = None,
    ) -> None:
        self._first = first_seconds
        self._most = most_seconds
        self._random = random_source or random.SystemRandom()
        self._attempt = 0

    def next_seconds(self) -> float:
        """The next delay, in seconds."""
        cap = min(self._most, self._first * 2 ** min(self._attempt, 32))
        self._attempt += 1
        return self._random.uniform(0, cap)

    def reset(self) -> None:
        """Start again from the first delay: something worked."""
        self._attempt = 0
