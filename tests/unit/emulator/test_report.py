import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.report import Ledger, SequenceSet, latency_ms, ledger_place, summarise


def place(sequence: int, *, service: str = "readgpio_py", stream: str = "s1") -> dict[str, str]:
    return {"os-node": "pi-1", "os-stream": stream, "os-service": service, "os-sequence": str(sequence)}


@given(st.lists(st.integers(1, 60), max_size=120))
def test_a_sequence_set_is_a_set(numbers):
    ranges, model = SequenceSet(), set()
    stored: dict[int, int] = {}
    for number in numbers:
        assert ranges.add(number) is (number not in model)
        model.add(number)
        for first in ranges.touched:
            last = ranges.last_of(first)
            if last is None:
                stored.pop(first, None)
            else:
                stored[first] = last
        ranges.touched.clear()

    assert ranges.count == len(model)
    assert ranges.highest == max(model, default=0)
    missing = {number for first, last in ranges.gaps() for number in range(first, last + 1)}
    assert missing == set(range(1, ranges.highest + 1)) - model
    assert {number for first, last in stored.items() for number in range(first, last + 1)} == model
    again = SequenceSet(stored.items())
    assert (again.count, again.highest, list(again.gaps())) == (ranges.count, ranges.highest, list(ranges.gaps()))


def test_any_order_of_arrival_gives_the_same_counts():
    numbers = [*range(1, 501), *range(1, 21)]
    random.Random(7).shuffle(numbers)
    ledger = Ledger()
    for number in numbers:
        ledger.record(place(number), 1.0, None)

    report = ledger.report()

    assert (report.received, report.distinct, report.duplicates, report.missing) == (520, 500, 20, 0)


def test_missing_numbers_are_counted_and_shown_as_gaps():
    ledger = Ledger()
    for number in (2, 3, 7, 3):
        ledger.record(place(number), 1.0, None)

    (service,) = ledger.report().services

    assert (service.received, service.distinct, service.duplicates) == (4, 3, 1)
    assert (service.missing, service.highest, service.gaps) == (4, 7, [(1, 1), (4, 6)])


def test_services_and_streams_are_counted_apart():
    ledger = Ledger()
    ledger.record(place(1), 1.0, None)
    ledger.record(place(1, service="heating_py"), 2.0, None)
    ledger.record(place(1, stream="s2"), 3.0, None)

    report = ledger.report()

    assert report.duplicates == 0
    assert [(service.service, service.stream) for service in report.services] == [
        ("heating_py", "s1"),
        ("readgpio_py", "s1"),
        ("readgpio_py", "s2"),
    ]


def test_messages_without_a_place_are_received_and_untracked():
    ledger = Ledger()
    assert ledger.record({}, 1.0, 5.0) == (None, True)

    report = ledger.report()

    assert (report.received, report.untracked, report.distinct) == (1, 1, 0)
    assert report.latency.count == 1


@pytest.mark.parametrize("sequence", ["", "0", "-1", "1.5", "x", "²", "9" * 19])
def test_a_number_that_is_none_has_no_place(sequence):
    assert ledger_place({**place(1), "os-sequence": sequence}) is None


def test_latency_is_from_the_edge_to_the_arrival():
    assert latency_ms(json.dumps({"edge_time": 99.5, "pin": 17}).encode(), 100.0) == pytest.approx(500.0)


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b'{"edge_time": "now"}', b'{"edge_time": null}', b'["edge_time"]', b'{"edge_time": 1', b'{"time": 1}'],
)
def test_a_payload_without_an_edge_has_no_latency(payload):
    assert latency_ms(payload, 100.0) is None


def test_deeply_nested_payloads_have_no_latency():
    assert latency_ms(b'{"edge_time": ' + b"[" * 100_000, 100.0) is None


def test_duplicates_do_not_count_into_the_latency():
    ledger = Ledger()
    ledger.record(place(1), 1.0, 5.0)
    ledger.record(place(1), 9.0, 8000.0)

    assert ledger.report().latency.most_ms == 5.0


def test_percentiles_are_measured_values():
    summary = summarise(float(value) for value in range(1, 101))
    assert (summary.count, summary.p50_ms, summary.p99_ms, summary.most_ms) == (100, 50.0, 99.0, 100.0)


def test_one_value_is_every_percentile():
    summary = summarise([3.0])
    assert (summary.p50_ms, summary.p99_ms, summary.most_ms) == (3.0, 3.0, 3.0)


def test_no_values_have_no_percentiles():
    summary = summarise([])
    assert (summary.count, summary.p50_ms, summary.p99_ms) == (0, None, None)
