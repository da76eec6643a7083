"""`outstation pins`: what it prints and what it refuses."""

import argparse
from pathlib import Path

import pytest

from agent.system.pins import PinBoard, PinState
from agent.system.pins_cli import HEADER, add_arguments, describe, draw, run


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    monkeypatch.delenv("OUTSTATION_PINS_SOCKET", raising=False)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


@pytest.fixture
def board(tmp_path: Path) -> PinBoard:
    return PinBoard(tmp_path / "pins.sock")


def state(pin: int, **changes: object) -> PinState:
    values: dict[str, object] = {
        "level": False, "value": 0.0, "function": "free", "pull": "down", "listening": "none",
        "owner": "", "number": 0, "monotonic": 0.0, "wall": 0.0,
    }  # fmt: skip
    return PinState(pin=pin, **(values | changes))  # type: ignore[arg-type]


def test_the_header_has_forty_pins_and_each_bcm_number_once() -> None:
    pins = [pin for row in HEADER for pin in row]

    assert len(pins) == 40
    assert sorted(pin for pin in pins if isinstance(pin, int)) == list(range(28))


def test_the_drawing_shows_level_use_and_owner_without_colour() -> None:
    pins = [
        state(17, level=True, function="input", pull="up", listening="both", owner="readgpio_py (process 7)"),
        state(18, level=True, value=0.25, function="output", owner="lamp_py (process 8)"),
    ]

    row = next(line for line in draw(pins, colour=False).splitlines() if "GPIO17" in line)

    assert row == "readgpio_py input pull-up both  GPIO17 1 11 | 12 1 GPIO18  lamp_py output 25%"


def test_colour_changes_nothing_but_colour(board: PinBoard) -> None:
    board.set(17, True)
    plain, coloured = draw(board.read_all(), colour=False), draw(board.read_all(), colour=True)

    assert "\x1b[" not in plain
    assert "\x1b[1;32m●\x1b[0m 11" in coloured
    assert len(plain.splitlines()) == len(coloured.splitlines()) == 20


def test_a_toggle_that_nobody_saw_is_said(board: PinBoard) -> None:
    assert describe(board.toggle(17)) == "GPIO17 is high (edge 1): no service listens to it."
    assert describe(board.set(17, True)) == "GPIO17 was high already: no edge."


def test_a_pin_may_be_named_as_the_boards_do(parser: argparse.ArgumentParser) -> None:
    assert parser.parse_args(["toggle", "gpio17"]).pin == 17


@pytest.mark.parametrize(
    "command", [["set", "17", "on"], ["set", "seventeen", "high"], ["toggle", "17", "--every", "0"], ["blink", "17"]]
)
def test_a_command_that_makes_no_sense_is_refused(parser: argparse.ArgumentParser, command: list[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        parser.parse_args(command)

    assert ending.value.code == 2


def test_without_an_agent_the_command_says_how_to_start_one(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    arguments = parser.parse_args(["--socket", str(tmp_path / "pins.sock"), "show"])

    with pytest.raises(ConnectionError, match="start the agent with `outstation run --gpio simulated`"):
        run(arguments)
