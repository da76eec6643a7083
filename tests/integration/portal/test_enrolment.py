from __future__ import annotations

from pathlib import Path

import pytest

from portal.settings import Settings
from portal.testing import FakeClock, PortalClient, RunningPortal

MINUTE = 60


async def code_of(owner: PortalClient, **form: object) -> str:
    made = await owner.done("POST", "/api/verification-codes", form)
    return str(made["code"])


async def test_code_makes_a_node_with_its_tags_and_the_organisations_key(
    running: RunningPortal, owner: PortalClient
) -> None:
    code = await code_of(owner, tags=["pumps", "north"])
    async with running.connect() as node:
        await node.enrol(code, "pump-1")
        shown = await owner.done("GET", f"/api/nodes/{node.id}")
    assert (shown["name"], shown["tags"], shown["kind"]) == ("pump-1", ["north", "pumps"], "outstation")
    assert not shown["online"]
    assert len(node.identity.manifest_key) == 32


async def test_command_of_a_code_is_ready_to_paste(running: RunningPortal, owner: PortalClient) -> None:
    made = await owner.done("POST", "/api/verification-codes", {})
    assert made["command"] == f"outstation enroll {running.url} --code {made['code']}"


async def test_command_carries_the_fingerprint_of_a_self_made_certificate(tmp_path: Path) -> None:
    async with RunningPortal(Settings(data=tmp_path, self_signed=True)) as running, running.owner() as owner:
        made = await owner.done("POST", "/api/verification-codes", {})
    assert made["command"].endswith(f"--fingerprint {running.portal.fingerprint}")
    assert len(made["fingerprint"]) == 64


async def test_command_says_that_plain_http_over_a_network_is_insecure(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, public_url="http://portal.example.net")
    async with RunningPortal(settings) as running:
        assert running.portal.enrol_command("X").endswith("--insecure-http")


async def test_code_is_taken_however_it_is_typed(running: RunningPortal, owner: PortalClient) -> None:
    code = await code_of(owner)
    async with running.connect() as node:
        await node.enrol(f" {code.replace('-', ' ').lower()} ", "pump-1")


async def test_node_without_a_name_gets_the_codes_name_else_one_made_from_its_host(
    running: RunningPortal, owner: PortalClient
) -> None:
    names = []
    for name in ("pump-7", "", ""):
        async with running.connect() as node:
            await node.enrol(await code_of(owner, name=name))
            names.append(node.identity.name)
    assert names == ["pump-7", "testing", "testing-2"]


async def test_used_code_is_refused(running: RunningPortal, owner: PortalClient) -> None:
    code = await code_of(owner)
    async with running.connect() as first:
        await first.enrol(code, "pump-1")
    async with running.connect() as second:
        with pytest.raises(ConnectionError) as refused:
            await second.enrol(code, "pump-2")
    assert refused.value.args[0][1] == 2


async def test_old_code_is_refused(running: RunningPortal, owner: PortalClient, clock: FakeClock) -> None:
    code = await code_of(owner)
    await clock.advance(30 * MINUTE)
    async with running.connect() as node:
        with pytest.raises(ConnectionError) as refused:
            await node.enrol(code, "pump-1")
    assert refused.value.args[0][1] == 2


async def test_wrong_codes_have_to_wait_and_that_makes_no_agent_forget_who_it_is(
    running: RunningPortal, owner: PortalClient
) -> None:
    answers = []
    async with running.connect() as node:
        for _ in range(6):
            with pytest.raises(ConnectionError) as refused:
                await node.enrol("WRONG-WRONG")
            answers.append(refused.value.args[0][1:])
    assert answers == [[2]] * 5 + [[1, "too_many_attempts"]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("pump-1", "node_name_taken"), ("PUMP-1", "node_name_taken"), ("pump 2", "node_name_invalid")],
)
async def test_refused_name_does_not_use_up_the_code(
    running: RunningPortal, owner: PortalClient, name: str, reason: str
) -> None:
    async with running.enrolled(owner, "pump-1"):
        code = await code_of(owner)
        async with running.connect() as node:
            with pytest.raises(ConnectionError) as refused:
                await node.enrol(code, name)
            assert refused.value.args[0][1:] == [1, reason]
            await node.enrol(code, "pump-3")


async def test_code_for_a_taken_name_is_refused_when_it_is_made(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner, "pump-1"):
        answer = await owner.call("POST", "/api/verification-codes", {"name": "Pump-1"})
    assert (answer.status, answer.code) == (409, "node_name_taken")


@pytest.mark.parametrize("tag", ["two words", "#pumps", "ALL", "", "a,b", "x" * 65])
async def test_bad_tag_is_refused(owner: PortalClient, tag: str) -> None:
    answer = await owner.call("POST", "/api/verification-codes", {"tags": [tag]})
    assert (answer.status, answer.code) == (422, "tag_invalid")


@pytest.mark.parametrize("key", ["", "not base64", "c2hvcnQ="])
async def test_bad_public_key_is_refused_and_the_code_stays_good(
    running: RunningPortal, owner: PortalClient, key: str
) -> None:
    code = await code_of(owner)
    async with running.connect() as node:
        answer = await node.invoke("createNode", code, "host", "pump-1", {"publicKey": key})
        assert "publicKey" in answer["error"]
        await node.enrol(code, "pump-1")


async def test_agent_of_the_original_product_is_not_enrolled_unless_the_organisation_allows_it(
    running: RunningPortal, owner: PortalClient
) -> None:
    code = await code_of(owner)
    async with running.connect() as node:
        await node.send("createNode", code, "host", "old-1")
        refused = await node.called("errorMessage")
        await owner.done("PATCH", "/api/organization", {"allow_original_agents": True})
        await node.send("createNode", code, "host", "old-1")
        created = (await node.called("nodeCreated"))[0]
    assert refused[1:] == [1, "original_agents_not_allowed"]
    assert created["sas"]
    assert "manifestKey" not in created


async def test_announced_node_is_claimed_on_its_open_connection(running: RunningPortal, owner: PortalClient) -> None:
    await owner.done("PATCH", "/api/organization", {"allow_original_agents": True})
    host = {"hostName": "vm", "imei": None, "ipAddress": "", "macAddresses": "02:00:00:00:00:02", "isModule": False}
    async with running.connect() as node:
        await node.invoke("assertNode", host)
        await node.invoke("assertNode", host)
        [waiting] = await owner.done("GET", "/api/announcements")
        claimed = await owner.done("POST", f"/api/announcements/{waiting['id']}/claim", {"tags": ["old"]})
        created = (await node.called("nodeCreated"))[0]
    assert (waiting["host_name"], waiting["kind"], waiting["connected"]) == ("vm", "original", True)
    assert (claimed["name"], claimed["tags"], created["nodeName"]) == ("vm", ["old"], "vm")
    assert await owner.done("GET", "/api/announcements") == []


async def test_announcement_can_be_claimed_only_while_its_machine_is_connected(
    running: RunningPortal, owner: PortalClient
) -> None:
    await owner.done("PATCH", "/api/organization", {"allow_original_agents": True})
    async with running.connect() as node:
        await node.invoke("assertNode", {"hostName": "vm"})
    [waiting] = await owner.done("GET", "/api/announcements")
    while (await owner.done("GET", "/api/announcements"))[0]["connected"]:
        pass
    answer = await owner.call("POST", f"/api/announcements/{waiting['id']}/claim", {})
    assert (answer.status, answer.code) == (409, "node_offline")
    assert len(await owner.done("GET", "/api/announcements")) == 1


async def test_dismissed_announcement_is_gone_and_its_connection_ends(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.connect() as node:
        await node.invoke("assertNode", {"hostName": "vm"})
        [waiting] = await owner.done("GET", "/api/announcements")
        await owner.done("DELETE", f"/api/announcements/{waiting['id']}")
        reason = await node.closed()
    assert reason is not None
    assert "dismissed" in reason
    assert await owner.done("GET", "/api/announcements") == []


async def test_there_is_no_white_list_to_enrol_from_yet(running: RunningPortal) -> None:
    async with running.connect() as node:
        await node.send("createNodeFromMacAddress", "02:00:00:00:00:02")
        assert (await node.called("errorMessage"))[1] == 3


async def test_machine_that_announces_itself_on_two_connections_keeps_the_newer_one(running: RunningPortal) -> None:
    async with running.connect() as first, running.connect() as second:
        await first.invoke("assertNode", {"hostName": "vm"})
        await second.invoke("assertNode", {"hostName": "vm"})
        assert "taken its place" in str(await first.closed())
        assert (await second.invoke("assertNode", {"hostName": "vm"}))["result"] is None


async def test_announcement_that_its_connection_has_left_for_another_cannot_be_claimed(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.connect() as node:
        await node.invoke("assertNode", {"hostName": "first"})
        await node.invoke("assertNode", {"hostName": "second"})
        waiting = await owner.done("GET", "/api/announcements")
    assert {each["host_name"]: each["connected"] for each in waiting} == {"first": False, "second": True}
