"""The board of simulated pins, without its socket."""

from pathlib import Path

import pytest

from agent.system.pins import PIN_COUNT, PinBoard, PinError, PinInvalidError


@pytest.fixture
def board(tmp_path: Path) -> PinBoard:
    return PinBoard(tmp_path / "pins.sock")


def test_undriven_pins_follow_the_resistors_that_a_pi_has_at_reset(board: PinBoard) -> None:
    levels = [pin.level for pin in board.read_all()]

    assert levels == [True] * 9 + [False] * (PIN_COUNT - 9)


def test_a_set_that_changes_nothing_is_no_edge(board: PinBoard) -> None:
    first, second = board.set(17, True), board.set(17, True)

    assert (first.changed, first.number) == (True, 1)
    assert (second.changed, second.number) == (False, 1)


def test_each_toggle_is_the_next_edge_and_nobody_was_told(board: PinBoard) -> None:
    changes = [board.toggle(17) for _ in range(3)]

    assert [change.level for change in changes] == [True, False, True]
    assert [change.number for change in changes] == [1, 2, 3]
    assert [change.listeners for change in changes] == [0, 0, 0]
    assert sorted(change.monotonic for change in changes) == [change.monotonic for change in changes]


def test_a_released_pin_goes_back_to_its_resistor(board: PinBoard) -> None:
    board.set(4, False)

    assert board.release(4).level is True


async def test_a_pulse_is_two_edges(board: PinBoard) -> None:
    first, second = await board.pulse(17, 0.01)

    assert (first.level, second.level) == (True, False)
    assert second.monotonic - first.monotonic >= 0.01


@pytest.mark.parametrize("pin", [-1, 28, 1000])
def test_a_pin_that_the_header_does_not_have_is_refused(board: PinBoard, pin: int) -> None:
    with pytest.raises(PinInvalidError, match=f"no pin {pin}: the header has BCM 0 to 27"):
        board.toggle(pin)


async def test_a_socket_path_that_the_system_does_not_take_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PinError, match="the system allows 107: choose a runtime directory with a shorter path"):
        await PinBoard(tmp_path / ("x" * 120) / "pins.sock").start()
