from __future__ import annotations

import hashlib
from typing import Any

from agent.hub.protocol import ManifestService
from portal.testing import HubNode, PortalClient, RunningPortal

SOURCE = """# /// script
# dependencies = ["requests>=2"]
# ///
from base_service import CustomService


class {name}(CustomService):
    async def Start(self):
        pass
"""


async def make_service(owner: PortalClient, file: str = "Reader.py") -> dict[str, Any]:
    source = SOURCE.format(name=file.removesuffix(".py"))
    made: dict[str, Any] = await owner.done("POST", "/api/services", {"file": file, "from": "import", "source": source})
    return made


async def make_flow(owner: PortalClient, host: str, name: str = "Flow", **activity: Any) -> dict[str, Any]:
    form = {"name": name, "activities": [{"service_id": "reader_py", "host": host, **activity}]}
    made: dict[str, Any] = await owner.done("POST", "/api/flows", form)
    return made


async def updated(node: HubNode) -> list[ManifestService]:
    [update] = await node.called("updateDeployment")
    return node.manifest(update["manifest"]).services


async def test_assigned_service_reaches_a_connected_node_signed_and_whole(
    running: RunningPortal, owner: PortalClient
) -> None:
    await make_service(owner)
    async with running.enrolled(owner, "pump-1") as node:
        await make_flow(owner, "pump-1")
        [service] = await updated(node)
        status, content = await running.get(service.path, token=node.settings["scriptToken"])
    assert (service.id, service.file, service.version) == ("reader_py", "Reader.py", "0.1")
    assert service.requirements == ["requests>=2"]
    assert status == 200
    assert hashlib.sha256(content).hexdigest() == service.sha256
    assert {item.id: item.value for item in service.config.general_config} == {
        "name": "Flow",
        "host": "pump-1",
        "enabled": True,
    }


async def test_assigned_service_is_in_the_sign_in_of_a_node_that_comes_later(
    running: RunningPortal, owner: PortalClient
) -> None:
    await make_service(owner)
    await make_flow(owner, "#ALL")
    async with running.enrolled(owner) as node:
        assert [service.id for service in node.manifest().services] == ["reader_py"]


async def test_host_may_be_a_name_a_tag_or_all(running: RunningPortal, owner: PortalClient) -> None:
    await make_service(owner)
    flow = await make_flow(owner, "nobody")
    async with running.enrolled(owner, "pump-1", ["North"]) as node:
        for host, runs in (
            ("PUMP-1", True),
            ("#north", True),
            ("north", True),
            ("#ALL", True),
            ("south", False),
            ("#pump-1", False),
            ("all", False),
        ):
            activity = {"service_id": "reader_py", "host": host}
            await owner.done("PUT", f"/api/flows/{flow['id']}", {"name": "Flow", "activities": [activity]})
            shown = await owner.done("GET", f"/api/nodes/{node.id}")
            assert bool(shown["assigned"]) is runs, host


async def test_most_specific_host_counts_and_the_others_are_named(running: RunningPortal, owner: PortalClient) -> None:
    await make_service(owner)
    definitions = {"static": [{"id": "interval", "type": "number", "default": 1}], "security": []}
    await owner.done("PATCH", "/api/services/reader_py", {"properties": definitions})
    await make_flow(owner, "#ALL", "Everywhere", static={"interval": 10})
    await make_flow(owner, "north", "North", static={"interval": 20})
    await make_flow(owner, "pump-1", "One", static={"interval": 30})
    async with running.enrolled(owner, "pump-1", ["north"]) as one, running.enrolled(owner, "pump-2", ["north"]) as two:
        intervals = [node.manifest().services[0].config.static_config[0].value for node in (one, two)]
        [assigned] = (await owner.done("GET", f"/api/nodes/{one.id}"))["assigned"]
    assert intervals == [30, 20]
    assert (assigned["flow"], assigned["overrides"]) == ("One", ["North", "Everywhere"])


async def test_defaults_fill_what_a_flow_does_not_set(running: RunningPortal, owner: PortalClient) -> None:
    await make_service(owner)
    definitions = {
        "static": [{"id": "interval", "type": "number", "default": 5}, {"id": "unit"}],
        "security": [{"id": "token"}],
    }
    await owner.done("PATCH", "/api/services/reader_py", {"properties": definitions})
    await make_flow(owner, "#ALL", security={"token": "t0p-secret"})
    async with running.enrolled(owner) as node:
        config = node.manifest().services[0].config
    assert [(item.id, item.value, item.type) for item in config.static_config] == [("interval", 5, "number")]
    assert [(item.id, item.value) for item in config.security_config] == [("token", "t0p-secret")]


async def test_every_kind_of_change_is_pushed(running: RunningPortal, owner: PortalClient) -> None:
    await make_service(owner)
    flow = await make_flow(owner, "pumps")
    async with running.enrolled(owner, "pump-1") as node:
        await owner.done("PATCH", f"/api/nodes/{node.id}", {"tags": ["pumps"]})
        assert [service.version for service in await updated(node)] == ["0.1"]

        source = SOURCE.format(name="Reader") + "\n# changed\n"
        await owner.done("PUT", "/api/services/reader_py/versions/latest/source", {"source": source})
        [service] = await updated(node)
        assert service.sha256 == hashlib.sha256(source.encode()).hexdigest()

        await owner.done("POST", "/api/services/reader_py/versions", {"bump": "major"})
        assert [service.version for service in await updated(node)] == ["1.0"]

        form = {"name": "Flow", "activities": [{"service_id": "reader_py", "host": "pumps", "version": "0.1"}]}
        await owner.done("PUT", f"/api/flows/{flow['id']}", form)
        assert [service.version for service in await updated(node)] == ["0.1"]

        form["enabled"] = False
        await owner.done("PUT", f"/api/flows/{flow['id']}", form)
        assert await updated(node) == []

        form["enabled"] = True
        await owner.done("PUT", f"/api/flows/{flow['id']}", form)
        assert len(await updated(node)) == 1

        await owner.done("DELETE", f"/api/flows/{flow['id']}")
        assert await updated(node) == []


async def test_heartbeat_of_the_organisation_is_pushed(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner, "pump-1") as node:
        before = node.settings["policies"]["disconnectPolicy"]
        change = {"heartbeat_seconds": 7, "missed_heartbeat_limit": 5}
        await owner.done("PATCH", "/api/organization", change)
        [update] = await node.called("updateDeployment")
        # What changes nothing for nodes is not sent: its message would have come before this answer.
        await owner.done("PATCH", "/api/organization", {"name": "Water works", **change})
        await node.send("heartBeat", "echo")
        assert (await node.record(lambda record: record["type"] == 1))["target"] == "heartBeat"
        async with running.connect() as again:
            later = (await again.sign_in(node.identity))["policies"]
    assert (before["heartbeatTimeout"], before["missedHearbeatLimit"]) == (30, 3)
    assert update["policies"]["disconnectPolicy"] == before | {"heartbeatTimeout": 7, "missedHearbeatLimit": 5}
    assert later == update["policies"]


async def test_change_that_does_not_concern_a_node_is_not_sent_to_it(
    running: RunningPortal, owner: PortalClient
) -> None:
    await make_service(owner)
    async with running.enrolled(owner, "pump-1") as one, running.enrolled(owner, "pump-2") as two:
        await make_flow(owner, "pump-2")
        assert len(await updated(two)) == 1
        # What was sent to the first before this answer would have come before it.
        await one.send("heartBeat", "echo")
        assert (await one.record(lambda record: record["type"] == 1))["target"] == "heartBeat"


async def test_iot_hub_is_pushed_and_never_shown_again(running: RunningPortal, owner: PortalClient) -> None:
    connection = "HostName=hub.example;DeviceId=pump-1;SharedAccessKey=c2VjcmV0LWtleQ=="
    async with running.enrolled(owner, "pump-1") as node:
        path = f"/api/nodes/{node.id}/iot-hub"
        shown = await owner.call("PUT", path, {"connection_string": connection})
        [update] = await node.called("updateDeployment")
        async with running.connect() as again:
            signed_in = await again.sign_in(node.identity)
            removed = await owner.done("DELETE", path)
            [cleared] = await again.called("updateDeployment")
    assert shown.body["iot_hub"] == "pump-1@hub.example"
    assert "c2VjcmV0" not in shown.text
    assert update["iotHub"] == {"connectionString": connection, "certificateAuthority": ""}
    assert signed_in["iotHub"] == update["iotHub"]
    assert (removed["iot_hub"], cleared["iotHub"]) == (None, None)


async def test_incomplete_connection_string_is_refused_without_repeating_it(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node:
        path = f"/api/nodes/{node.id}/iot-hub"
        answer = await owner.call("PUT", path, {"connection_string": "HostName=h;SharedAccessKey=c2VjcmV0"})
        wrong = {"connection_string": "HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0", "certificate_authority": "PEM"}
        authority = await owner.call("PUT", path, wrong)
    assert (answer.status, answer.code) == (422, "connection_string_invalid")
    assert "DeviceId" in answer.body["detail"]
    assert "c2VjcmV0" not in answer.text
    assert authority.code == "certificate_authority_invalid"


async def test_scripts_are_for_connected_nodes_only(running: RunningPortal, owner: PortalClient) -> None:
    await make_service(owner)
    await make_flow(owner, "#ALL")
    async with running.enrolled(owner) as node:
        path = node.manifest().services[0].path
        token = node.settings["scriptToken"]
        assert (await running.get(path, token=token))[0] == 200
        assert (await running.get(path))[0] == 401
        assert (await running.get(path, token="guess"))[0] == 401
        other = path.replace(node.identity.organization_id, "00000000-0000-0000-0000-000000000001")
        assert (await running.get(other, token=token))[0] == 401
        assert (await running.get(path.replace("Reader.py", "reader.py"), token=token))[0] == 401
        assert (await running.get(path.replace("0.1", "9.9"), token=token))[0] == 401
        await owner.done("DELETE", f"/api/nodes/{node.id}")
        await node.closed()
    while (await running.get(path, token=token))[0] != 401:
        pass


async def test_timeline_tells_what_a_node_was_to_run(running: RunningPortal, owner: PortalClient) -> None:
    await make_service(owner)
    async with running.enrolled(owner) as node:
        await make_flow(owner, "#ALL")
        await updated(node)
        events = (await owner.done("GET", f"/api/nodes/{node.id}/events"))["items"]
        while events[0]["kind"] != "deployment":
            events = (await owner.done("GET", f"/api/nodes/{node.id}/events"))["items"]
    assert events[0]["text"] == "To run: Reader.py 0.1."
