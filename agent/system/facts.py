"""Facts about the machine: what it is, and how it is.

Each is a function that never raises for a machine that lacks something: it answers with an empty text or None.
psutil is imported when it is first needed, not with the agent.
"""

from __future__ import annotations

import functools
import platform
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from agent.clock import Clock, SystemClock

_TREE = Path("/proc/device-tree")
_SENSORS = ("cpu_thermal", "coretemp", "k10temp", "soc_thermal", "acpitz")
"""Where the processor's temperature is, a Raspberry Pi's own sensor first."""


class MemoryFacts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Working memory."""

    total_bytes: int
    available_bytes: int
    percent: float
    """In use."""


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The file system that holds a folder."""

    total_bytes: int
    free_bytes: int
    percent: float
    """In use."""


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything at one moment; `msgspec.to_builtins` makes it what the portal is sent."""

    hostname: str
    model: str
    serial_number: str
    operating_system: str
    kernel: str
    architecture: str
    python: str
    boot_id: str
    uptime_seconds: float
    cpu_count: int
    cpu_percent: float
    memory: MemoryFacts
    disk: DiskFacts
    temperature_celsius: float | None
    ip_addresses: list[str]
    mac_addresses: list[str]


def read_facts(folder: Path, *, clock: Clock | None = None) -> MachineFacts:
    """Take all facts at once; `folder` is where the disk is measured, the state directory for example.

    Blocks for a few milliseconds. `cpu_percent` is since the last call.
    """
    return MachineFacts(
        hostname=hostname(),
        model=model(),
        serial_number=serial_number(),
        operating_system=operating_system(),
        kernel=platform.release(),
        architecture=platform.machine(),
        python=platform.python_version(),
        boot_id=(clock or SystemClock()).boot_id(),
        uptime_seconds=uptime_seconds(),
        cpu_count=_psutil().cpu_count() or 1,
        cpu_percent=cpu_percent(),
        memory=memory(),
        disk=disk(folder),
        temperature_celsius=temperature_celsius(),
        ip_addresses=ip_addresses(),
        mac_addresses=mac_addresses(),
    )


def hostname() -> str:
    """The machine's name on the network."""
    return socket.gethostname()


@functools.cache
def model() -> str:
    """The board (`Raspberry Pi 4 Model B Rev 1.4`) or the PC's product name."""
    return _tree("model") or _text(Path("/sys/class/dmi/id/product_name"))


@functools.cache
def serial_number() -> str:
    """The board's serial number; empty where the machine does not tell an ordinary user."""
    return _tree("serial-number") or _text(Path("/sys/class/dmi/id/product_serial"))


@functools.cache
def operating_system() -> str:
    """`Debian GNU/Linux 12 (bookworm)`."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.system()


def uptime_seconds() -> float:
    """Since the kernel started, times of sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def cpu_percent() -> float:
    """How busy all processors were since the last call of this process, 0 to 100; the first call answers 0."""
    return float(_psutil().cpu_percent())


def memory() -> MemoryFacts:
    """Working memory."""
    now = _psutil().virtual_memory()
    return MemoryFacts(total_bytes=now.total, available_bytes=now.available, percent=now.percent)


def disk(folder: Path) -> DiskFacts:
    """The file system of `folder`, or of the nearest folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    total, used, free = shutil.disk_usage(folder)
    # As `df` does: what is reserved for root counts as neither used nor free.
    percent = round(100 * used / (used + free), 1) if used + free else 0.0
    return DiskFacts(total_bytes=total, free_bytes=free, percent=percent)


def temperature_celsius() -> float | None:
    """The processor's temperature, None where there is no sensor."""
    sensors = _psutil().sensors_temperatures()
    for name in (*_SENSORS, *sensors):
        if sensors.get(name):
            return round(float(sensors[name][0].current), 1)
    return None


def ip_addresses() -> list[str]:
    """The machine's addresses, IPv4 before IPv6, without loopback and link-local ones."""
    found = [
        address.address
        for family in (socket.AF_INET, socket.AF_INET6)
        for addresses in _interfaces().values()
        for address in addresses
        if address.family == family
    ]
    return [address for address in found if not address.startswith(("127.", "::1", "169.254.", "fe80:"))]


def mac_addresses() -> list[str]:
    """The hardware addresses of the network interfaces, in lower case, without loopback's."""
    link = _psutil().AF_LINK
    found = {
        address.address.lower()
        for addresses in _interfaces().values()
        for address in addresses
        if address.family == link
    }
    return sorted(found - {"00:00:00:00:00:00"})


def _interfaces() -> dict[str, Any]:
    try:
        return dict(_psutil().net_if_addrs())
    except OSError:
        # A sandbox without AF_NETLINK.
        return {}


def _psutil() -> Any:
    import psutil

    return psutil


def _tree(name: str) -> str:
    return _text(_TREE / name)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""
