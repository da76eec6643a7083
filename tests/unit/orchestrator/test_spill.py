"""Saved submissions, taken in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from blockbuster import BlockingError

from agent.errors import StorageError
from agent.orchestrator import spill
from agent.orchestrator.spill import take_in_spills
from agent.outbox.message import Submission
from agent.paths import Paths

pytestmark = pytest.mark.usefixtures("no_blocking_calls")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(state=tmp_path, runtime=tmp_path / "run")
    paths.spill.mkdir()
    return paths


class Store:
    def __init__(self, refusal: StorageError | None = None) -> None:
        self.taken: list[Submission] = []
        self.refusal = refusal

    async def submit_many(self, submissions: Sequence[Submission]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken += submissions


def save(paths: Paths, service: str, producer: str, *numbers: int) -> Path:
    path = paths.spill / f"{service}-{producer}.msgpack"
    path.write_bytes(
        msgspec.msgpack.encode(
            [
                Submission(service=service, payload=b"{}", producer=producer, producer_sequence=number)
                for number in numbers
            ]
        )
    )
    return path


async def test_files_are_taken_in_and_deleted(paths):
    save(paths, "meter_py", "a", 4, 5)
    save(paths, "other_py", "b", 1)
    store = Store()
    assert await take_in_spills(paths, store.submit_many) == 3
    assert [(one.service, one.producer, one.producer_sequence) for one in store.taken] == [
        ("meter_py", "a", 4),
        ("meter_py", "a", 5),
        ("other_py", "b", 1),
    ]
    assert not list(paths.spill.iterdir())


async def test_only_the_named_services_files_are_taken(paths):
    save(paths, "meter_py", "a", 1)
    other = save(paths, "meter_py-2_py", "b", 1)
    assert await take_in_spills(paths, Store().submit_many, service="meter_py") == 1
    assert list(paths.spill.iterdir()) == [other]


async def test_damaged_file_is_set_aside_and_the_others_are_taken(paths):
    damaged = save(paths, "a_py", "a", 1)
    damaged.write_bytes(damaged.read_bytes()[:-3])
    save(paths, "b_py", "b", 1)
    assert await take_in_spills(paths, Store().submit_many) == 1
    assert [path.name for path in paths.spill.iterdir()] == ["a_py-a.damaged"]


async def test_what_cannot_be_stored_stays_for_the_next_time(paths):
    path = save(paths, "meter_py", "a", 1)
    store = Store(StorageError("The disk is full."))
    assert await take_in_spills(paths, store.submit_many) == 0
    assert path.exists()
    store.refusal = None
    assert await take_in_spills(paths, store.submit_many) == 1


async def test_detector_notices_a_file_that_is_read_on_the_loop(paths):
    save(paths, "meter_py", "a", 1)
    with pytest.raises(BlockingError):
        spill._read(paths.spill, None)


async def test_no_folder_is_no_spill(tmp_path):
    assert await take_in_spills(Paths(state=tmp_path, runtime=tmp_path), Store().submit_many) == 0
