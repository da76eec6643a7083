"""Ranges against a set."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent.outbox.ranges import Ranges, as_ranges

NUMBERS = st.integers(min_value=1, max_value=60)
PAIRS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair)))


def expand(pairs: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in pairs for number in range(first, last + 1)}


@given(st.lists(PAIRS), PAIRS)
def test_ranges_hold_what_was_added(pairs: list[tuple[int, int]], window: tuple[int, int]) -> None:
    ranges = Ranges(pairs)
    expected = expand(pairs)
    within = set(range(window[0], window[1] + 1))
    assert expand(ranges.pairs()) == expected
    assert {number for number in range(62) if number in ranges} == expected
    assert expand(list(ranges.gaps(*window))) == within - expected
    assert expand(list(ranges.common(*window))) == within & expected


@given(st.lists(PAIRS))
def test_ranges_are_sorted_and_do_not_touch(pairs: list[tuple[int, int]]) -> None:
    listed = Ranges(pairs).pairs()
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(listed))


@given(st.lists(PAIRS), PAIRS)
def test_copy_is_independent(pairs: list[tuple[int, int]], more: tuple[int, int]) -> None:
    ranges = Ranges(pairs)
    before = ranges.pairs()
    ranges.copy().add(*more)
    assert ranges.pairs() == before


@given(st.sets(NUMBERS))
def test_numbers_become_ranges_and_nothing_else(numbers: set[int]) -> None:
    assert expand(as_ranges(numbers)) == numbers
