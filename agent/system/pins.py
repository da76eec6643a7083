"""Simulated GPIO pins: a board that several services read and drive, and that people and programs can click.

The board lives in the agent and listens on a Unix socket. Lines of JSON go both ways: a service's pin factory
(`services.sdk.simulated_pins`) claims pins and is told their edges; a controller (`PinClient`: the command line, the
demo, a page) sets levels and watches. It behaves as the kernel's GPIO does where a program could tell the difference: a
pin belongs to one process at a time, its claims end with the process, and an undriven input follows its pull resistor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar, Literal, Self

import msgspec

from agent.clock import Clock, SystemClock
from agent.errors import OutstationError

logger = logging.getLogger(__name__)

PIN_COUNT = 28
"""BCM 0 to 27: what the 40-pin header carries."""
SOCKET_PATH_LIMIT_BYTES = 107
"""Of a Unix socket's path, by the kernel."""
UNSENT_LIMIT_BYTES = 1024 * 1024
"""A peer that leaves more than this unread is told nothing more until it reads."""
CLAIM_GRACE_SECONDS = 0.5
"""How long a claim waits for the pin's last owner, which may just be ending."""

Function = Literal["input", "output"]
Pull = Literal["up", "down", "floating"]
Edges = Literal["none", "rising", "falling", "both"]


class PinError(OutstationError):
    """Something about a simulated pin cannot be done; the text says what and why."""

    code: ClassVar[str] = "pin_error"


class PinInvalidError(PinError, ValueError):
    """There is no such pin."""

    code = "pin_invalid"


class PinBusyError(PinError):
    """Another process holds the pin, or drives it as an output."""

    code = "pin_busy"


class PinBoardUnreachableError(PinError, ConnectionError):
    """No board listens at the socket, or it went away."""

    code = "pins_unreachable"


# --- What travels ---------------------------------------------------------------------------------------------------


class PinState(msgspec.Struct, tag="pin", frozen=True, kw_only=True):
    """One pin as it is now."""

    pin: int
    level: bool
    value: float
    """The level, or the duty cycle (0 to 1) of an output that is pulse-width modulated."""
    function: Literal["input", "output", "free"]
    pull: Pull
    listening: Edges
    """The edges that the owner is told."""
    owner: str
    """The service that holds the pin; empty for none."""
    number: int
    """Counts the pin's edges from 1, whoever saw them, since the board started."""
    monotonic: float
    """When the last edge was, in seconds of CLOCK_MONOTONIC."""
    wall: float
    """The same moment in seconds since 1970."""


class PinChange(msgspec.Struct, tag="change", frozen=True, kw_only=True):
    """What a command did to a pin."""

    pin: int
    level: bool
    changed: bool
    """False when the pin had this level already: no edge then."""
    number: int
    listeners: int
    """How many services were told of the edge. 0: nobody saw it."""
    monotonic: float
    wall: float


class Edge(msgspec.Struct, tag="edge", frozen=True, kw_only=True):
    """A level change, as it is told to the service that listens."""

    pin: int
    level: bool
    number: int
    monotonic: float
    wall: float


class Claim(msgspec.Struct, tag="claim", frozen=True, kw_only=True):
    """A service takes a pin, or changes how it holds it. Answered by `Claimed` or `Refusal`."""

    id: int
    pin: int
    function: Function = "input"
    pull: Pull = "floating"
    listening: Edges = "none"
    value: float = 0.0


class Claimed(msgspec.Struct, tag="claimed", frozen=True, kw_only=True):
    """The pin is the service's; this is its level."""

    id: int
    level: bool


class Drive(msgspec.Struct, tag="drive", frozen=True, kw_only=True):
    """A service sets its output; unanswered."""

    pin: int
    value: float


class Release(msgspec.Struct, tag="release", frozen=True, kw_only=True):
    """A service lets a pin go; unanswered."""

    pin: int


class Hello(msgspec.Struct, tag="hello", frozen=True, kw_only=True):
    """The first line of a peer: who it is, for `PinState.owner`."""

    name: str


class Command(msgspec.Struct, tag="command", frozen=True, kw_only=True):
    """A controller's wish. Answered by `Done` or `Refusal`."""

    id: int
    action: Literal["set", "float", "toggle", "pulse", "read", "watch"]
    pin: int = 0
    level: bool = False
    seconds: float = 0.0


class Done(msgspec.Struct, tag="done", frozen=True, kw_only=True):
    """The answer to a command."""

    id: int
    changes: list[PinChange] = []
    pins: list[PinState] = []


class Refusal(msgspec.Struct, tag="refusal", frozen=True, kw_only=True):
    """It could not be done."""

    id: int
    code: str
    text: str


ToBoard = Hello | Claim | Drive | Release | Command
FromBoard = Claimed | Edge | Done | Refusal | PinState

_encoder = msgspec.json.Encoder()
_to_board: msgspec.json.Decoder[ToBoard] = msgspec.json.Decoder(ToBoard)
_from_board: msgspec.json.Decoder[FromBoard] = msgspec.json.Decoder(FromBoard)


def encode_line(message: ToBoard | FromBoard) -> bytes:
    """One message as it goes over the socket."""
    return _encoder.encode(message) + b"\n"


def decode_from_board(line: bytes) -> FromBoard:
    """Read what a board sent. Raises PinError when it is not of this protocol."""
    try:
        return _from_board.decode(line)
    except msgspec.MsgspecError as error:
        raise PinError(f"The board of simulated pins sent something that cannot be read: {error}.") from error


def refusal_error(refusal: Refusal) -> PinError:
    """The error that a refusal stands for."""
    kinds: tuple[type[PinError], ...] = (PinInvalidError, PinBusyError)
    kind = next((kind for kind in kinds if kind.code == refusal.code), PinError)
    return kind(refusal.text)


def check_socket_path(path: Path) -> None:
    """Raise PinError when the kernel would not take `path` as a socket's address."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_LIMIT_BYTES:
        raise PinError(
            f"The socket path {path} is {length} bytes long and the system allows {SOCKET_PATH_LIMIT_BYTES}: "
            "choose a runtime directory with a shorter path."
        )


# --- The board ------------------------------------------------------------------------------------------------------


class _Peer:
    """A connection: a service, a controller, or both."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.name = "?"
        self.watching = False
        self.gone = asyncio.Event()
        self._writer = writer

    def tell(self, message: FromBoard) -> bool:
        """Send without waiting; False when the peer is gone or does not read."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > UNSENT_LIMIT_BYTES:
            return False
        self._writer.write(encode_line(message))
        return True

    def close(self) -> None:
        """Hang up once everything is sent."""
        self.gone.set()
        self._writer.close()

    def abort(self) -> None:
        """Hang up at once: a peer that does not read would keep `close` waiting."""
        self.gone.set()
        self._writer.transport.abort()


class _Pin:
    def __init__(self, number: int) -> None:
        self.number = number
        self.driven: bool | None = None
        self.owner: _Peer | None = None
        self.edge_number = 0
        self.monotonic = 0.0
        self.wall = 0.0
        self.level = False
        self.let_go()
        self.level = self.wanted_level()

    def let_go(self) -> None:
        """As after a reset: the SoC pulls BCM 0 to 8 up and the others down."""
        self.owner = None
        self.function: Function = "input"
        self.pull: Pull = "up" if self.number <= 8 else "down"
        self.listening: Edges = "none"
        self.value = 0.0

    def wanted_level(self) -> bool:
        if self.owner is not None and self.function == "output":
            return self.value >= 0.5
        if self.driven is not None:
            return self.driven
        # A floating input has no level of its own; it keeps the last one, as a short wire often does.
        return self.level if self.pull == "floating" else self.pull == "up"

    def state(self) -> PinState:
        output = self.owner is not None and self.function == "output"
        return PinState(
            pin=self.number,
            level=self.level,
            value=self.value if output else float(self.level),
            function="free" if self.owner is None else self.function,
            pull=self.pull,
            listening=self.listening,
            owner="" if self.owner is None else self.owner.name,
            number=self.edge_number,
            monotonic=self.monotonic,
            wall=self.wall,
        )


class PinBoard:
    """Hold the levels of 28 BCM pins and serve them on a Unix socket.

    Args:
        path: where to listen, as a Unix socket that the agent's user alone can reach.
        clock: stamps the edges.

    An asynchronous context manager; on the loop only. The methods are also there for the agent itself:

        async with PinBoard(paths.pins_socket) as board:
            board.set(17, True)
    """

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        self._socket = path
        self._clock = clock or SystemClock()
        self._pins = [_Pin(number) for number in range(PIN_COUNT)]
        self._peers: set[_Peer] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._pulses: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen. Raises PinError for a path that is too long, OSError when the socket cannot be made."""
        check_socket_path(self._socket)
        listening = await asyncio.to_thread(_listen_at, self._socket)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening)

    async def close(self) -> None:
        """Stop listening and hang up on everybody. Calling it again does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for peer in self._peers:
            peer.abort()
        tasks = [*self._connections, *self._pulses]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.to_thread(self._socket.unlink, missing_ok=True)

    def set(self, pin: int, level: bool) -> PinChange:
        """Drive `pin` from outside, as a wire to 3.3 V or to ground does.

        Raises PinInvalidError for a pin that does not exist, PinBusyError for a service's output.
        """
        target = self._drivable(pin)
        target.driven = level
        return self._settle(target)

    def release(self, pin: int) -> PinChange:
        """Take the outside wire away: the pull resistor decides. Raises as `set` does."""
        target = self._drivable(pin)
        target.driven = None
        return self._settle(target)

    def toggle(self, pin: int) -> PinChange:
        """Drive `pin` to the other level. Raises as `set` does."""
        return self.set(pin, not self._drivable(pin).level)

    async def pulse(self, pin: int, seconds: float) -> tuple[PinChange, PinChange]:
        """Toggle `pin`, wait, and toggle it back; both changes. Raises as `set` does."""
        first = self.toggle(pin)
        await self._clock.sleep(seconds)
        return first, self.set(pin, not first.level)

    def read(self, pin: int) -> PinState:
        """The pin as it is now. Raises PinInvalidError for a pin that does not exist."""
        return self._pin(pin).state()

    def read_all(self) -> list[PinState]:
        """Every pin, by its BCM number."""
        return [pin.state() for pin in self._pins]

    def _pin(self, number: int) -> _Pin:
        if not 0 <= number < PIN_COUNT:
            raise PinInvalidError(f"There is no pin {number}: the header has BCM 0 to {PIN_COUNT - 1}.")
        return self._pins[number]

    def _drivable(self, number: int) -> _Pin:
        pin = self._pin(number)
        if pin.owner is not None and pin.function == "output":
            raise PinBusyError(f"Pin {number} is an output of {pin.owner.name}: only that service can set it.")
        return pin

    def _settle(self, pin: _Pin, *, handed_over: bool = False) -> PinChange:
        """Bring the level to what drives it now and tell who listens; an owner that just came or went is not told."""
        level = pin.wanted_level()
        changed = level != pin.level
        listeners = 0
        if changed:
            pin.level = level
            pin.edge_number += 1
            pin.monotonic, pin.wall = self._clock.monotonic(), self._clock.wall()
            wanted = pin.listening == "both" or pin.listening == ("rising" if level else "falling")
            if pin.owner is not None and wanted and not handed_over:
                edge = Edge(pin=pin.number, level=level, number=pin.edge_number, monotonic=pin.monotonic, wall=pin.wall)
                listeners = int(pin.owner.tell(edge))
        if changed or handed_over:
            self._show(pin)
        return PinChange(
            pin=pin.number,
            level=level,
            changed=changed,
            number=pin.edge_number,
            listeners=listeners,
            monotonic=pin.monotonic,
            wall=pin.wall,
        )

    def _show(self, pin: _Pin) -> None:
        state: PinState | None = None
        for peer in self._peers:
            if peer.watching:
                state = state or pin.state()
                if not peer.tell(state):
                    peer.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(writer)
        task = asyncio.current_task()
        assert task is not None
        self._peers.add(peer)
        self._connections.add(task)
        try:
            while line := await reader.readline():
                await self._receive(peer, _to_board.decode(line))
        except (msgspec.MsgspecError, PinError, ValueError) as error:
            logger.warning("The simulated pins hung up on %s, which sent something else: %s", peer.name, error)
        except (ConnectionError, asyncio.CancelledError):
            # A handler's task belongs to the server, which would log its cancellation as an unhandled error.
            pass
        finally:
            self._connections.discard(task)
            self._peers.discard(peer)
            peer.close()
            for pin in self._pins:
                if pin.owner is peer:
                    pin.let_go()
                    self._settle(pin, handed_over=True)

    async def _receive(self, peer: _Peer, message: ToBoard) -> None:
        match message:
            case Hello():
                peer.name = message.name
            case Claim():
                await self._answering(peer, message.id, lambda: self._claim(peer, message))
            case Drive():
                pin = self._pin(message.pin)
                if pin.owner is peer and pin.function == "output":
                    pin.value = message.value
                    self._settle(pin)
            case Release():
                pin = self._pin(message.pin)
                if pin.owner is peer:
                    pin.let_go()
                    self._settle(pin, handed_over=True)
            case Command(action="pulse"):
                # A pulse takes its time; the peer's next line must not wait for it.
                task = asyncio.create_task(
                    self._answering(peer, message.id, lambda: self._command(peer, message)), name="pin-pulse"
                )
                self._pulses.add(task)
                task.add_done_callback(self._pulses.discard)
            case Command():
                await self._answering(peer, message.id, lambda: self._command(peer, message))

    async def _answering(self, peer: _Peer, id: int, act: Callable[[], Awaitable[FromBoard]]) -> None:
        try:
            answer = await act()
        except PinError as error:
            answer = Refusal(id=id, code=error.code, text=str(error))
        peer.tell(answer)

    async def _claim(self, peer: _Peer, claim: Claim) -> Claimed:
        pin = self._pin(claim.pin)
        if pin.owner is not None and pin.owner is not peer:
            # A service that was just killed may be replaced before its end of the socket was read here.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLAIM_GRACE_SECONDS):
                    await pin.owner.gone.wait()
        if pin.owner is not None and pin.owner is not peer and not pin.owner.gone.is_set():
            raise PinBusyError(f"GPIO busy: pin {claim.pin} is held by {pin.owner.name}.")
        pin.owner = peer
        pin.function, pin.pull, pin.listening, pin.value = claim.function, claim.pull, claim.listening, claim.value
        self._settle(pin, handed_over=True)
        return Claimed(id=claim.id, level=pin.level)

    async def _command(self, peer: _Peer, command: Command) -> Done:
        match command.action:
            case "set":
                return Done(id=command.id, changes=[self.set(command.pin, command.level)])
            case "float":
                return Done(id=command.id, changes=[self.release(command.pin)])
            case "toggle":
                return Done(id=command.id, changes=[self.toggle(command.pin)])
            case "pulse":
                return Done(id=command.id, changes=[*await self.pulse(command.pin, command.seconds)])
            case "read":
                return Done(id=command.id, pins=self.read_all())
            case "watch":
                peer.watching = True
                return Done(id=command.id, pins=self.read_all())


def _listen_at(path: Path) -> socket.socket:
    """A listening socket that its own user alone can reach, in the place of one that a killed agent left."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(os.fspath(path))
        path.chmod(0o600)  # before anybody can connect
        listening.listen(100)
    except BaseException:
        listening.close()
        raise
    return listening


# --- The controller's side ------------------------------------------------------------------------------------------


class PinClient:
    """Set, toggle and watch simulated pins from another process.

        async with await PinClient.connect(path) as pins:
            change = await pins.toggle(17)
            print(change.listeners, "services were told")

    On the loop only. Every method raises PinBoardUnreachableError when the board has gone away.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Done]] = {}
        self._watchers: set[asyncio.Queue[PinState | None]] = set()
        self._lost = False
        self._task = asyncio.create_task(self._listen(reader), name="pin-client")

    @classmethod
    async def connect(cls, path: Path, *, timeout_seconds: float = 5.0) -> PinClient:
        """Connect to the board at `path`. Raises PinBoardUnreachableError when there is none."""
        check_socket_path(path)
        try:
            async with asyncio.timeout(timeout_seconds):
                reader, writer = await asyncio.open_unix_connection(path)
        except (OSError, TimeoutError) as error:
            raise PinBoardUnreachableError(
                f"No simulated pins answer at {path}: start the agent with `outstation run --gpio simulated`, "
                "or name the socket of the agent you mean."
            ) from error
        writer.write(encode_line(Hello(name="controller")))
        return cls(reader, writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up. Calling it again does nothing."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def set(self, pin: int, level: bool) -> PinChange:
        """Drive `pin` high (True) or low; it stays driven when the client goes.

        Raises PinInvalidError for a pin that does not exist, PinBusyError for a service's output.
        """
        return (await self._ask(action="set", pin=pin, level=level)).changes[0]

    async def release(self, pin: int) -> PinChange:
        """Stop driving `pin`: its pull resistor decides. Raises as `set` does."""
        return (await self._ask(action="float", pin=pin)).changes[0]

    async def toggle(self, pin: int) -> PinChange:
        """Drive `pin` to the other level. Raises as `set` does."""
        return (await self._ask(action="toggle", pin=pin)).changes[0]

    async def pulse(self, pin: int, seconds: float) -> tuple[PinChange, PinChange]:
        """Toggle `pin`, and toggle it back after `seconds`; returns then. Raises as `set` does."""
        first, second = (await self._ask(action="pulse", pin=pin, seconds=seconds)).changes
        return first, second

    async def read(self, pin: int) -> PinState:
        """The pin as it is now. Raises PinInvalidError for a pin that does not exist."""
        if not 0 <= pin < PIN_COUNT:
            raise PinInvalidError(f"There is no pin {pin}: the header has BCM 0 to {PIN_COUNT - 1}.")
        return (await self.read_all())[pin]

    async def read_all(self) -> list[PinState]:
        """Every pin, by its BCM number."""
        return (await self._ask(action="read")).pins

    async def watch(self) -> AsyncIterator[PinState]:
        """Yield every pin as it is now, and then each pin whenever its level or its owner changes.

        Ends with PinBoardUnreachableError when the board goes away.
        """
        queue: asyncio.Queue[PinState | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for state in (await self._ask(action="watch")).pins:
                yield state
            while (update := await queue.get()) is not None:
                yield update
        finally:
            self._watchers.discard(queue)
        raise self._gone()

    async def _ask(
        self,
        *,
        action: Literal["set", "float", "toggle", "pulse", "read", "watch"],
        pin: int = 0,
        level: bool = False,
        seconds: float = 0.0,
    ) -> Done:
        if self._lost:
            raise self._gone()
        id = next(self._ids)
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting[id] = future
        self._writer.write(encode_line(Command(id=id, action=action, pin=pin, level=level, seconds=seconds)))
        try:
            return await future
        finally:
            del self._waiting[id]

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(decode_from_board(line))
        except OSError as error:
            logger.debug("The connection to the simulated pins broke: %s", error)
        finally:
            self._lost = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(self._gone())
            for queue in self._watchers:
                queue.put_nowait(None)

    def _take(self, message: FromBoard) -> None:
        match message:
            case PinState():
                for queue in self._watchers:
                    queue.put_nowait(message)
            case Done() | Refusal():
                future = self._waiting.get(message.id)
                if future is None or future.done():
                    return
                if isinstance(message, Done):
                    future.set_result(message)
                else:
                    future.set_exception(refusal_error(message))
            case Claimed() | Edge():
                logger.debug("The simulated pins sent %s, which a controller does not await.", type(message).__name__)

    @staticmethod
    def _gone() -> PinBoardUnreachableError:
        return PinBoardUnreachableError("The simulated pins went away: the agent that had them ended.")
