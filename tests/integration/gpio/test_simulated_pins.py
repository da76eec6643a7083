"""gpiozero devices on the agent's board, over its socket."""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gpiozero import LED, PWMLED, Button, Device, InputDevice
from gpiozero.exc import PinFixedPull
from gpiozero.pins.mock import MockPin

from agent.system.pins import PinBoard, PinBoardUnreachableError, PinBusyError, PinClient
from services.sdk.simulated_pins import PinInUseError, SimulatedFactory

pytestmark = pytest.mark.usefixtures("factory")


@dataclass
class Heard:
    """What a listener was called with."""

    level: int
    ticks: float
    thread: str


class Listener:
    """An input whose edges go to a queue."""

    def __init__(self, pin: int, *, bounce: float | None = None, edges: str = "both") -> None:
        self.heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self.device = InputDevice(pin)
        self.device.pin.bounce = bounce
        self.device.pin.edges = edges
        self.device.pin.when_changed = self.changed

    def changed(self, ticks: float, level: int) -> None:
        self.heard.put(Heard(level, ticks, threading.current_thread().name))

    async def next(self) -> Heard:
        return await asyncio.to_thread(self.heard.get, timeout=10)


async def listen(pin: int, **options: Any) -> Listener:
    return await asyncio.to_thread(lambda: Listener(pin, **options))


async def test_every_edge_of_every_pin_is_told_in_order_on_one_background_thread(client: PinClient) -> None:
    left, right = await listen(17), await listen(27)

    changes = [await client.toggle(pin) for _ in range(50) for pin in (17, 27)]
    heard = [await left.next() for _ in range(50)], [await right.next() for _ in range(50)]

    assert [change.listeners for change in changes] == [1] * 100
    for one in heard:
        assert [each.level for each in one] == [1, 0] * 25
    assert {each.thread for one in heard for each in one} == {"pins-notify"}


async def test_the_ticks_are_the_moment_of_the_edge(client: PinClient) -> None:
    listener = await listen(17)

    change = await client.toggle(17)

    assert (await listener.next()).ticks == change.monotonic
    assert abs(change.monotonic - time.monotonic()) < 5
    assert abs(change.wall - time.time()) < 5


async def test_only_the_wanted_edges_are_told_and_counted_as_told(client: PinClient) -> None:
    listener = await listen(17, edges="falling")

    rising, falling = await client.set(17, True), await client.set(17, False)

    assert (rising.listeners, falling.listeners) == (0, 1)
    assert (await listener.next()).level == 0


async def test_a_toggle_after_the_device_was_closed_is_seen_by_nobody(client: PinClient) -> None:
    listener = await listen(17)
    await asyncio.to_thread(listener.device.close)

    assert (await client.toggle(17)).listeners == 0
    assert (await client.read(17)).owner == ""


@pytest.mark.parametrize("edges", ["both", "rising"])
async def test_bounces_of_a_button_are_one_press(client: PinClient, edges: str) -> None:
    listener = await listen(17, bounce=0.1, edges=edges)

    for level in (True, False, True, False, True):
        last = await client.set(17, level)
    pressed = await listener.next()

    assert pressed.level == 1
    # As lgpio does: stamped when the level had been stable for long enough.
    assert pressed.ticks == pytest.approx(last.monotonic + 0.1)
    assert listener.heard.empty()


async def test_a_level_that_was_stable_is_told_however_late_the_process_is(client: PinClient) -> None:
    listener = await listen(17, bounce=0.05)

    first = await client.set(17, True)
    await client.pulse(4, 0.1)  # lets time pass on the board
    await client.set(17, False)

    heard = [await listener.next(), await listener.next()]
    assert [each.level for each in heard] == [1, 0]
    assert heard[0].ticks == pytest.approx(first.monotonic + 0.05)


async def test_an_exception_in_one_callback_does_not_silence_the_others(
    client: PinClient, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(*_: object) -> None:
        raise RuntimeError("broken callback")

    def make_bad() -> InputDevice:
        device = InputDevice(4)
        device.pin.when_changed = bad
        return device

    device = await asyncio.to_thread(make_bad)
    listener = await listen(17)

    with caplog.at_level(logging.ERROR):
        await client.toggle(4)
        await client.toggle(17)
        await listener.next()

    assert "A GPIO callback failed" in caplog.text
    assert "broken callback" in caplog.text
    await asyncio.to_thread(device.close)


async def test_gpiozeros_own_events_work(client: PinClient) -> None:
    pressed = threading.Event()

    def make() -> Button:
        button = Button(2)
        button.when_pressed = pressed.set
        return button

    button = await asyncio.to_thread(make)
    assert not button.is_pressed

    await client.set(2, False)

    assert await asyncio.to_thread(pressed.wait, 10)
    assert button.is_pressed


async def test_an_input_takes_the_level_of_its_resistor_unless_something_drives_it(client: PinClient) -> None:
    await client.set(27, False)

    up, driven = await asyncio.to_thread(lambda: (InputDevice(17, pull_up=True), InputDevice(27, pull_up=True)))

    assert (up.pin.state, driven.pin.state) == (True, False)
    assert (await client.read(17)).level is True


async def test_a_resistor_that_is_soldered_cannot_be_changed() -> None:
    with pytest.raises(PinFixedPull, match="GPIO2 has a pull-up resistor on the board"):
        await asyncio.to_thread(InputDevice, 2, pull_up=False)


async def test_an_output_is_shown_and_cannot_be_driven_from_outside(client: PinClient) -> None:
    led = await asyncio.to_thread(LED, 18)
    await asyncio.to_thread(led.on)

    state = await client.read(18)

    assert (state.level, state.function, state.owner.split()[0]) == (True, "output", "readgpio_py")
    with pytest.raises(PinBusyError, match="Pin 18 is an output of readgpio_py"):
        await client.toggle(18)


async def test_a_dimmed_output_shows_its_duty_cycle(client: PinClient) -> None:
    led = await asyncio.to_thread(PWMLED, 18)
    await asyncio.to_thread(setattr, led, "value", 0.25)

    state = await client.read(18)

    assert (state.value, state.level) == (0.25, False)
    await asyncio.to_thread(led.close)
    assert (await client.read(18)).value == 0.0


async def test_a_pin_of_another_process_is_busy(
    client: PinClient, hold_in_another_process: Callable[[int], Awaitable[asyncio.subprocess.Process]]
) -> None:
    await hold_in_another_process(17)

    with pytest.raises(PinInUseError, match="GPIO busy: pin 17 is held by other_py"):
        await asyncio.to_thread(InputDevice, 17)


async def test_a_pin_is_free_as_soon_as_its_process_was_killed(
    client: PinClient, hold_in_another_process: Callable[[int], Awaitable[asyncio.subprocess.Process]]
) -> None:
    process = await hold_in_another_process(17)

    process.kill()
    listener = await listen(17)

    assert (await client.toggle(17)).listeners == 1
    assert (await listener.next()).level == (await client.read(17)).level


async def test_a_new_board_after_the_agent_was_killed_is_found_again(
    board: PinBoard, pins_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener = await listen(17)
    await board.close()

    async with PinBoard(pins_socket), await PinClient.connect(pins_socket) as again:
        async with asyncio.timeout(20):
            async for state in again.watch():
                if state.pin == 17 and state.listening == "both":
                    break
        change = await again.toggle(17)

        assert change.listeners == 1
        assert (await listener.next()).ticks == change.monotonic
        assert "The simulated pins went away" in caplog.text
        await asyncio.to_thread(Device.pin_factory.close)


async def test_a_burst_of_edges_is_told_completely(board: PinBoard) -> None:
    listener = await listen(17)

    changes = [board.toggle(17) for _ in range(2000)]
    heard = [await listener.next() for _ in range(2000)]

    assert [each.ticks for each in heard] == [change.monotonic for change in changes]
    assert [bool(each.level) for each in heard] == [change.level for change in changes]


async def test_a_service_that_cannot_find_its_board_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(PinBoardUnreachableError, match="is the agent running with simulated GPIO"):
        await asyncio.to_thread(SimulatedFactory, tmp_path / "p.sock")


async def test_without_a_board_the_pins_are_plain_mock_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTSTATION_PINS_SOCKET", raising=False)
    factory = SimulatedFactory()
    pressed = threading.Event()
    button = Button(17, pin_factory=factory)
    button.when_pressed = pressed.set

    pin = factory.pin(17)
    assert isinstance(pin, MockPin)
    pin.drive_low()

    assert pressed.is_set()
    factory.close()


async def test_gpiozero_finds_the_factory_by_its_name(board: PinBoard, pins_socket: Path) -> None:
    script = "from gpiozero import Device; Device.ensure_pin_factory(); print(type(Device.pin_factory).__name__)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE,
        env={"GPIOZERO_PIN_FACTORY": "outstation-simulated", "OUTSTATION_PINS_SOCKET": str(pins_socket)},
    )  # fmt: skip

    output, _ = await asyncio.wait_for(process.communicate(), 30)

    assert output == b"SimulatedFactory\n"
