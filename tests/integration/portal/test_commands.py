from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from portal.hub.limits import HubLimits
from portal.settings import Settings
from portal.testing import Answer, HubNode, PortalClient, RunningPortal


def ask(owner: PortalClient, node: HubNode, command: str) -> asyncio.Task[Answer]:
    return asyncio.create_task(owner.call("POST", f"/api/nodes/{node.id}/commands", {"command": command}))


async def test_ping_is_answered_with_how_long_it_took(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        asked = ask(owner, node, "ping")
        [who] = await node.called("ping")
        await node.invoke("pingResponse", node.identity.name, "testing", "Online", who, False)
        answer = (await asked).body
    assert (answer["outcome"], answer["result"]) == ("done", {"state": "Online"})
    assert answer["milliseconds"] >= 0


async def test_report_comes_without_the_nodes_environment(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        asked = ask(owner, node, "report_state")
        [who] = await node.called("reportState")
        await node.invoke("notify", who, "Fetching environment state", "INFO")
        report: dict[str, Any] = {"memory": {"totalMem": "1 Mb"}, "env": {"PASSWORD": "s3cret"}}
        await node.invoke("reportStateResponse", report, who)
        answer = await asked
    assert answer.body["result"] == {"memory": {"totalMem": "1 Mb"}}
    assert "s3cret" not in answer.text


async def test_refusal_of_a_node_is_told(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        asked = ask(owner, node, "restart_com")
        await node.called("restartCom")
        await node.invoke("notify", "", "This agent does not know the command restartCom.", "ERROR")
        answer = (await asked).body
    assert (answer["outcome"], answer["text"]) == ("refused", "This agent does not know the command restartCom.")


async def test_restart_is_done_when_the_node_ends_its_connection(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        asked = ask(owner, node, "restart")
        assert await node.called("restart") == []
        await node.websocket.close()
        answer = (await asked).body
    assert answer["outcome"] == "done"


async def test_command_to_an_offline_node_is_not_sent(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("signOut")
        answer = await ask(owner, node, "ping")
    assert (answer.status, answer.code) == (409, "node_offline")


async def test_silent_node_is_reported_as_such(tmp_path: Path) -> None:
    limits = HubLimits(command_seconds=0.05)
    async with (
        RunningPortal(Settings(data=tmp_path), limits=limits) as running,
        running.owner() as owner,
        running.enrolled(owner) as node,
    ):
        answer = await ask(owner, node, "ping")
        sent = await ask(owner, node, "restart_com")
    assert (answer.status, answer.code) == (504, "node_no_answer")
    assert sent.body["outcome"] == "sent"


@pytest.mark.parametrize("command", ["", "reboot", "rm -rf"])
async def test_unknown_command_is_refused(running: RunningPortal, owner: PortalClient, command: str) -> None:
    async with running.enrolled(owner) as node:
        answer = await ask(owner, node, command)
    assert (answer.status, answer.code) == (422, "request_invalid")


async def test_answer_to_a_command_that_nobody_gave_changes_nothing(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node:
        assert (await node.invoke("pingResponse", "a", "b", "Online", "unknown", False))["result"] is None
        assert (await node.invoke("notify", None, None, None))["result"] is None


async def test_command_is_in_the_timeline(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        asked = ask(owner, node, "restart")
        await node.called("restart")
        await node.websocket.close()
        await asked
        events = (await owner.done("GET", f"/api/nodes/{node.id}/events"))["items"]
    assert any(event["kind"] == "command" and "alice sent restart" in event["text"] for event in events)
