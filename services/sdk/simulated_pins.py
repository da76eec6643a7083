"""A gpiozero pin factory without hardware, for laptops, tests and the demo.

`GPIOZERO_PIN_FACTORY=outstation-simulated` selects it; a node whose GPIO mode is `simulated` sets that for services.
With `OUTSTATION_PINS_SOCKET` the pins belong to the agent's board, where `outstation pins` and the demo click them;
without it they are gpiozero's own in-process mock pins.

Pins of a board behave as lgpio's do on a Raspberry Pi where a service could tell: callbacks run on one background
thread for all pins; `bounce_time` is honoured (an edge is told once the level was stable for that long, stamped then);
a pin that another process holds is refused; reading gives the level of this moment. One difference is meant: an
exception in a callback is logged and the next edge is told, where lgpio's only thread would end for good.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import msgspec
from gpiozero.exc import GPIOPinInUse, PinFixedPull, PinInvalidBounce, PinInvalidFunction, PinInvalidPull, PinSetInput
from gpiozero.pins.mock import MockFactory, MockPWMPin

from agent.system.pins import (
    Claim,
    Claimed,
    Drive,
    Edge,
    Edges,
    FromBoard,
    Function,
    Hello,
    PinBoardUnreachableError,
    PinBusyError,
    PinError,
    Pull,
    Refusal,
    Release,
    ToBoard,
    check_socket_path,
    decode_from_board,
    encode_line,
    refusal_error,
)

logger = logging.getLogger("outstation.pins")

SOCKET_VARIABLE = "OUTSTATION_PINS_SOCKET"
ANSWER_TIMEOUT_SECONDS = 10.0
RECONNECT_SECONDS = 1.0


class PinInUseError(PinBusyError, GPIOPinInUse):  # type: ignore[misc]  # gpiozero has no type hints
    """Another process holds the pin, as lgpio's `GPIO busy` says on a Pi."""


class SimulatedFactory(MockFactory):  # type: ignore[misc]  # gpiozero has no type hints
    """Make pins that the agent's board drives.

    Args:
        path: the board's socket; default `OUTSTATION_PINS_SOCKET`, and without that plain in-process mock pins.
        name: who holds the pins, as the board shows it; default `OUTSTATION_SERVICE_ID`, else the program's name.

    Raises PinBoardUnreachableError when the board does not answer.
    """

    def __init__(self, path: Path | str | None = None, *, name: str | None = None) -> None:
        path = path or os.environ.get(SOCKET_VARIABLE) or None
        super().__init__(pin_class=MockPWMPin if path is None else SimulatedPin)
        self._link: _BoardLink | None = None
        if path is not None:
            name = name or os.environ.get("OUTSTATION_SERVICE_ID") or Path(sys.argv[0]).stem or "python"
            self._link = _BoardLink(Path(path), f"{name} (process {os.getpid()})", self._reclaim)

    @property
    def link(self) -> _BoardLink:
        """The connection to the board. Raises PinBoardUnreachableError when the factory was closed."""
        if self._link is None:
            raise PinBoardUnreachableError("The simulated pins of this process were closed.")
        return self._link

    def close(self) -> None:
        """Let every pin go and hang up."""
        super().close()
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def release(self, pin: SimulatedPin) -> None:
        """Give `pin` back to the board."""
        if self._link is not None:
            self._link.release(pin)

    def _reclaim(self) -> None:
        for pin in list(self.pins.values()):
            pin.claim()


class SimulatedPin(MockPWMPin):  # type: ignore[misc]  # gpiozero has no type hints
    """One pin of the board, as gpiozero's devices use it."""

    def __init__(self, factory: SimulatedFactory, info: Any) -> None:
        super().__init__(factory, info)
        self._frequency: Any = None
        self._listening = False
        self._told_level = False
        self._state = False
        self.claim()

    @property
    def bounce_seconds(self) -> float:
        """How long a level must be stable before it is told; 0 for at once."""
        return self._bounce or 0.0

    @property
    def bcm(self) -> int:
        """The BCM number."""
        return int(self._number)

    def claim(self) -> None:
        """Tell the board how this process holds the pin, and take over the level of an input.

        Raises PinInUseError when another process holds it, PinBoardUnreachableError when the board does not answer.
        """
        edges: Edges = "none"
        if self._listening:
            # Whether a level was stable shows only in both edges; the filter is applied after that.
            edges = "both" if self.bounce_seconds else self._edges
        function = cast("Function", self._function)
        pull = cast("Pull", self._pull)
        try:
            level = self.factory.link.claim(
                self, function=function, pull=pull, listening=edges, value=float(self._state)
            )
        except PinBusyError as error:
            raise PinInUseError(str(error)) from error
        if self._function == "input":
            self._state = self._told_level = level

    def close(self) -> None:
        """Give the pin back; waits for nothing, as it may be called when an object is collected."""
        with self._when_changed_lock:
            self._when_changed, self._listening = None, False
        self._function, self._frequency = "input", None
        self.factory.release(self)

    def level_changed(self, level: bool) -> None:
        """Take the level of this moment over (from the reading thread)."""
        if self._function == "input":
            self._change_state(level)

    def edge_settled(self, edge: Edge) -> None:
        """Call the listener, if it is to hear of this edge (from the notification thread)."""
        if self.bounce_seconds:
            if edge.level == self._told_level or self._edges not in ("both", "rising" if edge.level else "falling"):
                self._told_level = edge.level
                return
            self._told_level = edge.level
        listener = self.when_changed
        if listener is not None:
            listener(edge.monotonic, int(edge.level))

    def _set_function(self, value: str) -> None:
        if value not in ("input", "output"):
            raise PinInvalidFunction(f"{value!r} is not a function of {self!r}: it can be input or output.")
        self._function = value
        if value == "output":
            self._state = False
        self.claim()

    def _set_state(self, value: float) -> None:
        if self._function == "input":
            raise PinSetInput(f"{self!r} is an input and cannot be set.")
        # An output without PWM has two levels, whatever number it is given.
        level: float | bool = float(value) if self._frequency else bool(value)
        if self._change_state(level):
            self.factory.link.drive(self, float(level))

    def _set_frequency(self, value: float | None) -> None:
        was, self._frequency = self._frequency, value
        if value is None and was is not None:
            self._set_state(False)

    def _set_pull(self, value: str) -> None:
        if self._function != "input":
            raise PinFixedPull(f"{self!r} is an output and has no pull resistor.")
        if value not in ("up", "down", "floating"):
            raise PinInvalidPull(f"{value!r} is not a pull of {self!r}: it can be up, down or floating.")
        if self.info.pull and value != self.info.pull:
            raise PinFixedPull(f"{self!r} has a pull-{self.info.pull} resistor on the board, which cannot be changed.")
        self._pull = value
        self.claim()

    def _set_bounce(self, value: float | None) -> None:
        if value is not None and value < 0:
            raise PinInvalidBounce(f"The bounce time of {self!r} is {value}; it must be 0 s or more.")
        self._bounce = value
        if self._listening:
            self.claim()

    def _set_edges(self, value: Edges) -> None:
        super()._set_edges(value)
        if self._listening:
            self.claim()

    def _enable_event_detect(self) -> None:
        self._listening = True
        self.claim()

    def _disable_event_detect(self) -> None:
        self._listening = False
        # A board that is gone tells nothing more, which is what was wanted.
        with contextlib.suppress(PinBoardUnreachableError):
            self.claim()


class _BoardLink:
    """The connection to the board, its reading thread, and the one thread that calls listeners."""

    def __init__(self, path: Path, name: str, reclaim: Callable[[], None]) -> None:
        self._path = path
        self._name = name
        self._reclaim = reclaim
        self._ids = itertools.count(1)
        self._pins: dict[int, SimulatedPin] = {}
        self._answers: dict[int, Future[bool]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._edges: queue.SimpleQueue[Edge | Callable[[], None] | None] = queue.SimpleQueue()
        check_socket_path(path)
        try:
            self._socket = self._connect()
        except OSError as error:
            raise PinBoardUnreachableError(
                f"No simulated pins answer at {path} ({SOCKET_VARIABLE}): is the agent running with simulated GPIO?"
            ) from error
        for target, thread_name in ((self._read, "pins-reader"), (self._notify, "pins-notify")):
            threading.Thread(target=target, name=thread_name, daemon=True).start()

    def claim(self, pin: SimulatedPin, *, function: Function, pull: Pull, listening: Edges, value: float) -> bool:
        """Claim `pin` and wait for the answer: its level."""
        self._pins[pin.bcm] = pin
        id = next(self._ids)
        answer: Future[bool] = Future()
        self._answers[id] = answer
        try:
            self._send(Claim(id=id, pin=pin.bcm, function=function, pull=pull, listening=listening, value=value))
            return answer.result(ANSWER_TIMEOUT_SECONDS)
        except (OSError, TimeoutError) as error:
            raise PinBoardUnreachableError(
                f"The simulated pins at {self._path} do not answer: is the agent running?"
            ) from error
        finally:
            del self._answers[id]

    def drive(self, pin: SimulatedPin, value: float) -> None:
        """Tell the board an output's level; one that is away learns it with the next claim."""
        with contextlib.suppress(OSError):
            self._send(Drive(pin=pin.bcm, value=value))

    def release(self, pin: SimulatedPin) -> None:
        """Give a pin back."""
        self._pins.pop(pin.bcm, None)
        with contextlib.suppress(OSError):
            self._send(Release(pin=pin.bcm))

    def close(self) -> None:
        """Hang up; both threads end."""
        self._ended.set()
        self._edges.put(None)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(self._path))
            connection.sendall(encode_line(Hello(name=self._name)))
        except BaseException:
            connection.close()
            raise
        return connection

    def _send(self, message: ToBoard) -> None:
        with self._lock:
            self._socket.sendall(encode_line(message))

    def _read(self) -> None:
        while not self._ended.is_set():
            self._read_connection()
            for answer in list(self._answers.values()):
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the board hung up"))
            if self._ended.is_set():
                return
            logger.warning("The simulated pins went away; trying to reach them again at %s.", self._path)
            while not self._ended.wait(RECONNECT_SECONDS):
                try:
                    connection = self._connect()
                except OSError:
                    continue
                with self._lock:
                    self._socket.close()
                    self._socket = connection
                # Claims wait for answers that this thread reads, so another one makes them.
                self._edges.put(self._reclaim)
                break

    def _read_connection(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._take(decode_from_board(line))
        except PinError:
            logger.exception("The connection to the simulated pins is given up")
        except (OSError, ValueError) as error:
            logger.debug("The connection to the simulated pins broke: %s", error)

    def _take(self, message: FromBoard) -> None:
        match message:
            case Edge():
                pin = self._pins.get(message.pin)
                if pin is not None:
                    pin.level_changed(message.level)
                    self._edges.put(message)
            case Claimed():
                if (answer := self._answers.get(message.id)) is not None:
                    answer.set_result(message.level)
            case Refusal():
                if (answer := self._answers.get(message.id)) is not None:
                    answer.set_exception(refusal_error(message))
            case _:
                logger.debug("The simulated pins sent %s, which a service does not await.", type(message).__name__)

    def _notify(self) -> None:
        unsettled: dict[int, tuple[float, Edge]] = {}
        while True:
            due = min((deadline for deadline, _ in unsettled.values()), default=None)
            try:
                item = self._edges.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            except queue.Empty:
                self._settle(unsettled, time.monotonic())
                continue
            if item is None:
                return
            if isinstance(item, Edge):
                # By the edges' own times, so that a busy machine does not turn two presses into one.
                self._settle(unsettled, item.monotonic)
                pin = self._pins.get(item.pin)
                if pin is None:
                    continue
                if pin.bounce_seconds:
                    unsettled[item.pin] = (item.monotonic + pin.bounce_seconds, item)
                else:
                    self._tell(item)
            else:
                self._guard(item)

    def _settle(self, unsettled: dict[int, tuple[float, Edge]], now: float) -> None:
        for number, (deadline, edge) in sorted(unsettled.items(), key=lambda item: item[1][0]):
            if deadline <= now:
                del unsettled[number]
                late = deadline - edge.monotonic
                self._tell(msgspec.structs.replace(edge, monotonic=edge.monotonic + late, wall=edge.wall + late))

    def _tell(self, edge: Edge) -> None:
        pin = self._pins.get(edge.pin)
        if pin is not None:
            self._guard(lambda: pin.edge_settled(edge))

    @staticmethod
    def _guard(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            # The boundary to a service's code: one bad callback must not end the thread that serves all pins.
            logger.exception("A GPIO callback failed; later edges are still told")
