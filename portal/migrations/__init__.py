"""The database's revisions, and bringing a database up to date."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from agent.errors import StorageError
from portal.database import Database

# Any number, the same in every portal process: only one of them migrates.
_LOCK = 7_103_501_882


def migrate(url: str, tell: Callable[[str], None]) -> None:
    """Bring the database up to date, telling each step; blocks, so call it in a thread of its own.

    Raises StorageError when the database cannot be opened, or was written by a newer portal; it is as it was then.
    """
    asyncio.run(_migrate(url, tell))


def alembic_config() -> Config:
    """Alembic's configuration: the revisions beside this file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


async def _migrate(url: str, tell: Callable[[str], None]) -> None:
    database = Database(url)
    try:
        if database.is_sqlite:
            _make_private(database.engine.url.database)
        async with database.engine.begin() as connection:
            if not database.is_sqlite:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            await connection.run_sync(_upgrade, tell)
    except (DBAPIError, OSError) as error:
        reason = str(error.orig if isinstance(error, DBAPIError) else error).splitlines()[0]
        raise StorageError(
            f"The database cannot be used: {reason}. Check --database-url (PORTAL_DATABASE_URL) and that the "
            "portal's user may write there."
        ) from error
    finally:
        await database.close()


def _make_private(path: str | None) -> None:
    """Make the file before SQLite does, which would let everybody read it; its other files take over the mode."""
    if path and not path.startswith((":", "file:")):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _upgrade(connection: Connection, tell: Callable[[str], None]) -> None:
    config = alembic_config()
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    newest = script.get_current_head()
    if current == newest:
        return
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise StorageError(
            f"The database is at revision {current}, which this portal does not know: a newer portal wrote it. "
            "Install that version again, or restore a backup."
        )
    tell(f"Database: updating from {current or 'empty'} to {newest} …")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    tell("Database: up to date.")
