"""The far end's ledger: what arrived, what arrived twice, what is missing, and how long it took.

An agent numbers the messages of each of its services from 1 without gaps and sends the numbers along
(`os-node`, `os-stream`, `os-service`, `os-sequence`), so that whoever receives them can prove completeness.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec

LATENCIES_KEPT = 10_000
"""Of each service: enough for a steady p99, and no more memory however long it runs."""
GAPS_SHOWN = 20
_SEQUENCE_DIGITS = 18


class StreamKey(msgspec.Struct, frozen=True):
    """What is numbered together: one service of one node, in one outbox file."""

    node: str
    stream: str
    service: str


class LatencySummary(msgspec.Struct, frozen=True):
    """From the edge to the hub, in milliseconds, over the latest messages that said when their edge was."""

    count: int
    p50_ms: float | None
    p99_ms: float | None
    most_ms: float | None


class ServiceReport(msgspec.Struct, frozen=True):
    """One numbered stream."""

    node: str
    stream: str
    service: str
    received: int
    distinct: int
    duplicates: int
    missing: int
    """Numbers from 1 to `highest` that have not arrived (yet)."""
    highest: int
    gaps: list[tuple[int, int]]
    """The first 20 missing ranges, both ends included."""
    first_arrival: float
    last_arrival: float
    latency: LatencySummary


class Report(msgspec.Struct, frozen=True):
    """Everything that arrived since the data directory was made."""

    received: int
    distinct: int
    duplicates: int
    missing: int
    untracked: int
    """Received without (valid) ledger properties; not in `distinct`."""
    latency: LatencySummary
    services: list[ServiceReport]


class SequenceSet:
    """A set of positive integers as ranges: as small as the gaps in it are few.

    `touched` collects the first number of each range that was made, changed or removed, for whoever stores them.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._last = dict(ranges)
        self._firsts = sorted(self._last)
        self.count = sum(last - first + 1 for first, last in self._last.items())
        self.touched: set[int] = set()

    @property
    def highest(self) -> int:
        """The largest number; 0 when empty."""
        return self._last[self._firsts[-1]] if self._firsts else 0

    def add(self, number: int) -> bool:
        """Add `number`; False when it was there."""
        index = bisect_right(self._firsts, number) - 1
        first = self._firsts[index] if index >= 0 else None
        if first is not None and number <= self._last[first]:
            return False
        self.count += 1
        if first is not None and self._last[first] == number - 1:
            self._last[first] = number
        else:
            first = number
            insort(self._firsts, number)
            index += 1
            self._last[number] = number
        self.touched.add(first)
        following = number + 1
        if index + 1 < len(self._firsts) and self._firsts[index + 1] == following:
            self._last[first] = self._last.pop(following)
            del self._firsts[index + 1]
            self.touched.add(following)
        return True

    def last_of(self, first: int) -> int | None:
        """The end of the range that starts at `first`; None when there is none."""
        return self._last.get(first)

    def gaps(self) -> Iterator[tuple[int, int]]:
        """The missing ranges between 1 and the highest number."""
        expected = 1
        for first in self._firsts:
            if first > expected:
                yield expected, first - 1
            expected = self._last[first] + 1


class Tally:
    """What arrived of one stream."""

    def __init__(
        self, *, received: int = 0, ranges: Iterable[tuple[int, int]] = (), first: float = 0.0, last: float = 0.0
    ) -> None:
        self.received = received
        self.sequences = SequenceSet(ranges)
        self.first_arrival = first
        self.last_arrival = last
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def record(self, sequence: int, arrived: float) -> bool:
        """Count an arrival; True when this number had not arrived before."""
        self.first_arrival = self.first_arrival or arrived
        self.last_arrival = arrived
        self.received += 1
        return self.sequences.add(sequence)


class Ledger:
    """Every stream's tally. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self.tallies: dict[StreamKey, Tally] = {}
        self.untracked = 0
        self.untracked_latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def record(
        self, properties: Mapping[str, str], arrived: float, latency_ms: float | None
    ) -> tuple[StreamKey | None, bool]:
        """Count a message; return its stream (None: it has no valid ledger properties) and whether it is new."""
        place = ledger_place(properties)
        if place is None:
            self.untracked += 1
            if latency_ms is not None:
                self.untracked_latencies_ms.append(latency_ms)
            return None, True
        key, sequence = place
        tally = self.tallies.get(key)
        if tally is None:
            tally = self.tallies[key] = Tally()
        new = tally.record(sequence, arrived)
        if new and latency_ms is not None:
            tally.latencies_ms.append(latency_ms)
        return key, new

    def report(self) -> Report:
        """Sum it all up."""
        services = [
            ServiceReport(
                node=key.node,
                stream=key.stream,
                service=key.service,
                received=tally.received,
                distinct=tally.sequences.count,
                duplicates=tally.received - tally.sequences.count,
                missing=tally.sequences.highest - tally.sequences.count,
                highest=tally.sequences.highest,
                gaps=[gap for gap, _ in zip(tally.sequences.gaps(), range(GAPS_SHOWN), strict=False)],
                first_arrival=tally.first_arrival,
                last_arrival=tally.last_arrival,
                latency=summarise(tally.latencies_ms),
            )
            for key, tally in sorted(
                self.tallies.items(), key=lambda item: (item[0].node, item[0].service, item[0].stream)
            )
        ]
        latencies = [value for tally in self.tallies.values() for value in tally.latencies_ms]
        return Report(
            received=self.untracked + sum(service.received for service in services),
            distinct=sum(service.distinct for service in services),
            duplicates=sum(service.duplicates for service in services),
            missing=sum(service.missing for service in services),
            untracked=self.untracked,
            latency=summarise([*latencies, *self.untracked_latencies_ms]),
            services=services,
        )


def ledger_place(properties: Mapping[str, str]) -> tuple[StreamKey, int] | None:
    """The stream and number in a message's properties; None unless all are there and the number is positive."""
    try:
        key = StreamKey(properties["os-node"], properties["os-stream"], properties["os-service"])
        sequence = properties["os-sequence"]
    except KeyError:
        return None
    if not (sequence.isascii() and sequence.isdecimal() and len(sequence) <= _SEQUENCE_DIGITS and int(sequence) > 0):
        return None
    return key, int(sequence)


class _Edge(msgspec.Struct):
    edge_time: float


_edge_decoder = msgspec.json.Decoder(_Edge)


def latency_ms(payload: bytes, arrived: float) -> float | None:
    """Milliseconds from a JSON object's `edge_time` (Unix seconds) to `arrived`; None when it has none.

    Both are wall times: between machines whose clocks differ, the difference of the clocks is in it.
    """
    if b'"edge_time"' not in payload:
        return None
    try:
        edge = _edge_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return (arrived - edge.edge_time) * 1000.0


def summarise(values: Iterable[float]) -> LatencySummary:
    """Percentiles by nearest rank, so that each is a latency that was measured."""
    ordered = sorted(values)
    if not ordered:
        return LatencySummary(0, None, None, None)
    return LatencySummary(len(ordered), _rank(ordered, 0.50), _rank(ordered, 0.99), round(ordered[-1], 3))


def _rank(ordered: list[float], fraction: float) -> float:
    return round(ordered[max(0, math.ceil(fraction * len(ordered)) - 1)], 3)
