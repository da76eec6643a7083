"""The store: what is in it is what was submitted, once, in order, and stays until it is acknowledged."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.errors import StorageError
from agent.outbox.feed import READY_MESSAGES
from agent.outbox.limits import Limits
from agent.outbox.message import Submission

ALL = frozenset({"telemetry", "fault", "tracking"})
TELEMETRY = frozenset({"telemetry"})


def message(text: str = "x", **fields: Any) -> Submission:
    return Submission(**{"service": "readgpio_py", "payload": text.encode(), **fields})


async def take_all(feed: Any, count: int) -> list[Any]:
    taken: list[Any] = []
    while len(taken) < count:
        taken += await asyncio.wait_for(feed.take(1000), 10)
    return taken


async def test_message_reaches_the_feed_as_it_was_submitted(open_outbox, clock) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    sequence = await outbox.submit(
        message("hello", content_type="text/plain", content_encoding="latin-1", properties={"a": "ä"}, ttl_seconds=60)
    )
    (got,) = await feed.take(10)
    assert (sequence, got.sequence, got.service, got.payload) == (1, 1, "readgpio_py", b"hello")
    assert (got.content_type, got.content_encoding, got.properties) == ("text/plain", "latin-1", {"a": "ä"})
    assert (got.created_wall, got.created_monotonic, got.boot) == (clock.wall(), clock.monotonic(), "boot-1")
    assert got.expires_wall == clock.wall() + 60
    assert got.ledger_properties()["os-stream"] == outbox.stream


async def test_message_read_from_the_file_is_the_same_as_the_one_from_memory(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    await outbox.submit(message("hello", properties={"a": "b"}, ttl_seconds=5, kind="fault", lane="bulk"))
    (live,) = await feed.take(1)
    await outbox.close()
    again = await open_outbox()
    (stored,) = await again.feed("cloud", ALL).take(1)
    assert stored == live


async def test_sequences_count_for_each_service_and_kind_and_go_on_after_a_restart(open_outbox) -> None:
    outbox = await open_outbox()
    first = [await outbox.submit(message(service=service)) for service in ("a", "a", "b")]
    fault = await outbox.submit(message(service="a", kind="fault"))
    bulk = await outbox.submit(message(service="a", lane="bulk"))
    await outbox.close()
    outbox = await open_outbox()
    assert (first, fault, bulk, await outbox.submit(message(service="a"))) == ([1, 2, 1], 1, 3, 4)


async def test_acknowledged_messages_are_gone_and_the_others_come_back_after_a_restart(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    await outbox.submit_many([message(str(number)) for number in range(5)])
    taken = await feed.take(5)
    await feed.acknowledge([taken[0].id, taken[2].id])
    await outbox.flush()
    assert outbox.stats().depth == 3
    await outbox.close()
    outbox = await open_outbox()
    assert [got.payload for got in await outbox.feed("cloud", ALL).take(9)] == [b"1", b"3", b"4"]


async def test_each_sink_acknowledges_for_itself(open_outbox) -> None:
    outbox = await open_outbox()
    cloud, portal = outbox.feed("cloud", ALL), outbox.feed("portal", ALL)
    await outbox.submit_many([message("1"), message("2")])
    await cloud.acknowledge([got.id for got in await cloud.take(2)])
    await outbox.flush()
    assert outbox.stats().depth == 2
    first, _ = await portal.take(2)
    await portal.acknowledge([first.id])
    await outbox.close()
    outbox = await open_outbox()
    cloud, portal = outbox.feed("cloud", ALL), outbox.feed("portal", ALL)
    assert [got.payload for got in await portal.take(5)] == [b"2"]
    await outbox.submit(message("3"))
    assert [got.payload for got in await cloud.take(5)] == [b"3"]


async def test_sink_that_does_not_want_a_kind_holds_nothing_of_it(open_outbox) -> None:
    outbox = await open_outbox()
    cloud = outbox.feed("cloud", TELEMETRY)
    portal = outbox.feed("portal", frozenset({"fault"}))
    await outbox.submit_many([message("reading"), message("broken", kind="fault")])
    (reading,) = await cloud.take(5)
    await cloud.acknowledge([reading.id])
    await outbox.flush()
    assert outbox.stats().waiting == {"fault/live": 1}
    assert [got.payload for got in await portal.take(5)] == [b"broken"]


async def test_sink_that_was_taken_away_holds_nothing_any_more(open_outbox) -> None:
    outbox = await open_outbox()
    cloud = outbox.feed("cloud", ALL)
    outbox.feed("old", ALL)
    await outbox.submit_many([message("1"), message("2")])
    await cloud.acknowledge([(await cloud.take(2))[0].id])
    await outbox.retain_sinks({"cloud"})
    await outbox.flush()
    assert outbox.stats().depth == 1


async def test_messages_without_any_sink_wait(open_outbox) -> None:
    outbox = await open_outbox()
    await outbox.submit(message("early"))
    await outbox.close()
    outbox = await open_outbox()
    assert [got.payload for got in await outbox.feed("late", ALL).take(5)] == [b"early"]


async def test_given_back_messages_come_again_in_their_old_order(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    await outbox.submit_many([message(str(number)) for number in range(6)])
    taken = await feed.take(4)
    feed.give_back([taken[3].id, taken[0].id, taken[1].id])
    await feed.acknowledge([taken[2].id, taken[2].id, 999_999])
    assert [got.payload for got in await feed.take(9)] == [b"0", b"1", b"3", b"4", b"5"]


async def test_take_waits_until_something_is_submitted(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    waiting = asyncio.create_task(feed.take(5))
    await outbox.flush()
    assert not waiting.done()
    await outbox.submit(message("now"))
    assert [got.payload for got in await asyncio.wait_for(waiting, 10)] == [b"now"]


async def test_cancelled_take_loses_nothing(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    waiting = asyncio.create_task(feed.take(5))
    await outbox.flush()
    committed = asyncio.Event()
    outbox.submit_nowait(message("now"), lambda *_: (waiting.cancel(), committed.set()))
    await asyncio.wait_for(committed.wait(), 10)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [got.payload for got in await feed.take(5)] == [b"now"]


async def test_live_goes_before_bulk_and_faults_before_both(open_outbox) -> None:
    outbox = await open_outbox()
    await outbox.submit_many(
        [
            message("bulk", lane="bulk"),
            message("live"),
            message("fault", kind="fault"),
            message("track", kind="tracking"),
        ]
    )
    feed = outbox.feed("cloud", ALL)
    assert [(await feed.take(1))[0].payload for _ in range(4)] == [b"fault", b"live", b"track", b"bulk"]


async def test_backlog_longer_than_the_window_arrives_whole_and_in_order(open_outbox) -> None:
    outbox = await open_outbox()
    count = 3 * READY_MESSAGES
    feed = outbox.feed("cloud", ALL)
    await outbox.submit_many([message(str(number)) for number in range(count // 2)])
    for number in range(count // 2, count):
        outbox.submit_nowait(message(str(number)), lambda *_: None)
    taken = await take_all(feed, count)
    assert [int(got.payload) for got in taken] == list(range(count))
    await feed.acknowledge([got.id for got in taken])
    await outbox.flush()
    assert outbox.stats().depth == outbox.stats().bytes == 0


async def test_feed_holds_a_window_of_the_backlog_in_memory(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    for _ in range(10):
        await outbox.submit_many([message("x" * 10_000) for _ in range(100)])
    await feed.take(1)
    await outbox.flush()
    held = sum(len(got.payload) for lane in feed._lanes.values() for got in lane.ready)
    assert held < 3 << 20
    await take_all(feed, 999)


async def test_repeated_hand_in_is_answered_and_not_stored_again(open_outbox) -> None:
    outbox = await open_outbox()

    def numbered(number: int) -> Submission:
        return message(str(number), producer="run-1", producer_sequence=number)

    assert await outbox.submit_many([numbered(1), numbered(2), numbered(2)]) == [1, 2, 0]
    await outbox.close()
    outbox = await open_outbox()
    assert await outbox.submit_many([numbered(1), numbered(2), numbered(3)]) == [0, 0, 3]
    assert [got.payload for got in await outbox.feed("cloud", ALL).take(9)] == [b"1", b"2", b"3"]
    assert outbox.stats().services[0].repeated == 3


async def test_old_producers_are_forgotten_and_recent_ones_are_not(open_outbox) -> None:
    outbox = await open_outbox()
    for run in range(1100):
        outbox.submit_nowait(message(producer=f"run-{run}", producer_sequence=1), lambda *_: None)
        if run % 50 == 0:
            await outbox.flush()
    await outbox.flush()
    assert len(outbox._writer.ledger.producers) <= 1025
    assert await outbox.submit(message(producer="run-1099", producer_sequence=1)) == 0


async def test_parked_message_is_kept_with_its_reason_and_never_sent_again(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    await outbox.submit_many([message("bad", properties={"a": "b"}), message("good")])
    bad, good = await feed.take(2)
    await feed.park(bad.id, "too large")
    await feed.acknowledge([good.id])
    await outbox.close()
    outbox = await open_outbox()
    (parked,) = await outbox.parked()
    assert (parked.sink, parked.reason, parked.message.payload) == ("cloud", "too large", b"bad")
    assert (parked.message.message_id, parked.message.properties) == (bad.message_id, {"a": "b"})
    stats = outbox.stats()
    assert (stats.depth, stats.services[0].parked) == (0, {"cloud": 1})


async def test_message_parked_by_one_sink_still_goes_to_the_other(open_outbox) -> None:
    outbox = await open_outbox()
    cloud, portal = outbox.feed("cloud", ALL), outbox.feed("portal", ALL)
    await outbox.submit(message("odd"))
    await cloud.park((await cloud.take(1))[0].id, "malformed")
    await outbox.flush()
    assert [got.payload for got in await portal.take(1)] == [b"odd"]


async def test_full_outbox_drops_bulk_then_live_and_faults_last(open_outbox) -> None:
    outbox = await open_outbox(limits=Limits(bytes=1 << 20))
    kinds: list[dict[str, Any]] = [{"lane": "bulk"}, {}, {"kind": "fault"}]
    for fields in kinds:
        await outbox.submit_many([message("x" * 10_000, **fields) for _ in range(40)])
    stats = outbox.stats()
    assert stats.bytes <= 1 << 20
    assert stats.waiting["fault/live"] == stats.waiting["telemetry/live"] == 40
    dropped = stats.services[1].dropped["full"]
    assert stats.waiting["telemetry/bulk"] == 40 - dropped
    taken = await take_all(outbox.feed("cloud", ALL), stats.depth)
    assert [got.sequence for got in taken if got.lane == "bulk"] == list(range(dropped + 1, 41))
    await outbox.submit_many([message("x" * 10_000, kind="fault") for _ in range(100)])
    assert outbox.stats().waiting.keys() == {"fault/live"}


async def test_batch_larger_than_the_window_wakes_the_feed(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    await outbox.submit(message())
    await feed.take(1)
    waiting = asyncio.create_task(take_all(feed, READY_MESSAGES + 500))
    await outbox.submit_many([message() for _ in range(READY_MESSAGES + 500)])
    assert len(await asyncio.wait_for(waiting, 10)) == READY_MESSAGES + 500


async def test_dropped_messages_leave_a_feed_that_held_them_ready(open_outbox) -> None:
    outbox = await open_outbox(limits=Limits(bytes=1 << 20))
    feed = outbox.feed("cloud", ALL)
    await outbox.submit_many([message("x" * 10_000) for _ in range(90)])
    feed.give_back([got.id for got in await feed.take(90)])
    await outbox.submit_many([message("y" * 10_000) for _ in range(50)])
    depth = outbox.stats().depth
    taken = await take_all(feed, depth)
    assert [got.sequence for got in taken] == list(range(141 - depth, 141))
    await feed.acknowledge([got.id for got in taken])
    await outbox.flush()
    (service,) = outbox.stats().services
    assert service.acknowledged["cloud"] + service.dropped["full"] == service.submitted == 140


async def test_expired_message_is_dropped_and_counted(open_outbox, clock) -> None:
    outbox = await open_outbox()
    await outbox.submit_many([message("short", ttl_seconds=10), message("long", ttl_seconds=1000), message("ever")])
    clock.advance(11)
    feed = outbox.feed("cloud", ALL)
    assert [got.payload for got in await take_all(feed, 2)] == [b"long", b"ever"]
    await outbox.flush()
    stats = outbox.stats()
    assert (stats.depth, stats.services[0].dropped) == (2, {"expired": 1})


async def test_message_older_than_the_outbox_keeps_is_dropped_and_counted(open_outbox, clock) -> None:
    outbox = await open_outbox(limits=Limits(age_seconds=100))
    await outbox.submit(message("old"))
    clock.advance(101)
    await outbox.submit(message("new"))
    stats = outbox.stats()
    assert (stats.depth, stats.services[0].dropped) == (1, {"age": 1})


async def test_wall_clock_that_jumps_expires_nothing(open_outbox, clock) -> None:
    outbox = await open_outbox(limits=Limits(age_seconds=100))
    await outbox.submit(message("kept", ttl_seconds=100))
    clock.wall_seconds += 10 * 365 * 86_400
    clock.advance(40)
    await outbox.submit(message("next"))
    assert outbox.stats().depth == 2


async def test_earlier_boots_messages_age_from_the_start_of_this_boot(open_outbox, clock) -> None:
    outbox = await open_outbox(limits=Limits(age_seconds=1000))
    clock.advance(500)
    await outbox.submit_many([message("kept"), message("short", ttl_seconds=50)])
    await outbox.close()
    clock.reboot()
    outbox = await open_outbox(limits=Limits(age_seconds=1000))
    await outbox.submit(message("this boot"))
    assert outbox.stats().depth == 3
    clock.advance(60)
    await outbox.submit(message("later"))
    assert outbox.stats().services[0].dropped == {"expired": 1}
    got = (await outbox.feed("cloud", ALL).take(9))[0]
    assert (got.payload, got.boot) == (b"kept", "boot-1")


async def test_boots_without_messages_are_forgotten(open_outbox, clock, path) -> None:
    for _ in range(5):
        outbox = await open_outbox()
        feed = outbox.feed("cloud", ALL)
        await outbox.submit(message())
        await feed.acknowledge([(await feed.take(1))[0].id])
        await outbox.close()
        clock.reboot()
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT count(*) FROM boot").fetchone()
    connection.close()
    assert count <= 2


async def test_file_is_for_its_owner_alone(open_outbox, path) -> None:
    outbox = await open_outbox()
    await outbox.submit(message())
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("outbox.db*")}
    assert set(modes.values()) == {0o600}, modes


async def test_second_outbox_on_the_same_file_is_refused_with_the_reason(open_outbox) -> None:
    await open_outbox()
    with pytest.raises(StorageError, match="in use by another process"):
        await open_outbox()


async def test_newer_schema_is_refused_and_left_alone(open_outbox, path) -> None:
    await (await open_outbox()).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="newer Outstation"):
        await open_outbox()
    assert path.read_bytes() == before


async def test_database_that_is_no_outbox_is_refused_and_left_alone(open_outbox, path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (thing)")
    connection.close()
    with pytest.raises(StorageError, match="not an outbox"):
        await open_outbox()


async def test_folder_that_cannot_be_written_gives_one_sentence(open_outbox, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        await open_outbox(at=tmp_path / "missing" / "outbox.db")


async def test_closed_outbox_says_so(open_outbox) -> None:
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    waiting = asyncio.create_task(feed.take(1))
    await outbox.flush()
    await outbox.close()
    await outbox.close()
    with pytest.raises(StorageError, match="closed"):
        await outbox.submit(message())
    with pytest.raises(StorageError, match="closed"):
        await waiting


async def test_what_was_handed_in_before_closing_is_stored(open_outbox) -> None:
    outbox = await open_outbox()
    answers: list[int] = []
    for _ in range(100):
        outbox.submit_nowait(message(), lambda sequence, _: answers.append(sequence))
    await outbox.close()
    outbox = await open_outbox()
    assert (len(answers), outbox.stats().depth) == (100, 100)


async def test_callback_that_raises_disturbs_no_other(open_outbox) -> None:
    outbox = await open_outbox()
    loop = asyncio.get_running_loop()
    reported: list[Any] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def broken(sequence: int, error: StorageError | None) -> None:
        raise KeyError(sequence)

    outbox.submit_nowait(message(), broken)
    assert await outbox.submit(message()) == 2
    assert [type(error) for error in reported] == [KeyError]


@pytest.mark.parametrize("bytes_", [0, 1000])
def test_limits_that_make_no_sense_are_refused(bytes_: int) -> None:
    with pytest.raises(ValueError, match="at least 1048576"):
        Limits(bytes=bytes_)
    with pytest.raises(ValueError, match="age_seconds"):
        Limits(age_seconds=0)


async def test_writer_that_fails_is_noticed_and_not_waited_for(
    open_outbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = await open_outbox()

    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(outbox._writer, "_commit", fail)
    outbox.submit_nowait(Submission(service="a_py", payload=b"{}"), lambda *_: None)
    async with asyncio.timeout(10):
        with pytest.raises(StorageError, match="a fault of ours"):
            await outbox.watch()
        await outbox.close()
