"""The library's services in processes of their own, on the board's pins, up to what they hand to the outbox."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import SystemClock
from agent.errors import StorageError
from agent.hub.protocol import Property, ServiceConfig
from agent.orchestrator.orchestrator import LogRecord, Orchestrator, ServiceSpec, ServiceStatus
from agent.outbox.message import Submission
from agent.paths import Paths
from agent.system.pins import PinBoard

WAIT_SECONDS = 30.0


class Node:
    """The orchestrator with one library service, and everything that it hands to the outbox."""

    def __init__(self, paths: Paths, pins_socket: Path) -> None:
        self.submissions: list[Submission] = []
        self.lines: list[LogRecord] = []
        self.held_back: list[Callable[[], None]] | None = None
        self._changed = asyncio.Event()
        self.orchestrator = Orchestrator(
            paths=paths,
            clock=SystemClock(),
            submit_many=self._submit_many,
            built_ins=[],
            log=self._log,
            settings=dict,
            on_state=self._state,
            environment={"GPIOZERO_PIN_FACTORY": "outstation-simulated", "OUTSTATION_PINS_SOCKET": str(pins_socket)},
        )

    async def run(self, name: str, version: str = "1.0", **properties: Any) -> None:
        """Deploy the library service `name` with these static properties."""
        script = Path("services/library") / f"{name}.py"
        config = ServiceConfig(static_config=[Property(id=id, value=value) for id, value in properties.items()])
        spec = ServiceSpec(
            id=f"{name.lower()}_py",
            class_name=name,
            file_name=script.name,
            version=version,
            script=script.absolute(),
            sha256=hashlib.sha256(script.read_bytes()).hexdigest(),
            config=config,
        )
        await self.orchestrator.apply([spec])

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something to be true; looks again whenever the node says anything."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not (value := condition()):
                    self._changed.clear()
                    await self._changed.wait()
                return value
        except TimeoutError:
            raise AssertionError("\n".join(f"{line.level}: {line.text}" for line in self.lines[-20:])) from None

    async def said(self, text: str) -> None:
        """Wait for a line."""
        await self.until(lambda: any(text in line.text for line in self.lines))

    async def readings(self, count: int) -> list[dict[str, Any]]:
        """Wait for that many messages."""
        await self.until(lambda: len(self.payloads("telemetry")) >= count)
        return self.payloads("telemetry")

    async def fault(self) -> dict[str, Any]:
        """Wait for an error."""
        await self.until(lambda: self.payloads("fault"))
        found: dict[str, Any] = self.payloads("fault")[0]
        return found

    def payloads(self, kind: str) -> list[Any]:
        """What was submitted, decoded."""
        return [msgspec.json.decode(each.payload) for each in self.submissions if each.kind == kind]

    def _submit_many(
        self, submissions: Sequence[Submission], callback: Callable[[list[int], StorageError | None], None]
    ) -> None:
        def commit() -> None:
            self.submissions.extend(submissions)
            self._changed.set()
            callback(list(range(1, len(submissions) + 1)), None)

        if self.held_back is None:
            commit()
        else:
            self.held_back.append(commit)
            self._changed.set()

    def release(self) -> None:
        """Commit what was held back, and everything from now on."""
        held, self.held_back = self.held_back or [], None
        for commit in held:
            commit()

    def _log(self, record: LogRecord) -> None:
        self.lines.append(record)
        self._changed.set()

    def _state(self, status: ServiceStatus) -> None:
        self._changed.set()


@pytest.fixture
async def node(board: PinBoard, pins_socket: Path) -> AsyncIterator[Node]:
    folder = pins_socket.parent
    node = Node(Paths(state=folder / "state", runtime=folder / "run"), pins_socket)
    running = asyncio.create_task(node.orchestrator.run())
    yield node
    await node.orchestrator.stop(10)
    await running


async def test_every_edge_is_one_message_in_order_with_its_own_time(node: Node, board: PinBoard) -> None:
    await node.run("ReadGPIO", pins="17,27", pull="down")
    await node.said("Reading pins 17, 27")

    changes = [board.toggle(pin) for _ in range(5) for pin in (17, 27)]
    readings = await node.readings(10)

    assert [(each["pin"], each["value"], each["count"]) for each in readings] == [
        (pin, value, count) for count, value in enumerate([1, 0, 1, 0, 1], 1) for pin in (17, 27)
    ]
    assert [each["edge"] for each in readings] == ["rising", "rising", "falling", "falling"] * 2 + ["rising"] * 2
    for reading, change in zip(readings, changes, strict=True):
        assert reading["edge_time"] == pytest.approx(change.wall, abs=0.005)
        assert datetime.fromisoformat(reading["time"]).timestamp() == pytest.approx(reading["edge_time"], abs=1e-5)
    assert {each.content_type for each in node.submissions} == {"application/json"}


async def test_a_burst_is_complete_although_the_outbox_is_slower(node: Node, board: PinBoard) -> None:
    await node.run("ReadGPIO", pins="17", pull="down")
    await node.said("Reading pins 17")
    node.held_back = []

    for _ in range(3000):
        assert board.toggle(17).listeners == 1
        await asyncio.sleep(0)
    await node.until(lambda: node.held_back)
    node.release()
    readings = await node.readings(3000)

    assert [each["count"] for each in readings] == list(range(1, 3001))


async def test_a_stop_sees_every_reading_into_the_outbox(node: Node, board: PinBoard) -> None:
    await node.run("ReadGPIO", pins="17", pull="down")
    await node.said("Reading pins 17")
    node.held_back = []
    for _ in range(20):
        board.toggle(17)
    await node.until(lambda: node.held_back)

    stopping = asyncio.create_task(node.orchestrator.stop(10))
    await node.until(lambda: any(status.state == "stopping" for status in node.orchestrator.statuses()))
    node.release()
    await stopping

    assert len(node.payloads("telemetry")) == 20
    assert board.read(17).owner == ""


async def test_a_killed_service_is_started_again_and_reads_its_pins(node: Node, board: PinBoard) -> None:
    await node.run("ReadGPIO", pins="17", pull="down")
    await node.said("Reading pins 17")
    (status,) = node.orchestrator.statuses()
    assert status.pid is not None
    node.lines.clear()

    os.kill(status.pid, signal.SIGKILL)
    await node.said("Reading pins 17")
    board.toggle(17)

    assert (await node.readings(1))[0]["count"] == 1


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"pins": "17,99"}, "The property 'pins' names '99'; a pin is a BCM number from 0 to 27."),
        ({"pins": "17", "debounce": "soon"}, "The property 'debounce' is 'soon'; it must be a number of seconds."),
        ({"pins": "2", "pull": "down"}, "Pin 2 cannot be read: GPIO2 has a pull-up resistor on the board"),
    ],
)
async def test_a_wrong_property_is_a_fault_and_the_service_stays(
    node: Node, properties: dict[str, Any], sentence: str
) -> None:
    await node.run("ReadGPIO", **properties)

    fault = await node.fault()

    assert str(fault).find(sentence) > 0
    await node.until(lambda: [status.state for status in node.orchestrator.statuses()] == ["running"])


async def test_levels_are_also_sent_without_edges(node: Node, board: PinBoard) -> None:
    await node.run("ReadGPIO", pins="17,4", pull="up", interval="0.05")

    readings = await node.readings(6)

    assert {(each["pin"], each["value"], each["edge"], each["edge_time"]) for each in readings} == {
        (17, 1, "none", None),
        (4, 1, "none", None),
    }


async def test_a_silent_pin_gives_a_sign_of_life(node: Node, board: PinBoard) -> None:
    await node.run("ReadGPIO", pins="17", pull="down", heartbeat=0.1)
    await node.said("Reading pins 17")

    board.toggle(17)
    readings = await node.readings(4)

    (edge,) = [each for each in readings if each["edge"] == "rising"]
    after = readings[readings.index(edge) + 1 :]
    assert {(each["edge"], each["count"], each["edge_time"]) for each in after} <= {("none", 1, edge["edge_time"])}


async def test_bounces_are_one_message_stamped_at_the_edge(node: Node, board: PinBoard) -> None:
    await node.run("ReadGPIO", pins="17", pull="down", debounce=0.1, edge="rising")
    await node.said("Reading pins 17")

    for _ in range(5):
        change = board.toggle(17)
    (reading,) = await node.readings(1)

    assert reading["edge_time"] == pytest.approx(change.wall, abs=0.02)


async def test_system_metrics_arrive_each_interval(node: Node) -> None:
    await node.run("SystemMetrics", interval=1)

    first, second = (await node.readings(2))[:2]

    assert second["uptime"] - first["uptime"] in (1, 2, 3)
    assert 0 < first["memory_percent"] < 100
