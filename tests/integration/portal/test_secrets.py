"""A walk through everything that has a secret in it; then nothing that can be seen may hold one."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from portal.testing import PASSWORD, PortalClient, RunningPortal

SHARED_KEY = "c2hhcmVkLWtleS1vZi1hLWRldmljZQ=="
TOKEN = "t0p-secret-token-of-a-service"


async def test_secrets_are_in_no_answer_no_log_and_not_plain_in_the_database(
    running: RunningPortal, owner: PortalClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cookie = next(iter(owner.session.cookie_jar)).value
    await owner.done("POST", "/api/services", {"file": "Reader.py"})
    await owner.done("PATCH", "/api/services/reader_py", {"properties": {"security": [{"id": "token"}]}})
    activity = {"service_id": "reader_py", "host": "#ALL", "security": {"token": TOKEN}}
    flow = await owner.done("POST", "/api/flows", {"name": "F", "activities": [activity]})
    made = await owner.done("POST", "/api/verification-codes", {})
    async with running.connect() as node:
        with pytest.raises(ConnectionError):
            await node.enrol("WRONG-WRONG")
        await node.enrol(made["code"])
        await node.sign_in()
        script_token = node.settings["scriptToken"]
        connection = f"HostName=h;DeviceId=d;SharedAccessKey={SHARED_KEY}"
        await owner.done("PUT", f"/api/nodes/{node.id}/iot-hub", {"connection_string": connection})
        await node.called("updateDeployment")
        await owner.call("POST", "/api/session", {"name": "alice", "password": PASSWORD + "x"})
        answers = [
            (await owner.call("GET", path)).text
            for path in (
                "/api/me",
                "/api/organization",
                "/api/nodes",
                f"/api/nodes/{node.id}",
                f"/api/nodes/{node.id}/events",
                f"/api/flows/{flow['id']}",
                "/api/flows",
                "/api/services/reader_py",
                "/api/console",
                "/api/openapi.json",
            )
        ]
    shown = "\n".join([*answers, caplog.text])
    stored = database_text(tmp_path / "portal" / "portal.db")
    setup = running.portal.setup_url
    assert setup is not None
    secrets = {
        "password": PASSWORD,
        "session": cookie,
        "security property": TOKEN,
        "shared key": SHARED_KEY,
        "script token": script_token,
        "code": made["code"].replace("-", ""),
        "set-up token": setup.partition("token=")[2],
    }
    for name, secret in secrets.items():
        assert secret not in shown, name
        assert secret not in stored, name
    assert made["code"] not in shown


def database_text(path: Path) -> str:
    """Every value of every table, binary ones too."""
    connection = sqlite3.connect(path)
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        values = [value for table in tables for row in connection.execute(f'SELECT * FROM "{table}"') for value in row]
    finally:
        connection.close()
    return "\n".join(value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in values)


async def test_error_of_the_database_says_nothing_of_the_values(running: RunningPortal) -> None:
    with pytest.raises(DBAPIError) as failed:
        async with running.portal.database.reading() as session:
            await session.execute(text("SELECT :secret FROM no_such_table"), {"secret": TOKEN})
    assert TOKEN not in str(failed.value)
