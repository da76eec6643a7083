"""The board's socket: several controllers, watching, wrong input, and the command line."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

from agent.system.pins import PinBoard, PinBoardUnreachableError, PinClient, PinInvalidError, PinState


async def collect(client: PinClient, wanted: int) -> list[PinState]:
    """The pins' states until edge number `wanted` of pin 17."""
    seen: list[PinState] = []
    async with asyncio.timeout(10):
        async for state in client.watch():
            seen.append(state)
            if state.pin == 17 and state.number == wanted:
                return seen
    return seen


async def test_the_socket_is_the_agents_alone(board: PinBoard, pins_socket: Path) -> None:
    assert stat.S_IMODE(pins_socket.stat().st_mode) == 0o600


async def test_a_watcher_sees_what_another_controller_does(client: PinClient, pins_socket: Path) -> None:
    async with await PinClient.connect(pins_socket) as other:
        watching = asyncio.create_task(collect(client, 2))
        await client.read(17)  # answered after the watch began
        await other.set(17, True)
        await other.set(17, False)

        seen = await watching

    assert [state.pin for state in seen[:28]] == list(range(28))
    assert [(state.level, state.number) for state in seen if state.pin == 17] == [(False, 0), (True, 1), (False, 2)]


async def test_a_pulse_keeps_no_other_command_waiting(client: PinClient) -> None:
    pulse = asyncio.create_task(client.pulse(17, 0.2))
    while not (await client.read(17)).level:
        pass

    assert not pulse.done()
    first, second = await pulse
    assert (first.level, second.level) == (True, False)


async def test_a_wrong_pin_is_refused_and_the_connection_goes_on(client: PinClient) -> None:
    with pytest.raises(PinInvalidError, match="There is no pin 40"):
        await client.toggle(40)

    assert (await client.toggle(17)).level is True


@pytest.mark.parametrize(
    "line", [b"hello\n", b'{"type":"explode"}\n', b'{"type":"drive","pin":99,"value":1}\n', b"x" * 200_000]
)
async def test_who_sends_something_else_is_hung_up_on_and_nobody_else(
    client: PinClient, pins_socket: Path, line: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(pins_socket)
    writer.write(line)

    assert await asyncio.wait_for(reader.read(), 10) == b""
    assert (await client.toggle(17)).changed
    writer.close()


async def test_calls_end_when_the_board_goes_away(board: PinBoard, pins_socket: Path) -> None:
    client = await PinClient.connect(pins_socket)
    pulse = asyncio.create_task(client.pulse(17, 60))
    await client.read(17)

    await board.close()

    for call in (pulse, client.toggle(17)):
        with pytest.raises(PinBoardUnreachableError, match="went away"):
            await asyncio.wait_for(call, 10)
    await client.close()
    assert not pins_socket.exists()


async def run_pins(pins_socket: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.cli", "pins", *arguments,
        env={**os.environ, "OUTSTATION_PINS_SOCKET": str(pins_socket)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_command_line_sets_toggles_and_shows(board: PinBoard, pins_socket: Path) -> None:
    assert await run_pins(pins_socket, "set", "17", "high") == (
        0,
        "GPIO17 is high (edge 1): no service listens to it.\n",
    )
    status, output = await run_pins(pins_socket, "toggle", "17", "--every", "0.01", "--count", "3")
    assert (status, output.count("\n")) == (0, 3)
    assert board.read(17).number == 4
    _, drawing = await run_pins(pins_socket, "show")
    assert "GPIO17 0 11 | 12 0 GPIO18" in drawing
    assert "\x1b" not in drawing


async def test_the_command_line_says_what_is_wrong(board: PinBoard, pins_socket: Path) -> None:
    status, output = await run_pins(pins_socket, "toggle", "99")

    assert status == 1
    assert output == "outstation: There is no pin 99: the header has BCM 0 to 27. [pin_invalid]\n"


async def test_a_watcher_that_does_not_read_is_hung_up_on_and_the_board_still_closes(
    board: PinBoard, pins_socket: Path
) -> None:
    reader, writer = await asyncio.open_unix_connection(pins_socket, limit=1024)
    writer.write(b'{"type":"command","id":1,"action":"watch"}\n')
    await asyncio.wait_for(reader.readuntil(b'"id":1'), 10)
    writer.transport.pause_reading()  # type: ignore[attr-defined]

    for _ in range(20_000):
        board.toggle(17)
    await asyncio.wait_for(board.close(), 10)

    assert board.read(17).number == 20_000
    writer.close()
