from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.hub import protocol
from agent.hub.reporter import Reporter
from agent.outbox.message import Submission
from agent.outbox.store import Outbox
from portal.bus import nodes_topic
from portal.nodes.service import new_node
from portal.settings import Settings
from portal.testing import FakeClock, HubNode, PortalClient, RunningPortal
from portal.work import Caller


async def test_sign_in_answers_with_settings_manifest_and_token(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner, "pump-1", ["pumps"]) as node:
        settings = node.settings
        manifest = node.manifest()
    assert settings["nodeName"] == "pump-1"
    assert settings["tags"] == ["pumps"]
    assert settings["state"] == "Active"
    assert settings["debug"] is False
    assert settings["iotHub"] is None
    assert settings["scriptToken"]
    assert settings["policies"]["disconnectPolicy"]["heartbeatTimeout"] == 30
    assert (manifest.node_id, manifest.services) == (node.id, [])
    assert "sas" not in settings


async def test_node_is_online_while_it_is_connected(
    running: RunningPortal, owner: PortalClient, clock: FakeClock
) -> None:
    topic = nodes_topic(running.portal.organization_id)
    async with running.portal.bus.subscribe(topic) as events:
        async with running.enrolled(owner) as node:
            online = await owner.done("GET", f"/api/nodes/{node.id}")
            await clock.advance(60)
        while (event := await events.next(10)) is None or event.data["change"] != "offline":
            pass
        offline = await owner.done("GET", f"/api/nodes/{node.id}")
    assert online["online"]
    assert online["agent_version"] == "1.2.3"
    assert online["ip_addresses"] == ["192.0.2.7"]
    assert not offline["online"]
    assert offline["presence_since"] > online["presence_since"]
    kinds = [event["kind"] for event in (await owner.done("GET", f"/api/nodes/{node.id}/events"))["items"]]
    assert kinds == ["offline", "online", "enrolled"]


async def test_portal_that_was_killed_knows_nobody_as_online(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    async with (
        RunningPortal(settings) as first,
        first.owner() as owner,
        first.enrolled(owner) as node,
        # The first one does not get to say that it ends.
        RunningPortal(settings) as second,
        second.owner() as other,
    ):
        shown = await other.done("GET", f"/api/nodes/{node.id}")
    assert not shown["online"]


async def test_second_connection_of_a_node_takes_the_place_of_the_first(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as first, running.connect() as second:
        await second.sign_in(first.identity)
        reason = await first.closed()
        shown = await owner.done("GET", f"/api/nodes/{first.id}")
        pong = await owner_pings(owner, second)
    assert reason is not None
    assert "taken its place" in reason
    assert shown["online"]
    assert pong["outcome"] == "done"


async def owner_pings(owner: PortalClient, node: HubNode) -> dict[str, object]:
    asked = asyncio.create_task(owner.done("POST", f"/api/nodes/{node.id}/commands", {"command": "ping"}))
    [who] = await node.called("ping")
    await node.invoke("pingResponse", node.identity.name, "testing", "Online", who, False)
    answer: dict[str, object] = await asked
    return answer


async def test_signature_of_another_key_is_refused(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node, running.connect() as thief:
        thief.identity.id, thief.identity.name = node.id, node.identity.name
        thief.identity.organization_id = node.identity.organization_id
        with pytest.raises(ConnectionError) as refused:
            await thief.sign_in()
    assert refused.value.args[0][1] == protocol.ERROR_SECRET_NOT_VALID


async def test_signature_for_another_connection_is_refused(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node, running.connect() as replay:
        replay.identity = node.identity
        replay.nonce, replay.connection_id = node.nonce, node.connection_id
        with pytest.raises(ConnectionError) as refused:
            await replay.sign_in()
    assert refused.value.args[0][1] == protocol.ERROR_SECRET_NOT_VALID


async def test_secret_is_not_taken_from_a_node_that_has_a_key(running: RunningPortal, owner: PortalClient) -> None:
    await owner.done("PATCH", "/api/organization", {"allow_original_agents": True})
    async with running.enrolled(owner) as node, running.connect() as other:
        for sas in ("", "None", None, "guess"):
            host = {"Name": node.identity.name, "OrganizationID": node.identity.organization_id, "sas": sas}
            await other.send("signInAsync", host)
            assert (await other.called("errorMessage"))[1] == protocol.ERROR_SECRET_NOT_VALID


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": "unknown"}, protocol.ERROR_NODE_NOT_FOUND),
        ({"OrganizationID": "unknown"}, protocol.ERROR_ORGANIZATION_NOT_FOUND),
        ({"signature": "not base64"}, protocol.ERROR_SECRET_NOT_VALID),
    ],
)
async def test_wrong_sign_in_gets_its_code(
    running: RunningPortal, owner: PortalClient, changes: dict[str, str], code: int
) -> None:
    async with running.enrolled(owner) as node, running.connect() as again:
        with pytest.raises(ConnectionError) as refused:
            await again.sign_in(node.identity, **changes)
    assert refused.value.args[0][1] == code


async def test_deleted_node_is_disconnected_and_cannot_come_back(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await owner.done("DELETE", f"/api/nodes/{node.id}")
        assert await node.closed() is not None
        async with running.connect() as again:
            with pytest.raises(ConnectionError) as refused:
                await again.sign_in(node.identity)
    assert refused.value.args[0][1] == protocol.ERROR_NODE_NOT_FOUND
    assert (await owner.call("GET", f"/api/nodes/{node.id}")).status == 404


async def test_what_a_node_tells_is_shown(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        state = {"id": "a_py", "version": "1.0", "state": "running", "pid": 7, "fault": "", "since": 1_800_000_000.0}
        await node.invoke("serviceStates", [state])
        await node.invoke("facts", {"cpuPercent": 3.5, "memory": {"freeBytes": 5}})
        await node.invoke("deploymentState", {"deployment": "abc", "state": "failed", "error": "no such package"})
        shown = await owner.done("GET", f"/api/nodes/{node.id}")
    assert [(item["id"], item["state"], item["pid"]) for item in shown["services"]] == [("a_py", "running", 7)]
    assert shown["facts"]["memory"] == {"freeBytes": 5}
    assert (shown["deployment_state"], shown["deployment_error"]) == ("failed", "no such package")
    [event] = [
        event
        for event in (await owner.done("GET", f"/api/nodes/{node.id}/events"))["items"]
        if event["kind"] == "deployment"
    ]
    assert "no such package" in event["text"]


@pytest.mark.parametrize("target", ["serviceStates", "facts", "deploymentState", "faults", "notify"])
async def test_nothing_is_taken_from_who_has_not_signed_in(running: RunningPortal, target: str) -> None:
    async with running.connect() as stranger:
        await stranger.send(target, {}, invocation_id="1")
        assert (await stranger.called("errorMessage"))[0] == "Sign in first."


@pytest.mark.parametrize("target", ["heartBeat", "logMessage", "reconnected", "signedIn"])
async def test_agent_that_goes_on_without_signing_in_is_told_to_start_anew(running: RunningPortal, target: str) -> None:
    async with running.connect() as stranger:
        await stranger.send(target, "echo")
        assert await stranger.called("restart") == []


async def test_nodes_are_listed_in_parts_searched_and_filtered(running: RunningPortal, owner: PortalClient) -> None:
    for name, tags in (("beta", ["north"]), ("Alpha", ["north", "pumps"]), ("gamma_x", [])):
        async with running.enrolled(owner, name, tags):
            pass
    async with running.enrolled(owner, "delta") as node:
        names = []
        after = None
        while True:
            part = await owner.done("GET", "/api/nodes?limit=2" + (f"&after={after}" if after else ""))
            names += [item["name"] for item in part["items"]]
            if (after := part["next"]) is None:
                break
        found = {
            query: [item["name"] for item in (await owner.done("GET", f"/api/nodes?{query}"))["items"]]
            for query in ("search=ALPH", "search=pump", "search=%25", "search=_", "tag=%23North", "search=192.0.2.7")
        }
        tags = await owner.done("GET", "/api/tags")
    assert names == ["Alpha", "beta", "delta", "gamma_x"]
    assert found["search=ALPH"] == ["Alpha"]
    assert found["search=pump"] == ["Alpha"]
    assert found["search=%25"] == []
    assert found["search=_"] == ["gamma_x"]
    assert found["tag=%23North"] == ["Alpha", "beta"]
    assert len(found["search=192.0.2.7"]) == 4
    assert tags == [{"tag": "north", "nodes": 2}, {"tag": "pumps", "nodes": 1}]
    assert node.identity.name == "delta"


async def test_status_filter_shows_who_is_there(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner, "here"):
        online = await owner.done("GET", "/api/nodes?status=online")
        offline = await owner.done("GET", "/api/nodes?status=offline")
        wrong = await owner.call("GET", "/api/nodes?status=lost")
    assert [item["name"] for item in online["items"]] == ["here"]
    assert offline["items"] == []
    assert wrong.status == 422


async def test_changes_are_stored_and_told_to_the_connected_node(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await owner.done("PATCH", f"/api/nodes/{node.id}", {"console": True, "tracking": True})
        assert await node.called("changeDebug") == [True]
        assert await node.called("changeTracking") == [True]
        await owner.done("PATCH", f"/api/nodes/{node.id}", {"tags": ["x"], "enabled": False})
        [update] = await node.called("updateDeployment")
        shown = await owner.done("GET", f"/api/nodes/{node.id}")
    assert (update["tags"], update["state"]) == (["x"], "InActive")
    assert (shown["console"], shown["tracking"], shown["enabled"], shown["tags"]) == (True, True, False, ["x"])


async def test_renamed_node_signs_in_with_the_name_it_knows_and_learns_the_new_one(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner, "old-name") as node:
        await owner.done("PATCH", f"/api/nodes/{node.id}", {"name": "new-name"})
        async with running.connect() as again:
            settings = await again.sign_in(node.identity)
        taken = await owner.call("PATCH", f"/api/nodes/{node.id}", {"name": "no spaces"})
    assert settings["nodeName"] == "new-name"
    assert taken.code == "node_name_invalid"


async def test_heartbeat_is_answered_with_the_same_after_its_completion(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node:
        await node.send("heartBeat", "echo", invocation_id="7")
        first = await node.record(lambda record: record.get("invocationId") == "7")
        assert first == {"type": 3, "invocationId": "7", "result": None}
        assert await node.called("heartBeat") == ["echo"]


async def test_sign_out_makes_the_node_offline_at_once(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("signOut", node.identity.name, "testing", "Offline", node.identity.organization_id)
        assert not (await owner.done("GET", f"/api/nodes/{node.id}"))["online"]


async def test_counts_are_those_of_the_whole_fleet(
    running: RunningPortal, owner: PortalClient, clock: FakeClock
) -> None:
    await add_nodes(running, 1200)
    async with running.enrolled(owner, "online-1") as node, running.enrolled(owner, "online-2") as other:
        await owner.done("PATCH", f"/api/nodes/{other.id}", {"enabled": False})
        place = {"stream": "s1", "service": "reader_py", "text": "jammed"}
        await node.invoke("faults", [{**place, "sequence": 1}, {**place, "sequence": 2}])
        await other.invoke("faults", [{**place, "sequence": 1}])
        counted = await owner.done("GET", "/api/nodes/counts")
        await clock.advance(24 * 3600 + 1)
        later = await owner.done("GET", "/api/nodes/counts")
    numbers = {"nodes": 1202, "online": 2, "offline": 1200, "disabled": 1, "delivering": 0}
    assert counted == numbers | {"faulty": 2, "faults": 3}
    assert later == numbers | {"faulty": 0, "faults": 0}


async def test_fleet_begins_with_what_is_in_trouble(running: RunningPortal, owner: PortalClient) -> None:
    await add_nodes(running, 3)
    async with (
        running.enrolled(owner, "a-well") as well,
        running.enrolled(owner, "b-off") as off,
        running.enrolled(owner, "c-faulty") as faulty,
        running.enrolled(owner, "d-failed") as failed,
    ):
        assert well.id
        await owner.done("PATCH", f"/api/nodes/{off.id}", {"enabled": False})
        await faulty.invoke("faults", [{"stream": "s", "service": "x_py", "sequence": 1, "text": "jammed"}])
        await failed.invoke("deploymentState", {"deployment": "d", "state": "failed", "error": "no room"})
        caller = Caller(running.portal.organization_id, "alice", "owner")
        async with running.portal.reading(caller) as work:
            fleet = [node.name for node in await work.nodes.fleet(limit=6)]
            assert (await work.services.count(), await work.flows.count()) == (0, 0)
            assert not await work.flows.runs_somewhere()
    assert fleet == ["c-faulty", "d-failed", "idle-0", "idle-1", "idle-2", "a-well"]


async def test_whether_something_runs_somewhere_is_exact(running: RunningPortal, owner: PortalClient) -> None:
    await owner.done("POST", "/api/services", {"file": "Reader.py"})
    activity = {"service_id": "reader_py", "host": "late"}
    flow = await owner.done("POST", "/api/flows", {"name": "F", "activities": [activity]})
    caller = Caller(running.portal.organization_id, "alice", "owner")

    async def runs() -> bool:
        async with running.portal.reading(caller) as work:
            assert (await work.services.count(), await work.flows.count()) == (1, 1)
            return await work.flows.runs_somewhere()

    assert not await runs()
    async with running.enrolled(owner, "late"):
        assert await runs()
        off = {"name": "F", "activities": [{**activity, "enabled": False}]}
        await owner.done("PUT", f"/api/flows/{flow['id']}", off)
        assert not await runs()


@pytest.mark.parametrize(
    ("outbox", "delivering"),
    [
        ({"depth": 1, "acknowledged": 7}, 1),
        ({"depth": 1, "acknowledged": 0}, 0),
        ({"depth": 1}, 0),
        ({"acknowledged": 2**70}, 1),
        *(({"acknowledged": wrong}, 0) for wrong in (-1, True, "many", None, 0.5)),
        ("full", 0),
    ],
)
async def test_portal_knows_which_nodes_have_brought_readings_to_their_cloud(
    running: RunningPortal, owner: PortalClient, outbox: object, delivering: int
) -> None:
    async with running.enrolled(owner) as node:
        assert (await owner.done("GET", "/api/nodes/counts"))["delivering"] == 0
        assert (await node.invoke("facts", {"outbox": outbox}))["result"] is None
        assert (await owner.done("GET", "/api/nodes/counts"))["delivering"] == delivering


async def test_node_tells_how_many_readings_have_reached_a_cloud(
    running: RunningPortal, owner: PortalClient, tmp_path: Path
) -> None:
    clock = SystemClock()
    outbox = await Outbox.open(None, node="pump-1", clock=clock)
    for number in range(3):
        await outbox.submit(Submission(service="reader_py", payload=b"%d" % number))
    await outbox.submit(Submission(service="reader_py", kind="fault", payload=b"{}"))
    for sink, kind, count in (("azure", "telemetry", 2), ("mqtt", "telemetry", 1), ("portal", "fault", 1)):
        feed = outbox.feed(sink, frozenset({kind}))
        await feed.acknowledge([message.id for message in await feed.take(count)])
    await outbox.flush()
    facts = await Reporter(None, outbox, state=tmp_path, clock=clock).facts()  # type: ignore[arg-type]
    await outbox.close()
    assert facts["outbox"]["acknowledged"] == 2
    async with running.enrolled(owner) as node:
        await node.invoke("facts", facts)
        assert (await owner.done("GET", "/api/nodes/counts"))["delivering"] == 1


async def add_nodes(running: RunningPortal, count: int) -> None:
    """Nodes that never signed in."""
    async with running.portal.database.writing() as session:
        session.add_all(
            new_node(
                organization_id=running.portal.organization_id,
                name=f"idle-{number}",
                kind="outstation",
                now=running.portal.now(),
                public_key=b"key",
                sas_hash=None,
            )
            for number in range(count)
        )
