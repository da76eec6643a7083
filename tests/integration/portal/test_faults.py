from __future__ import annotations

from typing import Any

import pytest

from agent.hub.protocol import ARGUMENTS_INVALID
from portal.testing import PortalClient, RunningPortal


def fault(sequence: Any, **changes: Any) -> dict[str, Any]:
    return {
        "stream": "s1",
        "service": "reader_py",
        "sequence": sequence,
        "boot": "b1",
        "time": 1_800_000_000.5,
        "kind": "fault",
        "code": "666",
        "text": "Unable to read GPIO",
        "description": "The wire is loose",
    } | changes


async def test_fault_is_stored_before_it_is_completed_and_counts_once(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node:
        assert (await node.invoke("faults", [fault(1), fault(2)]))["result"] is None
        stored = (await owner.done("GET", "/api/faults"))["items"]
        assert (await node.invoke("faults", [fault(2), fault(2), fault(3)]))["result"] is None
        again = (await owner.done("GET", f"/api/nodes/{node.id}/faults"))["items"]
        shown = await owner.done("GET", f"/api/nodes/{node.id}")
    assert len(stored) == 2
    assert len(again) == 3
    assert shown["faults"] == 3
    assert {key: again[0][key] for key in ("node", "service", "code", "text", "description", "at")} == {
        "node": "pump-1",
        "service": "reader_py",
        "code": "666",
        "text": "Unable to read GPIO",
        "description": "The wire is loose",
        "at": "2027-01-15T08:00:00.500000Z",
    }


async def test_same_number_in_another_stream_or_service_is_another_fault(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("faults", [fault(1), fault(1, stream="s2"), fault(1, service="other_py")])
        assert len((await owner.done("GET", "/api/faults"))["items"]) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "text",
        [{}],
        [fault("many")],
        [fault(2**63)],
        [fault(-1)],
        [fault(1, stream=None)],
        [fault(1, kind="rumour")],
        [fault(n) for n in range(501)],
    ],
)
async def test_malformed_faults_are_refused_and_not_completed_as_stored(
    running: RunningPortal, owner: PortalClient, wrong: Any
) -> None:
    async with running.enrolled(owner) as node:
        assert (await node.invoke("faults", wrong))["error"].startswith(f"{ARGUMENTS_INVALID}The arguments of faults")
        assert (await owner.done("GET", "/api/faults"))["items"] == []
        assert (await node.invoke("faults", [fault(1)]))["result"] is None


@pytest.mark.parametrize("time", [None, -1e300, 1e300, 0])
async def test_time_that_cannot_be_is_replaced(running: RunningPortal, owner: PortalClient, time: Any) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("faults", [fault(1, time=time)])
        [stored] = (await owner.done("GET", "/api/faults"))["items"]
    assert stored["at"] == stored["received_at"]


async def test_faults_are_listed_in_parts_newest_first(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("faults", [fault(number, code=str(number)) for number in range(1, 6)])
        first = await owner.done("GET", "/api/faults?limit=3")
        rest = await owner.done("GET", f"/api/faults?limit=3&after={first['next']}")
        one = await owner.done("GET", "/api/faults?code=4")
        wrong = await owner.call("GET", "/api/faults?after=x")
    assert [item["code"] for item in first["items"]] == ["5", "4", "3"]
    assert [item["code"] for item in rest["items"]] == ["2", "1"]
    assert rest["next"] is None
    assert len(one["items"]) == 1
    assert (wrong.status, wrong.code) == (422, "cursor_invalid")
