"""Which row numbers of one shelf are done, as ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """A set of integers, kept as sorted, disjoint, inclusive ranges.

    A sink acknowledges nearly in order, so that a whole history is one range and a handful more around the window in
    flight.

    Example:
        >>> done = Ranges([(1, 4)])
        >>> done.add(6, 7)
        >>> list(done.gaps(1, 9))
        [(5, 5), (8, 9)]
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in pairs:
            self.add(first, last)

    def copy(self) -> Ranges:
        """An independent copy."""
        other = Ranges()
        other._firsts = self._firsts.copy()
        other._lasts = self._lasts.copy()
        return other

    def pairs(self) -> list[tuple[int, int]]:
        """The ranges, lowest first."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def add(self, first: int, last: int) -> None:
        """Put `first` to `last`, both included, into the set; ranges that touch become one."""
        start = bisect_left(self._lasts, first - 1)
        end = bisect_right(self._firsts, last + 1)
        if start < end:
            first = min(first, self._firsts[start])
            last = max(last, self._lasts[end - 1])
        self._firsts[start:end] = [first]
        self._lasts[start:end] = [last]

    def gaps(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The parts of `first` to `last` that are not in the set, lowest first."""
        at = bisect_left(self._lasts, first)
        while first <= last and at < len(self._firsts):
            if self._firsts[at] > first:
                yield first, min(last, self._firsts[at] - 1)
            first = self._lasts[at] + 1
            at += 1
        if first <= last:
            yield first, last

    def common(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The parts of `first` to `last` that are in the set, lowest first."""
        at = bisect_left(self._lasts, first)
        while at < len(self._firsts) and self._firsts[at] <= last:
            yield max(first, self._firsts[at]), min(last, self._lasts[at])
            at += 1


def as_ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers in any order, as ranges."""
    return Ranges((number, number) for number in sorted(numbers)).pairs()
