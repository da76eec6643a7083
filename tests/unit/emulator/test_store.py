import asyncio
import sqlite3
import stat

import pytest

from agent.errors import StorageError
from emulator.store import Store


async def put(store: Store, count: int, *, first: int = 1) -> list[bool]:
    """Store messages and wait for what became of each."""
    done: list[asyncio.Future[bool]] = [asyncio.get_running_loop().create_future() for _ in range(count)]
    for number, future in enumerate(done, first):
        store.append(
            device="pi-1",
            arrived=float(number),
            payload=b'{"edge_time": %d}' % (number - 1),
            system={"message_id": str(number)},
            properties={"os-node": "n", "os-stream": "s", "os-service": "v", "os-sequence": str(number)},
            done=future.set_result,
        )
    return await asyncio.gather(*done)


async def test_what_was_reported_stored_is_there_after_opening_again(tmp_path):
    store = await Store.open(tmp_path / "hub.db")
    assert await put(store, 50) == [True] * 50
    before = await store.report()
    await store.close()

    again = await Store.open(tmp_path / "hub.db")

    assert await again.report() == before
    assert again.last_id == 50
    assert [message.system["message_id"] for message in await again.messages(after=48)] == ["49", "50"]
    await again.close()


async def test_the_file_is_its_owners_alone(tmp_path):
    store = await Store.open(tmp_path / "hub.db")
    await put(store, 1)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await store.close()


async def test_old_contents_go_and_the_ledger_stays(tmp_path):
    store = await Store.open(tmp_path / "hub.db", keep_messages=10)
    for start in range(1, 2201, 200):
        await put(store, 200, first=start)

    kept = await store.messages(limit=5000)

    assert kept[-1].id == 2200
    assert len(kept) < 1300
    assert (await store.report()).distinct == 2200
    await store.close()


async def test_a_commit_that_fails_is_told_and_leaves_ledger_and_file_as_they_were(tmp_path):
    store = await Store.open(tmp_path / "hub.db")
    await put(store, 3)

    await store.call(
        lambda connection: connection.execute(
            "CREATE TEMP TRIGGER full BEFORE INSERT ON message BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    )
    assert await put(store, 2, first=4) == [False, False]
    with pytest.raises(StorageError, match="syntax error"):
        await store.call(lambda connection: connection.execute("DELETE nothing"))
    await store.call(lambda connection: connection.execute("DROP TRIGGER full"))

    assert (await store.report()).received == 3
    assert await put(store, 2, first=4) == [True, True]
    assert (await store.report()).distinct == 5
    await store.close()


async def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path):
    (tmp_path / "hub.db").write_text("rubbish" * 1000)
    with pytest.raises(StorageError, match="move it away"):
        await Store.open(tmp_path / "hub.db")
    assert (tmp_path / "hub.db").read_text() == "rubbish" * 1000


async def test_a_file_of_another_version_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "hub.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StorageError, match="format 99"):
        await Store.open(tmp_path / "hub.db")


async def test_work_after_the_end_is_refused(tmp_path):
    store = await Store.open(tmp_path / "hub.db")
    waiting = asyncio.create_task(store.arrival(0))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        await waiting
    with pytest.raises(StorageError, match="closed"):
        await store.report()
