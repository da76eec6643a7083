# /// script
# requires-python = ">=3.11"
# dependencies = ["gpiozero>=2.0.1.post3"]
# ///
"""Read GPIO pins: one message to the cloud for each edge of a button, a door contact or a motion sensor.

Every edge becomes one message, in order, also without a network: the node keeps messages until the cloud has them.

    {"pin": 17, "value": 1, "edge": "rising", "count": 42, "edge_time": 1767225600.125,
     "time": "2026-01-01T00:00:00.125000+00:00"}

`value` is the level: 1 is high (3.3 V), 0 is low. `count` is how many edges the pin has had since the service started,
so that a gap would show. `edge_time` (seconds since 1970) and `time` (the same, to read) say when the level changed,
not when the message was made. Readings that no edge caused, by `interval` or `heartbeat`, have `"edge": "none"`, their
own `time`, and the `edge_time` of the last edge, or null.

Another service can ask for the levels: `await self.Request("readgpio_py", "read_levels")` gives `{"17": 1}`.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from base_service import CustomService
from gpiozero import GPIOZeroError, InputDevice

CATEGORY = "GPIO"

# What the portal asks the user for. It reads this list without running the file, so it holds plain values only.
PROPERTIES = [
    {
        "id": "pins",
        "label": "Pins",
        "type": "string",
        "default": "17",
        "help": "BCM numbers separated by commas, for example 17,27. BCM 17 is pin 11 of the header.",
    },
    {
        "id": "edge",
        "label": "Edge",
        "type": "string",
        "default": "both",
        "help": "Which changes are sent: both, rising (low to high) or falling (high to low).",
    },
    {
        "id": "pull",
        "label": "Pull resistor",
        "type": "string",
        "default": "up",
        "help": "up for a button to ground, down for a button to 3.3 V, none for a pin that is always driven.",
    },
    {
        "id": "debounce",
        "label": "Debounce (s)",
        "type": "number",
        "default": 0.0,
        "help": "How long a level must be stable to count; 0.02 to 0.05 suits a mechanical button, 0 sends every edge.",
    },
    {
        "id": "interval",
        "label": "Interval (s)",
        "type": "number",
        "default": 0,
        "help": "Also send every pin's level this often; 0 sends edges only.",
    },
    {
        "id": "heartbeat",
        "label": "Heartbeat (s)",
        "type": "number",
        "default": 0,
        "help": "Send the level of a pin that has been silent for this long, as a sign of life; 0 for never.",
    },
]

FAULT_SETTING = "1001"
FAULT_PIN = "1002"
FAULT_OUTBOX = "1003"

BATCH = 200  # submissions under way at once
DRAIN_SECONDS = 8  # the node gives Stop ten seconds
DAY_SECONDS = 86_400
PULLS = {"up": True, "down": False, "none": None}
EDGES = ("both", "rising", "falling")


@dataclass
class Settings:
    """The properties, checked."""

    pins: list[int]
    edge: str
    pull: str
    debounce: float
    interval: float
    heartbeat: float


class Input:
    """One pin. Its listener runs on the GPIO library's thread, so it does as little as it can there."""

    def __init__(self, number: int, settings: Settings, hand_over: Any) -> None:
        self.number = number
        self.count = 0
        self.edge_time: float | None = None
        self.last_reading = time.monotonic()
        self.hand_over = hand_over
        self.debounce = settings.debounce
        pull_up = PULLS[settings.pull]
        self.device = InputDevice(number, pull_up=pull_up, active_state=True if pull_up is None else None)
        # The pin, rather than a gpiozero Button, because it tells when the edge was. It keeps only a weak reference to
        # the listener; this object keeps it alive.
        self.device.pin.bounce = settings.debounce or None
        self.device.pin.edges = settings.edge
        self.device.pin.when_changed = self.changed

    def changed(self, ticks: float, level: int) -> None:
        """Note an edge. Nothing may be raised here: on a Raspberry Pi it would silently end all notifications."""
        try:
            self.count += 1
            self.edge_time = wall_time(ticks) - self.debounce
            self.hand_over(self.reading(int(level), "rising" if level else "falling", self.edge_time))
        except Exception:
            logging.exception("An edge of pin %s was lost", self.number)

    def level(self) -> int:
        """The level of this moment."""
        return int(self.device.pin.state)

    def reading(self, level: int, edge: str, moment: float) -> dict[str, Any]:
        """What is sent."""
        self.last_reading = time.monotonic()
        return {
            "pin": self.number,
            "value": level,
            "edge": edge,
            "count": self.count,
            "edge_time": self.edge_time,
            "time": datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds"),
        }

    def close(self) -> None:
        """Stop listening and give the pin back."""
        self.device.close()


class ReadGPIO(CustomService):
    """Send a message for each edge of the chosen pins."""

    def __init__(self, id: str, queue: Any, config: Any) -> None:
        super().__init__(id, queue, config)
        self.inputs: list[Input] = []
        self.readings: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sender: asyncio.Task[None] | None = None
        self.repeating: list[asyncio.Task[None]] = []

    async def Start(self) -> None:
        """Open the pins. Nothing here waits for the cloud: the node's outbox takes the messages until it is there."""
        try:
            settings = self.read_settings()
        except ValueError as error:
            # The service stays, idle: correct the property in the flow and it starts again.
            await self.ThrowError(str(error), FAULT_SETTING)
            return
        loop = asyncio.get_running_loop()

        def hand_over(reading: dict[str, Any]) -> None:
            # From the GPIO library's thread to this service's loop; keeps the order.
            loop.call_soon_threadsafe(self.readings.put_nowait, reading)

        self.sender = asyncio.create_task(self.send_readings())
        for number in settings.pins:
            try:
                self.inputs.append(Input(number, settings, hand_over))
            except Exception as error:  # noqa: BLE001 - lgpio's errors have no common class but this
                await self.ThrowError(pin_problem(number, error), FAULT_PIN)
        if not self.inputs:
            return
        if settings.interval:
            self.repeating.append(asyncio.create_task(self.poll(settings.interval)))
        if settings.heartbeat:
            self.repeating.append(asyncio.create_task(self.beat(settings.heartbeat)))
        await self.Debug(f"Reading pins {', '.join(str(each.number) for each in self.inputs)}")

    async def Stop(self) -> None:
        """Stop listening, then see every reading that was taken into the outbox."""
        for task in self.repeating:
            task.cancel()
        for each in self.inputs:
            each.close()
        self.inputs.clear()
        await asyncio.sleep(0)  # lets what the GPIO thread handed over reach the queue
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self.readings.join()
        except TimeoutError:
            await self.ThrowError(f"{self.readings.qsize()} readings could not be stored before the stop", FAULT_OUTBOX)
        if self.sender is not None:
            self.sender.cancel()

    async def read_levels(self, message: Any) -> dict[str, int]:
        """Answer another service's Request with the level of each pin."""
        return {str(each.number): each.level() for each in self.inputs}

    async def send_readings(self) -> None:
        """Submit readings in the order of their edges, many at once, so that a burst is not slowed to one by one."""
        while True:
            batch = [await self.readings.get()]
            while len(batch) < BATCH and not self.readings.empty():
                batch.append(self.readings.get_nowait())
            unsent = batch
            while unsent:
                results = await asyncio.gather(*map(self.SubmitMessage, unsent), return_exceptions=True)
                failures = [result for result in results if isinstance(result, Exception)]
                unsent = [reading for reading, result in zip(unsent, results, strict=True) if result is not None]
                if failures:
                    await self.Warning(f"{len(unsent)} readings wait, the outbox did not take them: {failures[0]}")
                    await asyncio.sleep(1)
            for _ in batch:
                self.readings.task_done()

    async def poll(self, seconds: float) -> None:
        """Send every pin's level each `seconds`."""
        while True:
            await asyncio.sleep(seconds)
            for each in self.inputs:
                self.readings.put_nowait(each.reading(each.level(), "none", time.time()))

    async def beat(self, seconds: float) -> None:
        """Send the level of each pin that has been silent for `seconds`."""
        while True:
            longest_silent = min(each.last_reading for each in self.inputs)
            await asyncio.sleep(longest_silent + seconds - time.monotonic())
            for each in self.inputs:
                if time.monotonic() - each.last_reading >= seconds:
                    self.readings.put_nowait(each.reading(each.level(), "none", time.time()))

    def read_settings(self) -> Settings:
        """Check the properties. Raises ValueError with one sentence that says what to correct."""
        return Settings(
            pins=parse_pins(self.setting("pins", self.setting("gpio_pin", ""))),
            edge=self.choice("edge", "both", EDGES),
            pull=self.choice("pull", "up", tuple(PULLS)),
            debounce=self.seconds("debounce", most=10.0),
            interval=self.seconds("interval", most=DAY_SECONDS),
            heartbeat=self.seconds("heartbeat", most=DAY_SECONDS),
        )

    def setting(self, name: str, default: Any) -> Any:
        """A static property, or `default` where the user left it empty."""
        value = self.GetPropertyValue("static", name)
        return default if value in ("undefined", None, "") else value

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        """A property that is one of a few words."""
        value = str(self.setting(name, default)).strip().lower()
        if value not in choices:
            raise ValueError(f"The property {name!r} is {value!r}; it can be {', '.join(choices)}.")
        return value

    def seconds(self, name: str, most: float) -> float:
        """A property that is a length of time."""
        value = self.setting(name, 0)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"The property {name!r} is {value!r}; it must be a number of seconds.") from None
        if not 0 <= number <= most:
            raise ValueError(f"The property {name!r} is {number:g} s; it must be between 0 and {most:g} s.")
        return number


def parse_pins(value: Any) -> list[int]:
    """Read `17,27` (or 17, or a list, or GPIO17). Raises ValueError for anything else."""
    parts = value if isinstance(value, list) else str(value).replace(";", ",").split(",")
    pins: list[int] = []
    for part in parts:
        text = str(part).strip().upper().removeprefix("GPIO").removeprefix("BCM")
        if not text:
            continue
        if not text.isdecimal() or int(text) > 27:
            raise ValueError(f"The property 'pins' names {str(part).strip()!r}; a pin is a BCM number from 0 to 27.")
        if int(text) in pins:
            raise ValueError(f"The property 'pins' names pin {int(text)} twice; name each pin once.")
        pins.append(int(text))
    if not pins:
        raise ValueError("The property 'pins' is empty; give BCM numbers separated by commas, for example 17,27.")
    return pins


def wall_time(ticks: float) -> float:
    """When an edge was, in seconds since 1970.

    `ticks` counts seconds since boot with current kernels and simulated pins, and since 1970 with kernels before 5.7.
    """
    now, since_boot = time.time(), time.monotonic()
    if abs(since_boot - ticks) < DAY_SECONDS:
        return now - (since_boot - ticks)
    return ticks if abs(now - ticks) < DAY_SECONDS else now


def pin_problem(number: int, error: Exception) -> str:
    """One sentence about a pin that cannot be read."""
    reason = str(error).strip().rstrip(".") or type(error).__name__
    hint = "" if isinstance(error, GPIOZeroError) else " (is it free, and may the agent's user open /dev/gpiochip0?)"
    return f"Pin {number} cannot be read: {reason}{hint}."
