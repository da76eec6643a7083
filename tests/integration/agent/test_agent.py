"""A whole agent against a hub that records: services in real processes, the Azure SDK against the local IoT Hub."""

import asyncio
import errno
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.app import Agent, Ending
from agent.config import load_config
from agent.control import ask
from agent.hub.enrolment import enroll
from agent.hub.fake import FakeHub
from agent.hub.protocol import ARGUMENTS_INVALID, Invocation
from agent.identity import load_identity
from agent.logs import LineWriter
from agent.paths import Paths
from emulator.server import Emulator, free_loopback_address

COUNTER = """
from base_service import CustomService

class Counter(CustomService):
    async def Start(self):
        await self.Debug(f"Counting as {self.get_settings().get('nodeName')}")
        for number in range(int(self.GetPropertyValue("static", "count"))):
            await self.SubmitMessage({"number": number})

    async def add(self, args):
        await self.SubmitMessage({"added": args.message[0]})
        return {"sum": sum(args.message[0])}

    async def StateUpdate(self, args):
        await self.SubmitMessage({"twin": args.message[0]["desired"].get("target")})
"""


class Node:
    """A node in a folder, and the log of its agent."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.log = io.StringIO()
        self.agent: Agent

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        self.agent = Agent(load_config(gpio="real"), self.paths, load_identity(self.paths), writer=LineWriter(self.log))
        task = asyncio.create_task(self.agent.run())
        try:
            async with asyncio.timeout(20):
                await self.agent.ready.wait()
            yield self.agent
        finally:
            self.agent.end(Ending.STOP)
            async with asyncio.timeout(30):
                await task

    async def status(self) -> dict[str, Any]:
        return await asyncio.to_thread(ask, self.paths.control_socket, "status")


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub() as hub:
        yield hub


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Emulator]:
    async with Emulator(data=tmp_path / "cloud", address=free_loopback_address()) as cloud:
        yield cloud


@pytest.fixture
async def node(hub: FakeHub, cloud: Emulator, tmp_path: Path) -> Node:
    paths = Paths(state=tmp_path / "state", runtime=tmp_path / "run")
    await enroll(paths, hub.url, code="GOOD-CODE", name="pi")
    await cloud.create_device("pi")
    hub.settings = {
        "iotHub": {
            "connectionString": cloud.connection_string("pi"),
            "certificateAuthority": cloud.ca_file.read_text("ascii"),
        }
    }
    return Node(paths)


def states(wanted: str, service: str = "counter_py") -> Callable[[Invocation], bool]:
    return lambda call: any(state["id"] == service and state["state"] == wanted for state in call.arguments[0])


async def test_assigned_service_reaches_the_cloud_and_the_console(hub: FakeHub, cloud: Emulator, node: Node) -> None:
    hub.assign({"Counter.py": COUNTER}, count=3)
    async with node.running():
        messages = await cloud.wait_for(4)
        lines = await hub.called("logMessage")
        await hub.called("deploymentState", where=lambda call: call.arguments[0]["state"] == "running")
    bodies = [json.loads(message.payload) for message in messages]
    assert [body for body in bodies if "number" in body] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert lines[0].arguments[1] == "Counting as pi"
    assert lines[0].arguments[3]["service"] == "counter_py"
    report = await cloud.report()
    assert (report.missing, report.duplicates) == (0, 0)


async def test_node_starts_from_its_disk_with_no_portal_and_no_cloud(hub: FakeHub, cloud: Emulator, node: Node) -> None:
    hub.assign({"Counter.py": COUNTER}, count=2)
    async with node.running():
        await cloud.wait_for(3)
    hub.status = 503
    cloud.set_faults(refuse_connections=3)
    async with node.running():
        async with asyncio.timeout(20):
            while (await node.status())["outbox"]["depth"] < 2:  # noqa: ASYNC110 - the control socket has no event
                await asyncio.sleep(0.02)
        status = await node.status()
        assert not status["portal"]["connected"]
        assert "503" in status["portal"]["last_error"]
        assert status["services"][0]["state"] == "running"
        cloud.clear_faults()
        await cloud.wait_for(5, timeout_seconds=90)
    assert (await cloud.report()).missing == 0


async def test_deployment_that_cannot_run_leaves_the_one_that_does(hub: FakeHub, cloud: Emulator, node: Node) -> None:
    hub.assign({"Counter.py": COUNTER}, count=1)
    async with node.running():
        await hub.called("serviceStates", where=states("running"))
        before = (await node.status())["services"][0]["pid"]
        await hub.deploy({"Counter.py": "class Wrong:\n    pass\n"})
        refused = await hub.called("deploymentState", where=lambda call: call.arguments[0]["state"] == "failed")
        assert "has no class Counter" in refused[0].arguments[0]["error"]
        assert (await node.status())["services"][0]["pid"] == before


async def test_only_the_service_that_changed_is_restarted(hub: FakeHub, node: Node) -> None:
    other = "from base_service import CustomService\n\nclass Other(CustomService):\n    pass\n"
    hub.assign({"Counter.py": COUNTER, "Other.py": other}, count=0)
    async with node.running():
        await hub.called("serviceStates", where=states("running"))
        await hub.called("serviceStates", where=states("running", "other_py"))
        before = {service["id"]: service["pid"] for service in (await node.status())["services"]}
        await hub.deploy({"Counter.py": COUNTER, "Other.py": other + "# newer\n"}, count=0)
        changed = lambda call: any(  # noqa: E731
            state["id"] == "other_py" and state["state"] == "running" and state["pid"] != before["other_py"]
            for state in call.arguments[0]
        )
        await hub.called("serviceStates", where=changed)
        after = {service["id"]: service["pid"] for service in (await node.status())["services"]}
    assert after["counter_py"] == before["counter_py"]
    assert after["other_py"] != before["other_py"]


async def test_inactive_node_stops_its_services_and_starts_them_when_active_again(hub: FakeHub, node: Node) -> None:
    hub.assign({"Counter.py": COUNTER}, count=0)
    async with node.running():
        await hub.called("serviceStates", where=states("running"))
        await hub.call("changeState", "InActive")
        await hub.called("serviceStates", where=lambda call: not call.arguments[0])
        assert (await node.status())["services"] == []
        seen = len(hub.calls)
        await hub.call("changeState", "Active")
        await hub.called("serviceStates", where=lambda call: hub.calls.index(call) >= seen and states("running")(call))


async def test_new_heartbeat_counts_at_once_and_restarts_nothing(hub: FakeHub, node: Node) -> None:
    def policies(seconds: int) -> dict[str, Any]:
        return {"disconnectPolicy": {"heartbeatTimeout": seconds, "missedHearbeatLimit": 3}}

    hub.assign({"Counter.py": COUNTER}, count=0)
    hub.settings["policies"] = policies(3600)
    async with node.running():
        await hub.called("serviceStates", where=states("running"))
        before = (await node.status())["services"][0]["pid"]
        await hub.called("heartBeat")
        await hub.call("updateDeployment", {"manifest": hub.signed_manifest(), "policies": policies(1)})
        await hub.called("heartBeat", count=3)
        assert (await node.status())["services"][0]["pid"] == before
    assert hub.sign_ins == 1


async def test_restart_of_the_portal_ends_this_life_for_another(hub: FakeHub, node: Node) -> None:
    agent = Agent(load_config(gpio="real"), node.paths, load_identity(node.paths), writer=LineWriter(node.log))
    task = asyncio.create_task(agent.run())
    await hub.called("signedIn")
    await hub.call("restart")
    async with asyncio.timeout(30):
        assert await task is Ending.RESTART
    assert (await hub.called("signOut"))[0].arguments[2] == "Offline"


async def test_cloud_calls_methods_changes_the_twin_and_sends_messages(
    hub: FakeHub, cloud: Emulator, node: Node
) -> None:
    hub.assign({"Counter.py": COUNTER}, count=0)
    async with node.running():
        await hub.called("serviceStates", where=states("running"))
        await cloud.wait_for(1)
        answer = await cloud.invoke_method("pi", "counter.add", [1, 2])
        assert (answer.status, answer.payload) == (200, {"sum": 3})
        missing = await cloud.invoke_method("pi", "counter.fly", None)
        assert missing.status == 404
        await cloud.patch_desired("pi", {"target": 21})
        await cloud.send_message("pi", b"[4, 5]", properties={"service": "Counter", "action": "add"})
        messages = await cloud.wait_for(4)
    bodies = [json.loads(message.payload) for message in messages]
    assert {"added": [1, 2]} in bodies
    assert {"added": [4, 5]} in bodies
    assert {"twin": 21} in bodies


async def test_ping_and_state_report_are_answered(hub: FakeHub, node: Node) -> None:
    async with node.running():
        await hub.called("signedIn")
        await hub.call("ping", "person-1")
        assert (await hub.called("pingResponse"))[0].arguments[:4:3] == ["pi", "person-1"]
        await hub.call("reportState", "person-1")
        document, who = (await hub.called("reportStateResponse"))[0].arguments
        assert who == "person-1"
        assert document["agentVersion"]
        assert "environ" not in json.dumps(document).lower()


async def test_errors_reach_the_portal_also_after_an_outage(hub: FakeHub, node: Node) -> None:
    source = (
        "from base_service import CustomService\n\n"
        "class Alarm(CustomService):\n"
        "    async def Start(self):\n"
        "        await self.ThrowError('the tank is empty', '666', 'level below 2 %')\n"
    )
    hub.assign({"Alarm.py": source})
    async with node.running():
        await hub.called("faults")
    first = hub.calls[-1]
    records = [record for call in await hub.called("faults") for record in call.arguments[0]]
    assert [(record["code"], record["text"], record["description"]) for record in records] == [
        ("666", "the tank is empty", "level below 2 %")
    ]
    assert first is not None
    hub.status = 503
    async with node.running():
        async with asyncio.timeout(20):
            while (await node.status())["outbox"]["depth"] < 1:  # noqa: ASYNC110 - the control socket has no event
                await asyncio.sleep(0.02)
    hub.status = 200
    async with node.running():
        await hub.called("faults", count=3)
    sequences = [record["sequence"] for call in hub.calls if call.target == "faults" for record in call.arguments[0]]
    assert sorted(set(sequences)) == [1, 2, 3]


async def test_a_disk_that_takes_no_settings_does_not_end_the_agent(
    hub: FakeHub, cloud: Emulator, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("agent.hub.commands.store_settings", full)
    hub.assign({"Counter.py": COUNTER}, count=2)
    async with node.running():
        await cloud.wait_for(2)
        monkeypatch.setattr("agent.orchestrator.deployments.write_atomically", full)
        await hub.deploy({"Counter.py": COUNTER + "# newer\n"}, count=2)
        refused = await hub.called("deploymentState", where=lambda call: call.arguments[0]["state"] == "failed")
        assert "No space left" in refused[0].arguments[0]["error"]
        assert (await node.status())["services"][0]["state"] == "running"
    assert hub.sign_ins == 1


async def test_new_deployment_has_packages_collected_that_its_services_do_not_use(
    hub: FakeHub, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: asyncio.Queue[tuple[Path, list[str]]] = asyncio.Queue()

    async def collect(root: Path, keep: list[str]) -> None:
        collected.put_nowait((root, keep))

    monkeypatch.setattr("agent.hub.commands.collect_packages", collect)
    hub.assign({"Counter.py": COUNTER}, count=0)
    async with node.running(), asyncio.timeout(20):
        assert await collected.get() == (node.paths.packages, ["counter_py"])


async def test_error_that_the_portal_never_takes_holds_up_no_other(hub: FakeHub, node: Node) -> None:
    source = (
        "from base_service import CustomService\n\n"
        "class Alarm(CustomService):\n"
        "    async def Start(self):\n"
        "        for number in range(3):\n"
        "            await self.ThrowError(f'error {number}')\n"
    )
    hub.assign({"Alarm.py": source})

    def refuses(call: Invocation) -> str:
        poison = call.target == "faults" and any(record["text"] == "error 1" for record in call.arguments[0])
        return f"{ARGUMENTS_INVALID}no such thing" if poison else ""

    hub.refuses = refuses
    async with node.running():
        await hub.called("faults", where=lambda call: [r["text"] for r in call.arguments[0]] == ["error 2"])
        await hub.called("faults", where=lambda call: [r["text"] for r in call.arguments[0]] == ["error 1"])
        async with asyncio.timeout(20):
            while (await node.status())["outbox"]["depth"]:  # noqa: ASYNC110 - the control socket has no event
                await asyncio.sleep(0.02)
        ledger = (await node.status())["outbox"]["services"][0]
    assert ledger["parked"] == {"portal": 1}
    assert ledger["acknowledged"] == {"portal": 2}


async def test_damaged_outbox_is_set_aside_and_the_portal_is_told(hub: FakeHub, node: Node) -> None:
    node.paths.outbox.write_bytes(b"this is no database " * 500)
    async with node.running():
        [call] = await hub.called("faults")
    [record] = call.arguments[0]
    assert (record["service"], record["code"]) == ("agent", "90100")
    assert "outbox.db.damaged-1" in record["text"]
    assert (node.paths.state / "outbox.db.damaged-1").exists()


async def test_no_secret_is_in_the_log(hub: FakeHub, cloud: Emulator, node: Node) -> None:
    hub.assign({"Counter.py": COUNTER}, count=1)
    async with node.running():
        await cloud.wait_for(1)
    identity = load_identity(node.paths)
    for secret in (identity.private_key, "script-token", cloud.device("pi").primary_key):
        assert secret not in node.log.getvalue()
