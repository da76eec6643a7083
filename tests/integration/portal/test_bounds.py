from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import event

from agent.hub.protocol import ERROR_INVALID_REQUEST, RECORD_LIMIT_BYTES, RECORD_SEPARATOR, RECORDS_PENDING_LIMIT
from portal.hub.limits import HubLimits
from portal.settings import Settings
from portal.testing import HubNode, PortalClient, RunningPortal


@pytest.fixture
async def healthy(running: RunningPortal, owner: PortalClient) -> AsyncIterator[HubNode]:
    """A node whose connection must survive what others do."""
    async with running.enrolled(owner, "healthy") as node:
        yield node
        assert (await node.invoke("heartBeat", "still here"))["result"] is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json" + RECORD_SEPARATOR, "not of the SignalR JSON protocol"),
        ('{"type":99}' + RECORD_SEPARATOR, "not of the SignalR JSON protocol"),
        ('{"type":1,"target":7}' + RECORD_SEPARATOR, "not of the SignalR JSON protocol"),
        ("[]" + RECORD_SEPARATOR, "not of the SignalR JSON protocol"),
        ("x" * (RECORD_LIMIT_BYTES + 1), "longer than"),
        (('{"type":6}' + RECORD_SEPARATOR) * (RECORDS_PENDING_LIMIT + 1), "hub records arrived in one frame"),
    ],
)
async def test_malformed_or_oversize_records_close_that_connection_only(
    running: RunningPortal, healthy: HubNode, text: str, reason: str
) -> None:
    async with running.connect() as rude:
        await rude.send_text(text)
        assert reason in str(await rude.closed())


async def test_binary_frame_closes_the_connection(running: RunningPortal, healthy: HubNode) -> None:
    async with running.connect() as rude:
        await rude.websocket.send_bytes(b"\x00\x01")
        assert "binary" in str(await rude.closed())


async def test_huge_frame_closes_the_connection(running: RunningPortal, healthy: HubNode) -> None:
    async with running.connect() as rude:
        await rude.send_text("x" * (3 * RECORD_LIMIT_BYTES))
        assert await rude.closed() is None


async def test_deeply_nested_record_closes_that_connection_only(running: RunningPortal, healthy: HubNode) -> None:
    async with running.connect() as rude:
        nested = "[" * 100_000 + "]" * 100_000
        await rude.send_text(f'{{"type":1,"target":"facts","arguments":{nested}}}{RECORD_SEPARATOR}')
        assert await rude.closed() is not None


async def test_record_in_pieces_is_put_together(running: RunningPortal, healthy: HubNode) -> None:
    record = json.dumps({"type": 1, "target": "heartBeat", "arguments": ["piece"]}) + RECORD_SEPARATOR
    for piece in (record[:10], record[10:20], record[20:]):
        await healthy.send_text(piece)
    assert await healthy.called("heartBeat") == ["piece"]


@pytest.mark.parametrize(
    "handshake",
    [
        "hello" + RECORD_SEPARATOR,
        '{"protocol":"messagepack","version":1}' + RECORD_SEPARATOR,
        '{"protocol":"json","version":2}' + RECORD_SEPARATOR,
        "null" + RECORD_SEPARATOR,
        '{"protocol":"json","version":1}',
    ],
)
async def test_wrong_handshake_is_refused_with_a_reason(
    running: RunningPortal, owner: PortalClient, handshake: str
) -> None:
    negotiated = await owner.done("POST", "/nodeHub/negotiate")
    async with owner.session.ws_connect(f"{running.url}/nodeHub?id={negotiated['connectionId']}") as websocket:
        await websocket.send_str(handshake)
        answer = await websocket.receive_json(loads=lambda text: json.loads(text.rstrip(RECORD_SEPARATOR)), timeout=10)
        end = await websocket.receive(timeout=10)
    assert answer["error"]
    assert end.type is aiohttp.WSMsgType.CLOSE


async def test_handshake_of_newer_clients_of_the_original_names_version_0(
    running: RunningPortal, owner: PortalClient
) -> None:
    negotiated = await owner.done("POST", "/nodeHub/negotiate")
    async with owner.session.ws_connect(f"{running.url}/nodeHub?id={negotiated['connectionId']}") as websocket:
        await websocket.send_str('{"protocol":"json","version":0}' + RECORD_SEPARATOR)
        assert await websocket.receive_str(timeout=10) == "{}" + RECORD_SEPARATOR


async def test_connection_id_is_good_once(running: RunningPortal, owner: PortalClient) -> None:
    negotiated = await owner.done("POST", "/nodeHub/negotiate")
    url = f"{running.url}/nodeHub?id={negotiated['connectionId']}"
    async with owner.session.ws_connect(url):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await owner.session.ws_connect(url)
    assert refused.value.status == 403


@pytest.mark.parametrize("query", ["", "?id=", "?id=guess"])
async def test_connection_without_negotiation_is_refused(
    running: RunningPortal, owner: PortalClient, query: str
) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await owner.session.ws_connect(f"{running.url}/nodeHub{query}")
    assert refused.value.status == 403


async def test_too_many_records_a_second_close_the_connection(tmp_path: Path) -> None:
    limits = HubLimits(records_a_second=0.001, records_burst=5)
    async with RunningPortal(Settings(data=tmp_path), limits=limits) as running, running.connect() as rude:
        for _ in range(6):
            await rude.send_text('{"type":6}' + RECORD_SEPARATOR)
        assert "records a second" in str(await rude.closed())


async def test_pieces_of_a_record_count_as_records(tmp_path: Path) -> None:
    limits = HubLimits(records_a_second=0.001, records_burst=5)
    async with RunningPortal(Settings(data=tmp_path), limits=limits) as running, running.connect() as rude:
        for _ in range(6):
            await rude.send_text("x")
        assert "records a second" in str(await rude.closed())


async def test_stranger_may_say_less_than_a_node(tmp_path: Path) -> None:
    limits = HubLimits(stranger_records_a_second=0.001, stranger_records_burst=5)
    async with (
        RunningPortal(Settings(data=tmp_path), limits=limits) as running,
        running.owner() as owner,
        running.enrolled(owner) as node,
    ):
        async with running.connect() as stranger:
            for number in range(6):
                await stranger.send("assertNode", {"hostName": f"machine-{number}"})
            assert "records a second" in str(await stranger.closed())
        for _ in range(20):
            assert (await node.invoke("heartBeat", "echo"))["result"] is None


async def test_silent_connection_is_closed(tmp_path: Path) -> None:
    limits = HubLimits(silence_seconds=0.1)
    async with RunningPortal(Settings(data=tmp_path), limits=limits) as running, running.connect() as silent:
        assert "Nothing was heard" in str(await silent.closed())


async def test_connection_on_which_nobody_signs_in_is_closed(tmp_path: Path) -> None:
    limits = HubLimits(ping_seconds=0.05, unknown_seconds=0.05)
    async with RunningPortal(Settings(data=tmp_path), limits=limits) as running, running.connect() as idle:
        assert (await idle.record(lambda record: record["type"] == 6)) == {"type": 6}
        assert "signed in" in str(await idle.closed())


async def test_negotiations_are_bounded(tmp_path: Path) -> None:
    limits = HubLimits(negotiations=2)
    async with RunningPortal(Settings(data=tmp_path), limits=limits) as running, running.client() as client:
        answers = [(await client.call("POST", "/nodeHub/negotiate")).status for _ in range(3)]
    assert answers == [200, 200, 409]


async def test_node_that_does_not_read_is_closed_and_holds_nobody_up(tmp_path: Path) -> None:
    limits = HubLimits(outgoing=4)
    async with (
        RunningPortal(Settings(data=tmp_path), limits=limits) as running,
        running.owner() as owner,
        running.enrolled(owner) as node,
    ):
        connection = running.portal.hub.connection_of(node.id)
        assert connection is not None
        for _ in range(5):
            connection.send("sendMessage", "x")
        assert "does not read" in str(await node.closed())


async def test_unknown_target_is_answered_and_the_connection_stays(running: RunningPortal, healthy: HubNode) -> None:
    assert "does not know launchMissiles" in (await healthy.invoke("launchMissiles"))["error"]


async def test_fault_of_the_portal_is_told_as_one_and_never_as_a_bad_credential(
    running: RunningPortal, owner: PortalClient, healthy: HubNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(running.portal.plans, "get", broken)
    async with running.connect() as again:
        with pytest.raises(ConnectionError) as failed:
            await again.sign_in(healthy.identity)
    assert "has a fault" in str(failed.value)
    assert "disk" not in str(failed.value)
    monkeypatch.undo()


async def test_script_token_of_an_earlier_sign_in_ends_with_the_next(
    running: RunningPortal, owner: PortalClient
) -> None:
    await owner.done("POST", "/api/services", {"file": "Reader.py"})
    async with running.enrolled(owner) as node:
        path = f"/api/Scripts/{node.identity.organization_id}/Reader.py"
        earlier = node.settings["scriptToken"]
        assert (await running.get(path, token=earlier))[0] == 200
        await node.sign_in()
        assert (await running.get(path, token=earlier))[0] == 401
        assert (await running.get(path, token=node.settings["scriptToken"]))[0] == 200


async def test_second_node_on_one_connection_is_refused(
    running: RunningPortal, owner: PortalClient, healthy: HubNode
) -> None:
    async with running.enrolled(owner) as node:
        first = node.identity
        with pytest.raises(ConnectionError) as refused:
            await node.sign_in(healthy.identity)
        node.identity = first
        assert refused.value.args[0][1] == ERROR_INVALID_REQUEST
        assert (await owner.done("GET", f"/api/nodes/{first.id}"))["online"]


async def test_sign_in_that_cannot_be_stored_ends_the_connection(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("signOut")
        engine = running.portal.database.engine.sync_engine

        def full(_: object) -> None:
            raise RuntimeError("the disk is full")

        async with running.connect() as again:
            event.listen(engine, "commit", full, once=True)
            with pytest.raises(ConnectionError):
                await again.sign_in(node.identity)
            assert "has a fault" in str(await again.closed())
        async with running.connect() as later:
            await later.sign_in(node.identity)
            assert (await later.invoke("heartBeat", "well"))["result"] is None
