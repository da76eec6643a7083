"""The main story on a real PostgreSQL, where there is one: a private server in the test's own folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from portal.history.service import HistoryService
from portal.settings import Settings
from portal.testing import RunningPortal
from portal.work import Caller

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
pytestmark = pytest.mark.skipif(not SERVERS, reason="no PostgreSQL server is installed (apt install postgresql)")
SOURCE = "from base_service import CustomService\n\n\nclass Reader(CustomService):\n    pass\n"


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """The driver looks for its password and certificate files when it connects."""


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that listens on a socket in a folder of its own."""
    folder = tmp_path_factory.mktemp("postgresql")
    # PostgreSQL refuses to run as root.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
        for parent in folder.parents[:3]:
            if parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    binaries = SERVERS[-1].parent
    data = folder / "data"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    subprocess.run([*user, binaries / "initdb", "-D", data, "-A", "trust", "-U", "outstation", "-N"], **quiet)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    control = [*user, binaries / "pg_ctl", "-D", data, "-w", "-s", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+asyncpg://outstation@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key file that belongs to the database."""
    return tmp_path_factory.mktemp("portal")


@pytest.fixture
async def running(data: Path, postgresql: str) -> AsyncIterator[RunningPortal]:
    async with RunningPortal(Settings(data=data, database_url=postgresql)) as running:
        yield running


async def test_main_story_on_postgresql(running: RunningPortal) -> None:
    async with running.owner() as owner:
        await owner.done("POST", "/api/services", {"file": "Reader.py", "from": "import", "source": SOURCE})
        await owner.done("PATCH", "/api/services/reader_py", {"properties": {"security": [{"id": "token"}]}})
        activity = {"service_id": "reader_py", "host": "#pumps", "security": {"token": "x"}}
        await owner.done("POST", "/api/flows", {"name": "F", "activities": [activity]})
        async with running.enrolled(owner, "pump-1", ["Pumps"]) as node:
            [service] = node.manifest().services
            fault = {"stream": "s", "service": "reader_py", "sequence": 2**40, "text": "bad\x00text", "time": 0}
            for _ in range(2):
                assert (await node.invoke("faults", [fault]))["result"] is None
            await node.invoke("serviceStates", [{"id": "reader_py", "state": "running", "since": 1_800_000_000.5}])
            await node.invoke("facts", {"text": "a\x00b"})
            shown = await owner.done("GET", f"/api/nodes/{node.id}")
            found = await owner.done("GET", "/api/nodes?search=192.0.2.7&tag=pumps")
            faults = (await owner.done("GET", "/api/faults"))["items"]
            events = (await owner.done("GET", f"/api/nodes/{node.id}/events?limit=2"))["items"]
        await owner.done("DELETE", f"/api/nodes/{node.id}")
        left = await owner.done("GET", "/api/nodes")
    assert service.config.security_config[0].value == "x"
    assert shown["services"][0]["since"] == "2027-01-15T08:00:00.500000Z"
    assert [item["name"] for item in found["items"]] == ["pump-1"]
    assert [item["text"] for item in faults] == ["badtext"]
    assert len(events) == 2
    assert left["items"] == []


async def test_tracking_counts_and_housekeeping_on_postgresql(running: RunningPortal) -> None:
    history = HistoryService(running.portal.database, keep=timedelta(days=90), most=2, batch=2)
    async with running.owner() as owner:
        async with running.enrolled(owner, "tracked") as node:
            place = {"stream": "s", "service": "x_py", "kind": "tracking"}
            records = [{**place, "sequence": number, "record": {"n": number, "nul": "\x00"}} for number in range(7)]
            faults = [{**place, "kind": "fault", "sequence": number, "text": "jammed"} for number in range(3)]
            for _ in range(2):
                assert (await node.invoke("faults", records + faults))["result"] is None
            assert len((await owner.done("GET", "/api/tracking"))["items"]) == 7
            await node.invoke("facts", {"outbox": {"acknowledged": 5}})
            counted = await owner.done("GET", "/api/nodes/counts")
            async with running.portal.reading(Caller(running.portal.organization_id, "alice", "owner")) as work:
                fleet = [each.name for each in await work.nodes.fleet(limit=1)]
            await history.trim(running.portal.now())
            left = (await owner.done("GET", "/api/tracking"))["items"]
            await history.trim(running.portal.now() + timedelta(days=91))
            assert (await owner.done("GET", "/api/tracking"))["items"] == []
        await owner.done("DELETE", f"/api/nodes/{node.id}")
    assert [(item["sequence"], item["record"]) for item in left] == [(n, {"n": n, "nul": "\x00"}) for n in (6, 5)]
    assert counted == {
        "nodes": 1,
        "online": 1,
        "offline": 0,
        "disabled": 0,
        "delivering": 1,
        "faulty": 1,
        "faults": 3,
    }
    assert fleet == ["tracked"]


async def test_one_code_makes_one_node_even_when_two_use_it_at_once(running: RunningPortal) -> None:
    async with running.owner() as owner, running.connect() as one, running.connect() as two:
        made = await owner.done("POST", "/api/verification-codes", {})
        outcomes = await asyncio.gather(
            one.enrol(made["code"], "one"), two.enrol(made["code"], "two"), return_exceptions=True
        )
        nodes = (await owner.done("GET", "/api/nodes"))["items"]
    assert [isinstance(outcome, ConnectionError) for outcome in outcomes].count(True) == 1
    assert len([node for node in nodes if node["name"] in ("one", "two")]) == 1
