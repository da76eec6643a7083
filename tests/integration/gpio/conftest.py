"""A board of simulated pins on a real socket, and factories of other processes."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from gpiozero import Device

from agent.system.pins import PinBoard, PinClient
from services.sdk.simulated_pins import SimulatedFactory


@pytest.fixture
def pins_socket() -> Iterator[Path]:
    # pytest's own temporary folders may be too deep for a Unix socket's path.
    with tempfile.TemporaryDirectory(prefix="pins-") as folder:
        yield Path(folder) / "pins.sock"


@pytest.fixture
async def board(pins_socket: Path, no_blocking_calls: object) -> AsyncIterator[PinBoard]:
    async with PinBoard(pins_socket) as board:
        yield board


@pytest.fixture
async def client(board: PinBoard, pins_socket: Path) -> AsyncIterator[PinClient]:
    async with await PinClient.connect(pins_socket) as client:
        yield client


@pytest.fixture
async def factory(board: PinBoard, pins_socket: Path) -> AsyncIterator[SimulatedFactory]:
    """The pins as a service's process has them; use it from a thread, it waits for the board."""
    factory = await asyncio.to_thread(SimulatedFactory, pins_socket, name="readgpio_py")
    Device.pin_factory = factory
    yield factory
    Device.pin_factory = None
    await asyncio.to_thread(factory.close)


Holder = Callable[[int], Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def hold_in_another_process(board: PinBoard, pins_socket: Path) -> AsyncIterator[Holder]:
    """Start a process that takes a pin as an input and keeps it."""
    processes: list[asyncio.subprocess.Process] = []

    async def hold(pin: int) -> asyncio.subprocess.Process:
        script = (
            "import sys, gpiozero; from services.sdk.simulated_pins import SimulatedFactory\n"
            f"button = gpiozero.Button({pin}, pin_factory=SimulatedFactory({str(pins_socket)!r}, name='other_py'))\n"
            "print('held', flush=True); sys.stdin.read()\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        processes.append(process)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"held\n"
        return process

    yield hold
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()
