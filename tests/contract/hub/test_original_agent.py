"""An agent of the original product, replayed from a recording of the unmodified agent (version 1.0.25).

`original_agent.jsonl` holds the exchange record by record. The agent's records are sent as they were, with the
identity that our portal handed out put in; the portal's answers must come in the recorded order and have every field
of the recorded ones, of the same kind. More fields are allowed: the original ignores them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.hub import protocol
from portal.testing import Answer, HubNode, PortalClient, RunningPortal

RECORDING = Path(__file__).with_name("original_agent.jsonl")
SOURCE = "from base_service import CustomService\n\n\nclass Bench(CustomService):\n    pass\n"
RECORDED_NAME = "bench-node-001"
RECORDED_ORGANIZATION = "11111111-2222-3333-4444-555555555555"
RECORDED_ID = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def entries() -> Iterator[dict[str, Any]]:
    with RECORDING.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def misfit(recorded: Any, ours: Any, where: str = "") -> str | None:
    """Where our value lacks something of the recorded one; None when it fits."""
    if recorded is None:
        return None if ours is None else f"{where} is {ours!r}, not null"
    if isinstance(recorded, dict):
        if not isinstance(ours, dict):
            return f"{where} is no object"
        for key, value in recorded.items():
            if key not in ours:
                return f"{where}.{key} is missing"
            if found := misfit(value, ours[key], f"{where}.{key}"):
                return found
        return None
    if isinstance(recorded, list):
        if not isinstance(ours, list) or len(ours) < len(recorded):
            return f"{where} is not a list of {len(recorded)}"
        pairs = enumerate(zip(recorded, ours, strict=False))
        return next((found for index, (a, b) in pairs if (found := misfit(a, b, f"{where}[{index}]"))), None)
    same = type(recorded) is type(ours)
    return None if same else f"{where} is {ours!r}, recorded was {recorded!r}"


class Replay:
    """Plays the agent's side; what people do in the portal is done when the recording shows its effect."""

    def __init__(self, running: RunningPortal, owner: PortalClient, stack: AsyncExitStack) -> None:
        self._running = running
        self._owner = owner
        self._stack = stack
        self._connection: AsyncExitStack | None = None
        self._node: HubNode
        self._identity: dict[str, str] = {}
        self._question = ""
        self._asked: asyncio.Task[Answer] | None = None
        self.answers: list[Answer] = []
        self.calls: list[str] = []

    async def play(self, entry: dict[str, Any]) -> None:
        if entry.get("connect"):
            await self._connect()
        elif "get" in entry:
            status, body = await self._running.get(self._ours(entry["get"]))
            assert (status, body.decode()) == (entry["status"], SOURCE)
        elif "protocol" in entry["record"] or entry["record"] == {}:
            pass  # the handshake, which `connect` has done
        elif entry["from"] == "node":
            await self._node.send_text(json.dumps(self._ours(entry["record"])) + protocol.RECORD_SEPARATOR)
        elif entry["record"]["type"] != 6:
            await self._expect(entry["record"])

    async def _connect(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()
            if self._asked is not None:
                self.answers.append(await self._asked)
            await self._owner.done("PATCH", f"/api/nodes/{self._identity['id']}", {"console": True})
        self._connection = await self._stack.enter_async_context(AsyncExitStack())
        self._node = await self._connection.enter_async_context(self._running.connect())

    async def _expect(self, recorded: dict[str, Any]) -> None:
        await self._cause(recorded)
        ours = await self._node.record(lambda record: record["type"] != 6)
        assert ours["type"] == recorded["type"], (recorded, ours)
        assert (found := misfit(recorded, ours)) is None, found
        if ours["type"] == 1:
            self.calls.append(ours["target"])
            assert ours["target"] == recorded["target"]
            if ours["target"] in ("ping", "reportState"):
                [self._question] = ours["arguments"]
            elif ours["target"] == "nodeCreated":
                document = ours["arguments"][0]
                self._identity |= {key: document[key] for key in ("id", "nodeName", "organizationId", "sas")}
            elif ours["target"].startswith("change"):
                assert ours["arguments"] == recorded["arguments"]
        elif self._asked is not None and self._asked.done():
            self.answers.append(await self._asked)
            self._asked = None

    async def _cause(self, recorded: dict[str, Any]) -> None:
        match recorded.get("target"):
            case "nodeCreated":
                [waiting] = await self._owner.done("GET", "/api/announcements")
                form = {"name": RECORDED_NAME, "tags": ["bench"]}
                await self._owner.done("POST", f"/api/announcements/{waiting['id']}/claim", form)
            case "ping":
                self._ask("ping")
            case "reportState":
                self._ask("report_state")
            case "restart":
                self._ask("restart")
            case "changeTracking":
                await self._change(tracking=recorded["arguments"][0])
            case "changeDebug":
                await self._change(console=recorded["arguments"][0])
            case "changeState":
                await self._change(enabled=recorded["arguments"][0] == "Active")

    def _ask(self, command: str) -> None:
        path = f"/api/nodes/{self._identity['id']}/commands"
        self._asked = asyncio.create_task(self._owner.call("POST", path, {"command": command}))

    async def _change(self, **change: bool) -> None:
        await self._owner.done("PATCH", f"/api/nodes/{self._identity['id']}", change)

    def _ours(self, value: Any) -> Any:
        """A recorded value with our portal's identity in it."""
        if isinstance(value, dict):
            return {key: self._identity["sas"] if key == "sas" else self._ours(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._ours(item) for item in value]
        if not isinstance(value, str):
            return value
        for recorded, key in ((RECORDED_ORGANIZATION, "organizationId"), (RECORDED_ID, "id")):
            value = value.replace(recorded, self._identity.get(key, recorded))
        return value.replace("conn-42", self._question)


async def test_recorded_exchange_plays_the_same_against_our_portal(running: RunningPortal, owner: PortalClient) -> None:
    await owner.done("POST", "/api/services", {"file": "Bench.py", "from": "import", "source": SOURCE})
    definitions = {"static": [{"id": "interval", "type": "string"}]}
    await owner.done("PATCH", "/api/services/bench_py", {"properties": definitions})
    activity = {"service_id": "bench_py", "host": "#bench", "static": {"interval": "1000"}}
    await owner.done("POST", "/api/flows", {"name": "bench", "activities": [activity]})
    async with AsyncExitStack() as stack:
        replay = Replay(running, owner, stack)
        for entry in entries():
            await replay.play(entry)
    assert replay.calls.count("signInMessage") == 3
    assert [answer.body["outcome"] for answer in replay.answers] == ["done", "done", "done"]
    [node] = (await owner.done("GET", "/api/nodes"))["items"]
    assert (node["name"], node["kind"], node["agent_version"]) == (RECORDED_NAME, "original", "1.0.25")
    lines = [line["text"] for line in await owner.done("GET", "/api/console")]
    assert lines[:2] == ["Started", "Started Python Node agent for microServicebus.com"]


@pytest.fixture
async def original(running: RunningPortal, owner: PortalClient) -> dict[str, Any]:
    """What an original agent keeps after it was enrolled."""
    made = await owner.done("POST", "/api/verification-codes", {"tags": ["bench"]})
    async with running.connect() as node:
        await node.send("createNode", made["code"], "host", RECORDED_NAME)
        created: dict[str, Any] = (await node.called("nodeCreated"))[0]
    return created


def host_data(created: dict[str, Any], **changes: Any) -> dict[str, Any]:
    [recorded] = next(
        entry["record"]["arguments"] for entry in entries() if entry.get("record", {}).get("target") == "signInAsync"
    )
    identity = {"Name": created["nodeName"], "OrganizationID": created["organizationId"], "sas": created["sas"]}
    return {**recorded, **identity, **changes}


async def test_secret_is_stored_as_a_hash_only(running: RunningPortal, original: dict[str, Any]) -> None:
    async with running.portal.database.engine.connect() as connection:
        stored = (await connection.exec_driver_sql("SELECT sas_hash FROM nodes")).scalar_one()
    assert original["sas"] not in stored


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sas": "wrong"}, protocol.ERROR_SECRET_NOT_VALID),
        ({"sas": ""}, protocol.ERROR_SECRET_NOT_VALID),
        ({"Name": "unknown"}, protocol.ERROR_NODE_NOT_FOUND),
        ({"OrganizationID": RECORDED_ORGANIZATION}, protocol.ERROR_ORGANIZATION_NOT_FOUND),
    ],
)
async def test_codes_that_make_an_agent_forget_itself_are_sent_only_when_true(
    running: RunningPortal, original: dict[str, Any], changes: dict[str, str], code: int
) -> None:
    async with running.connect() as node:
        await node.send("signInAsync", host_data(original, **changes))
        assert (await node.called("errorMessage"))[1] == code
        await node.send("signInAsync", host_data(original))
        assert (await node.called("signInMessage"))[0]["nodeName"] == RECORDED_NAME


async def test_agents_are_refused_but_forget_nothing_while_the_organisation_does_not_take_them(
    running: RunningPortal, owner: PortalClient, original: dict[str, Any]
) -> None:
    await owner.done("PATCH", "/api/organization", {"allow_original_agents": False})
    async with running.connect() as node:
        await node.send("signInAsync", host_data(original))
        refused = await node.called("errorMessage")
    path = f"/api/Scripts/{original['organizationId']}/Bench.py"
    assert refused[1] == protocol.ERROR_NODE_LOCKED
    assert (await running.get(path))[0] == 401


async def test_changed_assignment_restarts_an_original_agent(
    running: RunningPortal, owner: PortalClient, original: dict[str, Any]
) -> None:
    await owner.done("POST", "/api/services", {"file": "Bench.py", "from": "import", "source": SOURCE})
    async with running.connect() as node:
        await node.send("signInAsync", host_data(original))
        assert (await node.called("signInMessage"))[0]["itineraries"] == []
        activity = {"service_id": "bench_py", "host": RECORDED_NAME, "version": "0.1"}
        await owner.done("POST", "/api/flows", {"name": "bench", "activities": [activity]})
        assert await node.called("restart") == []
    async with running.connect() as node:
        await node.send("signInAsync", host_data(original))
        [settings] = await node.called("signInMessage")
    data = settings["itineraries"][0]["activities"][0]["userData"]
    assert (data["type"], data["bindToVersion"], data["version"]) == ("Bench_py", True, "0.1")
    assert (await running.get(f"/api/Scripts/{original['organizationId']}/Bench.py/0.1"))[1].decode() == SOURCE


async def test_original_agent_is_not_renamed_because_it_signs_in_by_its_name(
    owner: PortalClient, original: dict[str, Any]
) -> None:
    answer = await owner.call("PATCH", f"/api/nodes/{original['id']}", {"name": "other"})
    assert (answer.status, answer.code) == (409, "node_name_fixed")
