"""A node as a user has it, for benchmarks: `outstation run` as a process, with a portal's fake beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from agent.control import ask
from agent.errors import OutstationError
from agent.hub.enrolment import enroll
from agent.hub.fake import FakeHub
from agent.paths import Paths
from bench import processes

OUTSTATION = Path(sys.executable).with_name("outstation")
MOSQUITTO = Path("/usr/sbin/mosquitto")
READY_SECONDS = 60.0
STOP_SECONDS = 30.0


class BenchmarkError(Exception):
    """Something under measurement did not do what it should, so there is no figure."""


async def until(what: str, condition: Callable[[], Any], *, seconds: float = READY_SECONDS) -> Any:
    """Ask `condition` until it is true, in a thread; returns its answer. Raises BenchmarkError naming `what`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := await asyncio.to_thread(condition):
            return result
        await asyncio.sleep(0.05)
    raise BenchmarkError(f"Waited {seconds:.0f} s in vain for this: {what}.")


class Command:
    """A process of ours, its output in a file."""

    def __init__(self, arguments: list[str | Path], log: Path) -> None:
        self._arguments = [str(argument) for argument in arguments]
        self._process: asyncio.subprocess.Process | None = None
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id. Only after `start`."""
        assert self._process is not None
        return self._process.pid

    def tree(self) -> list[int]:
        """It and all processes below it."""
        return processes.tree(self.pid)

    async def start(self) -> float:
        """Start it; returns when, on the monotonic clock."""
        with self.log.open("ab") as log:
            began = time.perf_counter()
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.log.parent
            )
        return began

    async def stop(self) -> None:
        """SIGTERM, and wait; one that does not go is killed."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def ended(self) -> bool:
        """It has ended by itself."""
        return self._process is not None and self._process.returncode is not None

    def tail(self) -> str:
        """The last of what it said."""
        return self.log.read_text("utf-8", "replace")[-2000:] if self.log.exists() else ""


class Node:
    """An enrolled node in a folder of its own.

    Args:
        config: the text of its configuration file.
    """

    def __init__(self, folder: Path, hub: FakeHub, *, config: str = "") -> None:
        self.paths = Paths(state=folder / "state", runtime=folder / "run")
        self._folder = folder
        self._hub = hub
        self._config = config
        file = folder / "agent.toml"
        self.command = Command(
            [OUTSTATION, "run", "--config", file, "--state-dir", self.paths.state, "--runtime-dir", self.paths.runtime],
            folder / "agent.log",
        )
        self._file = file

    async def enrol(self) -> None:
        """Make it a node of the hub."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file.write_text(self._config, "utf-8")
        await enroll(self.paths, self._hub.url, code=self._hub.code)

    async def start(self) -> float:
        """Start the agent; returns when, on the monotonic clock."""
        return await self.command.start()

    async def stop(self) -> None:
        """Stop the agent."""
        await self.command.stop()

    async def services_running(self, count: int) -> None:
        """Wait until so many services run. Raises BenchmarkError with what the agent said last."""

        def running(status: dict[str, Any]) -> bool:
            return [service["state"] for service in status["services"]].count("running") == count

        await self._until(f"that {count} services run", running)

    async def sink_connected(self, name: str) -> None:
        """Wait until a sink has its far end. Raises BenchmarkError with what the agent said last."""

        def connected(status: dict[str, Any]) -> bool:
            return any(sink["name"] == name and bool(sink["connected"]) for sink in status["sinks"])

        await self._until(f"that the sink {name} is connected", connected)

    async def _until(self, what: str, condition: Callable[[dict[str, Any]], bool]) -> None:
        def asked() -> bool:
            if self.command.ended:
                raise BenchmarkError(f"The agent ended before it came about {what}.")
            with contextlib.suppress(OutstationError):
                return condition(ask(self.paths.control_socket, "status"))
            return False

        try:
            await until(what, asked)
        except BenchmarkError as error:
            raise BenchmarkError(f"{error}\n{self.command.tail()}") from None


@asynccontextmanager
async def enrolled_node(
    folder: Path, scripts: dict[str, str], *, config: str = "", settings: dict[str, Any] | None = None, **static: Any
) -> AsyncIterator[Node]:
    """A node with these scripts assigned, not started yet; stopped at the end.

    Args:
        settings: what the portal says at sign-in, beside the usual.
        static: static properties of every script.
    """
    folder.mkdir(parents=True, exist_ok=True)
    async with FakeHub() as hub:
        hub.settings = {"debug": False, **(settings or {})}
        hub.assign(scripts, **static)
        node = Node(folder, hub, config=config)
        await node.enrol()
        try:
            yield node
        finally:
            await node.stop()


class Broker:
    """Mosquitto on a port of its own: `async with Broker(folder) as broker:`."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self._folder = folder
        self._command = Command([MOSQUITTO, "-c", folder / "mosquitto.conf"], folder / "mosquitto.log")

    @property
    def sink(self) -> str:
        """The configuration of a node's sink to it."""
        return f'[sinks.mqtt]\nhost = "127.0.0.1"\nport = {self.port}\ntls = false\n'

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._command.pid

    async def __aenter__(self) -> Self:
        if not MOSQUITTO.exists():
            raise BenchmarkError("There is no /usr/sbin/mosquitto: apt-get install mosquitto.")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        (self._folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n"
            # What a client has unacknowledged is the client's choice here, and nothing is thrown away.
            "max_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\n"
        )
        await self._command.start()
        await until("mosquitto starts", self._answers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._command.stop()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class IotHub:
    """`outstation iothub` as a process: `async with IotHub(folder) as hub:`."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self._folder = folder
        self._ready = folder / "ready.json"
        self._command: Command | None = None

    async def __aenter__(self) -> Self:
        from emulator.server import free_loopback_address

        self._folder.mkdir(parents=True, exist_ok=True)
        self._ready.unlink(missing_ok=True)
        arguments: list[str | Path] = [OUTSTATION, "iothub", "--quiet", "--http-port", "0", "--data", self._folder]
        arguments += ["--host", free_loopback_address(), "--ready-file", self._ready]
        self._command = Command(arguments, self._folder / "iothub.log")
        await self._command.start()
        await until("the IoT Hub emulator starts", self._ready.exists)
        self.url = json.loads(self._ready.read_text("utf-8"))["http_url"]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._command is not None:
            await self._command.stop()

    async def device(self, name: str) -> dict[str, str]:
        """Make a device; its connection string and the authority to trust, as the portal hands them to a node."""
        document = await asyncio.to_thread(self._call, "PUT", f"/devices/{name}")
        return {
            "connectionString": document["connection_string"],
            "certificateAuthority": document["certificate_authority"],
        }

    async def get(self, path: str) -> Any:
        """An answer of its HTTP API."""
        return await asyncio.to_thread(self._call, "GET", path)

    async def last_message_id(self) -> int:
        """The number of the newest message that arrived."""
        number: int = (await self.get("/"))["last_message_id"]
        return number

    async def messages(self, *, after: int, count: int) -> list[dict[str, Any]]:
        """Wait for `count` messages (at most 1,000) beyond the number `after`, and return them."""

        def arrived() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = self._call("GET", f"/messages?after={after}&limit={count}")["messages"]
            return found if len(found) == count else []

        found: list[dict[str, Any]] = await until(f"{count} messages arrive at the hub", arrived)
        return found

    def _call(self, method: str, path: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self.url + path, method=method), timeout=30) as answer:
            return json.loads(answer.read())


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
