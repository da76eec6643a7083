# /// script
# requires-python = ">=3.11"
# dependencies = ["psutil>=6"]
# ///
"""Measure the node itself: processor, memory, disk, temperature, and whether a Raspberry Pi was throttled.

One message each interval, the first one at the start:

    {"time": "2026-01-01T00:00:00+00:00", "uptime": 86400, "cpu_percent": 3.5, "load": [0.1, 0.2, 0.1],
     "memory_percent": 41.0, "memory_available": 559000000, "swap_percent": 0.0,
     "disk_percent": 23.1, "disk_free": 23000000000, "temperature": 48.3,
     "throttled": {"now": [], "since_boot": ["under_voltage"]}}

Sizes are in bytes, `temperature` in degrees Celsius, `uptime` in seconds. What the machine cannot tell is null.
`throttled` names what the power supply or the heat did to a Raspberry Pi: `under_voltage`, `frequency_capped`,
`throttled`, `soft_temperature_limit`.
"""

import asyncio
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from base_service import CustomService, ServiceError

CATEGORY = "System"

# What the portal asks the user for. It reads this list without running the file, so it holds plain values only.
PROPERTIES = [
    {
        "id": "interval",
        "label": "Interval (s)",
        "type": "number",
        "default": 60,
        "help": "How often to measure, from 1 second to one day.",
    },
    {
        "id": "path",
        "label": "Disk",
        "type": "string",
        "default": "/",
        "help": "A folder of the file system whose free space is measured.",
    },
]

FAULT_SETTING = "1001"
DAY_SECONDS = 86_400
THROTTLE_FILE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
THROTTLE_BITS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
SENSORS = ("cpu_thermal", "coretemp", "k10temp", "soc_thermal", "acpitz")  # a Raspberry Pi's own sensor first


class SystemMetrics(CustomService):
    """Send what the machine is doing, once each interval."""

    def __init__(self, id: str, queue: Any, config: Any) -> None:
        super().__init__(id, queue, config)
        self.stopped = asyncio.Event()

    async def Start(self) -> None:
        """Measure and send until the service is stopped."""
        try:
            interval, path = self.read_settings()
        except ValueError as error:
            # The service stays, idle: correct the property in the flow and it starts again.
            await self.ThrowError(str(error), FAULT_SETTING)
            return
        psutil.cpu_percent()  # counts from here; the first call has nothing to compare with
        while not self.stopped.is_set():
            try:
                await self.SubmitMessage(await self.measure(path))
            except ServiceError as error:
                await self.Warning(f"A measurement is lost, the outbox did not take it: {error}")
            try:
                async with asyncio.timeout(interval):
                    await self.stopped.wait()
            except TimeoutError:
                continue

    async def Stop(self) -> None:
        """End the loop."""
        self.stopped.set()

    async def measure(self, path: str) -> dict[str, Any]:
        """One message's content."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(path)
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "uptime": round(time.clock_gettime(time.CLOCK_BOOTTIME)),
            "cpu_percent": psutil.cpu_percent(),
            "load": [round(load, 2) for load in psutil.getloadavg()],
            "memory_percent": memory.percent,
            "memory_available": memory.available,
            "swap_percent": psutil.swap_memory().percent,
            "disk_percent": disk.percent,
            "disk_free": disk.free,
            "temperature": temperature(),
            "throttled": await throttled(),
        }

    def read_settings(self) -> tuple[float, str]:
        """Check the properties. Raises ValueError with one sentence that says what to correct."""
        interval = self.GetPropertyValue("static", "interval")
        path = self.GetPropertyValue("static", "path")
        interval = 60 if interval in ("undefined", None, "") else interval
        path = "/" if path in ("undefined", None, "") else str(path)
        try:
            seconds = float(interval)
        except (TypeError, ValueError):
            raise ValueError(f"The property 'interval' is {interval!r}; it must be a number of seconds.") from None
        if not 1 <= seconds <= DAY_SECONDS:
            raise ValueError(f"The property 'interval' is {seconds:g} s; it must be from 1 to {DAY_SECONDS} s.")
        if not Path(path).exists():
            raise ValueError(f"The property 'path' is {path!r}; there is no such folder on this node.")
        return seconds, path


def temperature() -> float | None:
    """The processor's temperature in degrees Celsius, None where there is no sensor."""
    sensors = psutil.sensors_temperatures()
    for name in (*SENSORS, *sensors):
        if sensors.get(name):
            return round(sensors[name][0].current, 1)
    return None


async def throttled() -> dict[str, list[str]] | None:
    """What a Raspberry Pi's firmware says about power and heat, None on other machines."""
    if THROTTLE_FILE.exists():
        text = THROTTLE_FILE.read_text("ascii")
    elif command := shutil.which("vcgencmd"):
        process = await asyncio.create_subprocess_exec(
            command, "get_throttled", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await process.communicate()
        text = output.decode("ascii", "replace").partition("=")[2]
    else:
        return None
    try:
        return throttle_flags(int(text.strip(), 16))
    except ValueError:
        return None


def throttle_flags(bits: int) -> dict[str, list[str]]:
    """Name the flags: bits 0 to 3 are now, bits 16 to 19 have been set at some time since boot."""
    return {
        "now": [name for bit, name in enumerate(THROTTLE_BITS) if bits >> bit & 1],
        "since_boot": [name for bit, name in enumerate(THROTTLE_BITS) if bits >> (bit + 16) & 1],
    }
