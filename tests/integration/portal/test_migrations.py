from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from agent.errors import StorageError
from portal.database import Database
from portal.faults.models import Fault
from portal.migrations import alembic_config, migrate
from portal.models import Base
from portal.nodes.models import Node, NodeEvent
from portal.tracking.models import TrackingRecord


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """Migrations run in a thread of their own, where they may block."""


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path / 'portal.db'}"


def on(url: str, work: Any) -> Any:
    database = Database(url)

    async def run() -> Any:
        try:
            async with database.engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await database.close()

    return asyncio.run(run())


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, Base.metadata))


def test_empty_database_is_brought_to_what_the_models_say(tmp_path: Path) -> None:
    told: list[str] = []
    migrate(url_of(tmp_path), told.append)
    assert on(url_of(tmp_path), differences) == []
    assert told[0].startswith("Database: updating from empty to ")
    assert told[-1] == "Database: up to date."


def test_database_that_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    migrate(url_of(tmp_path), lambda _: None)
    told: list[str] = []
    migrate(url_of(tmp_path), told.append)
    assert told == []


def test_data_of_the_first_revision_is_kept_and_can_be_used(tmp_path: Path) -> None:
    def first(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        now = "2026-01-01 12:00:00.000000"
        for table, values in {
            "organizations": ("o", "Water works", now, b"key", b"public", False, 30, 3),
            "faults": (1, "o", "n", "s1", "reader_py", 7, "b1", "666", "Door open", "", now, now),
            "node_events": (1, "o", "n", now, "fault", "reader_py: Door open", '{"fault_id": 1}'),
        }.items():
            if table == "faults":
                insert_node(connection, now)
            marks = ", ".join("?" * len(values))
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", values)

    on(url_of(tmp_path), first)
    told: list[str] = []
    migrate(url_of(tmp_path), told.append)
    assert told[0].startswith("Database: updating from 0001 to ")
    assert on(url_of(tmp_path), differences) == []

    def look(connection: Connection) -> Any:
        with Session(connection) as session:
            [node] = session.scalars(select(Node))
            [fault] = session.scalars(select(Fault))
            [event] = session.scalars(select(NodeEvent))
            place = {"stream": "s1", "service": "reader_py", "sequence": 7, "boot": "b1", "at": fault.at}
            session.add(
                TrackingRecord(
                    organization_id="o", node_id=node.id, received_at=fault.received_at, record={"ticket": 7}, **place
                )
            )
            session.commit()
            [record] = session.scalars(select(TrackingRecord))
            return (
                node.name,
                node.facts,
                node.readings_delivered,
                fault.text,
                fault.sequence,
                event.detail,
                record.record,
            )

    assert on(url_of(tmp_path), look) == (
        "pump-1",
        {"outbox": {"depth": 3}},
        0,
        "Door open",
        7,
        {"fault_id": 1},
        {"ticket": 7},
    )


def insert_node(connection: Connection, now: str) -> None:
    """A node as the first revision has it."""
    values = {
        "id": "n",
        "organization_id": "o",
        "name": "pump-1",
        "name_key": "pump-1",
        "kind": "outstation",
        "enabled": True,
        "tracking": True,
        "console": False,
        "created_at": now,
        "online": False,
        "machine_name": "",
        "agent_version": "",
        "platform": "",
        "ip_addresses": "[]",
        "mac_addresses": "[]",
        "facts": '{"outbox": {"depth": 3}}',
        "deployment": "",
        "reported_deployment": "",
        "deployment_state": "unknown",
        "deployment_error": "",
    }
    marks = ", ".join("?" * len(values))
    connection.exec_driver_sql(f"INSERT INTO nodes ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def test_revisions_can_be_taken_back(tmp_path: Path) -> None:
    migrate(url_of(tmp_path), lambda _: None)

    def downgrade(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    on(url_of(tmp_path), downgrade)
    tables = on(url_of(tmp_path), lambda connection: connection.dialect.get_table_names(connection))
    assert tables == ["alembic_version"]


def test_database_of_a_newer_portal_is_refused_and_left_alone(tmp_path: Path) -> None:
    migrate(url_of(tmp_path), lambda _: None)
    on(url_of(tmp_path), lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="newer portal"):
        migrate(url_of(tmp_path), lambda _: None)
    [row] = on(url_of(tmp_path), lambda c: c.exec_driver_sql("SELECT version_num FROM alembic_version").all())
    assert row == ("9999",)


def test_database_is_in_wal_mode_with_foreign_keys_on(tmp_path: Path) -> None:
    migrate(url_of(tmp_path), lambda _: None)
    pragmas = on(
        url_of(tmp_path),
        lambda c: [c.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "foreign_keys")],
    )
    assert pragmas == ["wal", 1]


async def test_writers_take_turns_as_they_came_and_readers_wait_for_nobody(tmp_path: Path) -> None:
    await asyncio.to_thread(migrate, url_of(tmp_path), lambda _: None)
    database = await asyncio.to_thread(Database, url_of(tmp_path))
    count = "SELECT count(*) FROM alembic_version"

    async def write(number: int) -> None:
        async with database.writing() as session:
            connection = await session.connection()
            await connection.exec_driver_sql(count)
            await connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{number}')")

    async with database.reading() as session:
        connection = await session.connection()
        before = (await connection.exec_driver_sql(count)).scalar_one()
        await asyncio.gather(*(write(number) for number in range(100, 300)))
        during = (await connection.exec_driver_sql(count)).scalar_one()
    async with database.reading() as session:
        rows = (
            await (await session.connection()).exec_driver_sql("SELECT version_num FROM alembic_version ORDER BY rowid")
        ).all()
    await database.close()
    assert (before, during) == (1, 1)
    assert [row[0] for row in rows[1:]] == [str(number) for number in range(100, 300)]
