"""`outstation pins`: look at the simulated pins of a running agent, and press them."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from agent.config import make_paths
from agent.exitcodes import ExitCode
from agent.flags import add_flag
from agent.system.pins import PinChange, PinClient, PinState

LEVELS = ("high", "low", "float")

HEADER: tuple[tuple[str | int, str | int], ...] = (
    ("3V3", "5V"),
    (2, "5V"),
    (3, "GND"),
    (4, 14),
    ("GND", 15),
    (17, 18),
    (27, "GND"),
    (22, 23),
    ("3V3", 24),
    (10, "GND"),
    (9, 25),
    (11, 8),
    ("GND", 7),
    (0, 1),
    (5, "GND"),
    (6, 12),
    (13, "GND"),
    (19, 16),
    (26, 20),
    ("GND", 21),
)
"""The 40-pin header of every Raspberry Pi since the B+, two pins a row; numbers are BCM."""

_PULLS = {"up": "pull-up", "down": "pull-down", "floating": "floating"}
_COLOURS = {"3V3": "33", "5V": "31", "GND": "90", "high": "1;32", "low": "36"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags and the sub-commands of `outstation pins`."""
    add_flag(
        parser,
        "--socket",
        env="OUTSTATION_PINS_SOCKET",
        help="The socket of the simulated pins. Default: pins.sock in the runtime directory.",
    )
    add_flag(parser, "--state-dir", env="OUTSTATION_STATE_DIR", help="The state directory of the agent.")
    add_flag(parser, "--runtime-dir", env="OUTSTATION_RUNTIME_DIR", help="The runtime directory of the agent.")
    commands = parser.add_subparsers(dest="pins_command", metavar="COMMAND", required=True)

    commands.add_parser("show", help="draw the header with every pin's level, direction and owner")
    commands.add_parser("watch", help="print every change of a pin until Ctrl-C")

    set_ = commands.add_parser("set", help="drive a pin from outside, as a wire to 3.3 V or to ground does")
    _add_pin(set_)
    set_.add_argument("level", choices=LEVELS, help="float takes the wire away: the pull resistor decides")

    toggle = commands.add_parser("toggle", help="drive a pin to its other level, once or again and again")
    _add_pin(toggle)
    add_flag(toggle, "--every", env="OUTSTATION_PINS_EVERY", help="Seconds between toggles.", type=_seconds)
    add_flag(
        toggle,
        "--count",
        env="OUTSTATION_PINS_COUNT",
        help="How many toggles. Default: 1, and with --every until Ctrl-C.",
        type=_count,
    )

    pulse = commands.add_parser("pulse", help="press a pin and let it go: toggle it and toggle it back")
    _add_pin(pulse)
    add_flag(pulse, "--seconds", env="OUTSTATION_PINS_SECONDS", help="How long.", type=_seconds, default=0.1)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; PinError (no board, no such pin, a service's output) ends it with one sentence."""
    socket = Path(args.socket) if args.socket else make_paths(args.state_dir, args.runtime_dir).pins_socket
    return asyncio.run(_run(args, socket))


async def _run(args: argparse.Namespace, socket: Path) -> int:
    async with await PinClient.connect(socket) as pins:
        match args.pins_command:
            case "show":
                _say(draw(await pins.read_all(), colour=_colour()))
            case "watch":
                await _watch(pins)
            case "set" if args.level == "float":
                _say(describe(await pins.release(args.pin)))
            case "set":
                _say(describe(await pins.set(args.pin, args.level == "high")))
            case "toggle":
                await _toggle(pins, args.pin, every=args.every, count=args.count)
            case "pulse":
                for change in await pins.pulse(args.pin, args.seconds):
                    _say(describe(change))
    return ExitCode.OK


async def _toggle(pins: PinClient, pin: int, *, every: float | None, count: int | None) -> None:
    remaining = count or (None if every else 1)
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        _say(describe(await pins.toggle(pin)))
        if remaining is not None:
            remaining -= 1
            if remaining == 0:
                return
        # From the first one on, so that the answers' delays do not add up.
        due = max(due + (every or 0.0), loop.time())
        await asyncio.sleep(due - loop.time())


async def _watch(pins: PinClient) -> None:
    known: dict[int, PinState] = {}
    async for state in pins.watch():
        before = known.get(state.pin)
        known[state.pin] = state
        if before is None:
            continue
        if state.number != before.number:
            moment = datetime.fromtimestamp(state.wall).astimezone().strftime("%H:%M:%S.%f")[:-3]
            _say(f"{moment}  GPIO{state.pin} is {_level(state.level)} (edge {state.number})")
        elif state.owner != before.owner:
            _say(f"GPIO{state.pin}: {f'taken by {state.owner}' if state.owner else 'free'}")


def describe(change: PinChange) -> str:
    """Say in one line what a command did, and who saw it."""
    if not change.changed:
        return f"GPIO{change.pin} was {_level(change.level)} already: no edge."
    seen = f"told to {change.listeners} service{'s' if change.listeners != 1 else ''}"
    return (
        f"GPIO{change.pin} is {_level(change.level)} (edge {change.number}): "
        f"{seen if change.listeners else 'no service listens to it'}."
    )


def draw(pins: Sequence[PinState], *, colour: bool) -> str:
    """Draw the header: level, number and name of each pin, and on the outside how it is used."""
    by_number = {pin.pin: pin for pin in pins}
    uses = {number: _use(state) for number, state in by_number.items()}
    width = max(len(uses.get(left, "")) for left, _ in HEADER if isinstance(left, int))
    lines = []
    for row, (left, right) in enumerate(HEADER):
        left_use = uses.get(left, "") if isinstance(left, int) else ""
        right_use = uses.get(right, "") if isinstance(right, int) else ""
        lines.append(
            f"{left_use:>{width}}  {_name(left, colour):>{_wide(6, left, colour)}} "
            f"{_mark(left, by_number, colour)} {2 * row + 1:>2} | {2 * row + 2:<2} "
            f"{_mark(right, by_number, colour)} {_name(right, colour):<{_wide(6, right, colour)}}  {right_use}".rstrip()
        )
    return "\n".join(lines)


def _use(state: PinState) -> str:
    if state.function == "free":
        return ""
    who = state.owner.partition(" ")[0]
    if state.function == "output":
        duty = f" {state.value:.0%}" if state.value not in (0.0, 1.0) else ""
        return f"{who} output{duty}"
    return f"{who} input {_PULLS[state.pull]}" + ("" if state.listening == "none" else f" {state.listening}")


def _name(pin: str | int, colour: bool) -> str:
    return f"GPIO{pin}" if isinstance(pin, int) else _paint(pin, pin, colour)


def _mark(pin: str | int, pins: dict[int, PinState], colour: bool) -> str:
    if isinstance(pin, str):
        return "·"
    state = pins.get(pin)
    if state is None:
        return "?"
    return _paint("●" if state.level else "○", _level(state.level), colour) if colour else str(int(state.level))


def _paint(text: str, kind: str, colour: bool) -> str:
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if colour else text


def _wide(width: int, pin: str | int, colour: bool) -> int:
    """A field's width with the colour codes that take no place."""
    return width + (len(_name(pin, True)) - len(_name(pin, False)) if colour else 0)


def _level(level: bool) -> str:
    return "high" if level else "low"


def _add_pin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pin", type=_pin, metavar="PIN", help="BCM number, 0 to 27, with or without GPIO before it")


def _pin(text: str) -> int:
    return int(text.upper().removeprefix("GPIO"))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 86_400:
        raise argparse.ArgumentTypeError("it must be more than 0 and less than a day")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return count


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the command line
