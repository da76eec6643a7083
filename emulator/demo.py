"""`outstation demo`: portal, local IoT Hub and a node, each its own process, and readings that flow between them.

It does what a person would: opens the set-up link, makes a verification code, enrols the node with it, takes ReadGPIO
from the library, assigns it in a flow, and presses the simulated pins. Whatever dies is started again, so that anyone
may `kill -9` what they like and see that nothing is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

from agent.errors import OutstationError
from agent.exitcodes import ExitCode
from agent.flags import add_flag
from agent.system.pins import PinClient, PinError
from emulator.server import free_loopback_address

NODE = "demo-pi"
PERSON = "demo"
PINS = (17, 27)
ONCE_LIMIT_SECONDS = 120.0
STEP_LIMIT_SECONDS = 60.0
STOP_LIMIT_SECONDS = 15.0
SETTLE_SECONDS = 5.0
INTERRUPTED = 130
"""The exit status of what Ctrl-C ended, as shells have it."""


class DemoError(OutstationError):
    """The demo is stuck; the text says where."""

    code = "demo_stuck"


class StoppedError(Exception):
    """The person pressed Ctrl-C, or the process was asked to end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `outstation demo`."""
    parser.description = (
        "Start a portal, a local IoT Hub and a node with simulated pins on this machine, and show readings arrive."
    )
    add_flag(
        parser,
        "--once",
        env="OUTSTATION_DEMO_ONCE",
        type=_positive,
        metavar="N",
        help="End by itself with status 0 after N readings, with status 1 if they have not arrived in time.",
    )
    add_flag(
        parser,
        "--limit",
        env="OUTSTATION_DEMO_LIMIT",
        type=float,
        metavar="SECONDS",
        default=ONCE_LIMIT_SECONDS,
        help="How long the readings of --once may take.",
    )
    add_flag(
        parser,
        "--interval",
        env="OUTSTATION_DEMO_INTERVAL",
        type=float,
        default=0.5,
        help="Seconds between two presses of the simulated pins.",
    )
    add_flag(
        parser,
        "--portal-port",
        env="OUTSTATION_DEMO_PORTAL_PORT",
        type=int,
        default=8080,
        help="Port of the portal on loopback; another free one is taken when it is in use.",
    )
    add_flag(
        parser,
        "--data",
        env="OUTSTATION_DEMO_DATA",
        help="Keep all data in this folder. Default: a temporary one that is removed at the end.",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("it must be 1 or more")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Run the demo until Ctrl-C or, with `--once`, until its readings have arrived."""
    data = Path(arguments.data).absolute() if arguments.data else Path(tempfile.mkdtemp(prefix="outstation-demo-"))
    try:
        return asyncio.run(Demo(data, arguments).run())
    finally:
        if not arguments.data:
            shutil.rmtree(data, ignore_errors=True)


class Screen:
    """What the person sees: one line a step, one line a reading."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(self, text: str, code: str) -> str:
        """`text` in a colour where there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def step(self, name: str, text: str) -> None:
        """Something is ready."""
        self.line(f"  {self.paint('✔', '32')} {name:<9} {text}")

    def note(self, text: str) -> None:
        """Something the person should know."""
        self.line(f"  {self.paint('▲', '33')} {text}")

    def line(self, text: str = "") -> None:
        """One line."""
        print(text, flush=True)  # noqa: T201 - this is the command line


@dataclass
class Worker:
    """One process of the demo, started again whenever it dies unasked."""

    name: str
    command: list[str]
    log: Path
    screen: Screen
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    _keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and keep it running."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.name}")

    async def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                # Ctrl-C is for the demo, which ends its processes in their order.
                start_new_session=True,
            )

    async def _keep(self) -> None:
        attempts = 0
        while True:
            assert self.process is not None
            started = time.monotonic()
            status = await self.process.wait()
            attempts = attempts + 1 if time.monotonic() - started < 5 else 1
            if attempts > 5:
                raise DemoError(f"The {self.name} ends as soon as it starts (status {status}).\n{self.tail()}")
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            self.screen.note(f"the {self.name} ended ({how}); starting it again")
            await self._spawn()

    def failed(self) -> BaseException | None:
        """Why it is not kept running any more, if it is not."""
        if self._keeper is not None and self._keeper.done() and not self._keeper.cancelled():
            return self._keeper.exception()
        return None

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL for what does not go in 15 s."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_LIMIT_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.screen.note(f"the {self.name} did not end in {STOP_LIMIT_SECONDS:.0f} s and was killed")
            self.process.kill()
            await self.process.wait()

    def tail(self) -> str:
        """The end of its log, for a person who has to find out."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-15:] if self.log.exists() else []
        return "\n".join(f"    {self.name}| {line}" for line in lines)


class Demo:
    """One run of the demo in the folder `data`."""

    def __init__(self, data: Path, arguments: argparse.Namespace) -> None:
        self._data = data
        self._once: int | None = arguments.once
        self._limit: float = arguments.limit
        self._interval: float = arguments.interval
        self._portal_port: int = arguments.portal_port
        self._screen = Screen()
        self._workers: list[Worker] = []
        self._stop = asyncio.Event()
        self._where = "starting"
        self._edges = 0

    async def run(self) -> int:
        """Do it all; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        try:
            async with asyncio.timeout(self._limit if self._once else None):
                return await self._until_stopped(self._story())
        except TimeoutError:
            self._screen.line(f"Stuck after {self._limit:.0f} s while {self._where}.")
            self._show_logs()
            return ExitCode.FAILURE
        except (DemoError, aiohttp.ClientError, OSError) as error:
            self._screen.line(f"Stuck while {self._where}: {error}")
            self._show_logs()
            return ExitCode.FAILURE
        except StoppedError:
            self._screen.line("\n  Ending everything.")
            return ExitCode.OK if self._once is None else INTERRUPTED
        finally:
            await self._stop_all()

    async def _until_stopped(self, story: Any) -> int:
        """Run `story`, unless Ctrl-C or a process that cannot be kept alive ends it first."""
        telling = asyncio.ensure_future(story)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            while True:
                await asyncio.wait({telling, stopping}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if telling.done():
                    return int(telling.result())
                if stopping.done():
                    raise StoppedError
                for worker in self._workers:
                    if (error := worker.failed()) is not None:
                        raise error
        finally:
            telling.cancel()
            stopping.cancel()
            await asyncio.gather(telling, stopping, return_exceptions=True)

    async def _stop_all(self) -> None:
        # In the order of the flow, and each while the next still listens; a process that hangs holds up no other.
        for names in (("agent",), ("iothub", "portal")):
            await asyncio.gather(*(worker.stop() for worker in self._workers if worker.name in names))

    def _show_logs(self) -> None:
        for worker in self._workers:
            self._screen.line(worker.tail())

    async def _story(self) -> int:
        self._data.mkdir(parents=True, exist_ok=True)
        self._screen.line(self._screen.paint("\n  Outstation demo", "1"))
        hub, portal = await asyncio.gather(self._start_hub(), self._start_portal())
        async with (
            aiohttp.ClientSession(hub["http_url"]) as hub_api,
            aiohttp.ClientSession(portal["url"], cookie_jar=aiohttp.CookieJar(unsafe=True)) as portal_api,
        ):
            await self._set_up(portal_api, portal)
            await self._enroll(portal_api, hub_api, portal["url"])
            await self._assign(portal_api)
            await self._start_agent(portal_api)
            return await self._stream(hub_api)

    async def _start_hub(self) -> dict[str, Any]:
        self._where = "starting the local IoT Hub"
        ready = self._data / "iothub.ready.json"
        ready.unlink(missing_ok=True)
        await self._start(
            "iothub",
            # The Azure SDK always dials port 8883, so the emulator gets an address of its own in 127.0.0.0/8.
            *("iothub", "--host", free_loopback_address(), "--http-port", str(_free_port()), "--quiet"),
            *("--data", str(self._data / "iothub"), "--ready-file", str(ready)),
        )
        hub = await self._ready("iothub", ready)
        self._screen.step("IoT Hub", f"mqtts://{hub['mqtt_host']}:{hub['mqtt_port']}, its API at {hub['http_url']}")
        return hub

    async def _start_portal(self) -> dict[str, Any]:
        self._where = "starting the portal"
        ready = self._data / "portal.ready.json"
        ready.unlink(missing_ok=True)
        port = self._portal_port if _is_free(self._portal_port) else _free_port()
        await self._start(
            "portal",
            *("portal", "run", "--host", "127.0.0.1", "--port", str(port)),
            *("--data", str(self._data / "portal"), "--ready-file", str(ready)),
        )
        return await self._ready("portal", ready)

    async def _set_up(self, api: aiohttp.ClientSession, portal: dict[str, Any]) -> None:
        self._where = "opening the portal's set-up link"
        secret = self._data / "portal-password"
        if secret.exists():
            password = secret.read_text("utf-8")
            await self._call(api, "POST", "/api/session", {"name": PERSON, "password": password})
        else:
            password = "-".join(secrets.token_hex(2) for _ in range(4))
            link = await self._setup_link()
            token = parse_qs(urlsplit(link).query)["token"][0]
            await self._call(api, "POST", "/api/setup", {"token": token, "name": PERSON, "password": password})
            secret.touch(mode=0o600)
            secret.write_text(password, "utf-8")
            await self._call(api, "POST", "/api/session", {"name": PERSON, "password": password})
        self._screen.step(
            "portal", f"{self._screen.paint(portal['url'], '4')}  sign in as {PERSON} with password {password}"
        )

    async def _setup_link(self) -> str:
        log = next(worker.log for worker in self._workers if worker.name == "portal")
        async for _ in _every(0.05, STEP_LIMIT_SECONDS):
            if found := re.search(r"https?://\S+/setup\?token=\S+", log.read_text("utf-8", errors="replace")):
                return found[0]
        raise DemoError("The portal did not print its set-up link.")

    async def _enroll(self, api: aiohttp.ClientSession, hub: aiohttp.ClientSession, url: str) -> None:
        self._where = "enrolling the node"
        if not (self._data / "agent" / "identity.json").exists():
            made = await self._call(api, "POST", "/api/verification-codes", {})
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agent.cli", "enroll", url, "--code", made["code"], "--name", NODE),
                *("--state-dir", str(self._data / "agent")),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
            if process.returncode != 0:
                raise DemoError(output.decode(errors="replace").strip())
            self._screen.step("node", f"{NODE} enrolled with code {made['code']}")
        node = await self._node(api)
        device = await self._call(hub, "PUT", f"/devices/{NODE}")
        await self._call(
            api,
            "PUT",
            f"/api/nodes/{node['id']}/iot-hub",
            {
                "connection_string": device["connection_string"],
                "certificate_authority": device["certificate_authority"],
            },
        )

    async def _assign(self, api: aiohttp.ClientSession) -> None:
        self._where = "assigning ReadGPIO to the node"
        flows = await self._call(api, "GET", "/api/flows")
        if not any(flow["name"] == "Demo" for flow in flows["items"]):
            service = await self._call(
                api, "POST", "/api/services", {"name": "Read GPIO", "file": "ReadGPIO.py", "from": "library:ReadGPIO"}
            )
            activity = {
                "service_id": service["id"],
                "host": NODE,
                "static": {"pins": ",".join(map(str, PINS)), "pull": "down", "debounce": 0},
            }
            await self._call(api, "POST", "/api/flows", {"name": "Demo", "activities": [activity]})
        self._screen.step("service", f"ReadGPIO assigned to {NODE} for pins {' and '.join(map(str, PINS))}")

    async def _start_agent(self, api: aiohttp.ClientSession) -> None:
        self._where = "waiting for the node to run ReadGPIO"
        await self._start(
            "agent",
            *("run", "--gpio", "simulated", "--state-dir", str(self._data / "agent")),
            *("--runtime-dir", str(self._data / "run")),
        )
        async for _ in _every(0.1, STEP_LIMIT_SECONDS):
            node = await self._node(api)
            states = {service["id"]: service["state"] for service in node["services"]}
            if node["online"] and states.get("readgpio_py") == "running":
                await self._call(api, "PUT", f"/api/nodes/{node['id']}/console", {"on": True})
                self._screen.step("agent", f"{NODE} is signed in and runs ReadGPIO")
                return
        raise DemoError(f"The node did not get to run ReadGPIO in {STEP_LIMIT_SECONDS:.0f} s.")

    async def _stream(self, hub: aiohttp.ClientSession) -> int:
        self._where = "waiting for readings at the hub"
        before = await self._call(hub, "GET", "/report")
        self._screen.line(
            "\n  Readings as they arrive at the hub"
            + ("" if self._once else "; Ctrl-C ends everything. Kill any process you like.")
            + "\n"
        )
        pressing = asyncio.create_task(self._press())
        seen = 0
        try:
            async for message in self._readings(hub):
                seen += 1
                self._show(message)
                if pressing.done():
                    pressing.result()
                if self._once is not None and seen >= self._once:
                    break
        finally:
            pressing.cancel()
            await asyncio.gather(pressing, return_exceptions=True)
            # Also after Ctrl-C: what was seen is worth its one line.
            lost = await self._summarize(hub, seen, before["distinct"] + self._edges)
        return ExitCode.FAILURE if lost else ExitCode.OK

    async def _summarize(self, hub: aiohttp.ClientSession, seen: int, expected: int) -> int:
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                report = await self._settled(hub, expected)
        except TimeoutError:
            self._screen.note("the hub does not answer, so that nothing can be said of what arrived")
            return 0
        latency = report["latency"]
        self._screen.line(
            f"\n  {max(seen, report['distinct'])} readings, {report['missing']} lost, "
            f"{report['duplicates']} duplicated, p50 {_ms(latency['p50_ms'])} ms, p99 {_ms(latency['p99_ms'])} ms "
            "from pin edge to hub"
        )
        return int(report["missing"])

    async def _settled(self, hub: aiohttp.ClientSession, distinct: int) -> dict[str, Any]:
        """The hub's report once every press that a service saw has arrived, or as it is after a while."""
        report: dict[str, Any] = {}
        async for _ in _every(0.1, SETTLE_SECONDS / 2):
            report = await self._call(hub, "GET", "/report")
            if report["distinct"] >= distinct and not report["missing"]:
                break
        return report

    async def _press(self) -> None:
        """Toggle the simulated pins, one after the other, for ever."""
        board_socket = self._data / "run" / "pins.sock"
        turn = 0
        while True:
            try:
                async with await PinClient.connect(board_socket) as board:
                    while True:
                        change = await board.toggle(PINS[turn % len(PINS)])
                        # A press while no service listens is not a reading: nobody was there to read it.
                        self._edges += min(1, change.listeners)
                        turn += 1
                        await asyncio.sleep(self._interval)
            except (PinError, OSError):
                await asyncio.sleep(0.2)  # the agent is being started again

    async def _readings(self, hub: aiohttp.ClientSession) -> AsyncIterator[dict[str, Any]]:
        """Each reading as it arrives; goes on where it was when the hub was started again."""
        after = int((await self._call(hub, "GET", "/"))["last_message_id"])
        while True:
            try:
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
                async with hub.get("/messages/stream", params={"after": after}, timeout=timeout) as response:
                    response.raise_for_status()
                    async for line in response.content:
                        if line.startswith(b"data:"):
                            message = json.loads(line[5:])
                            after = message["id"]
                            yield message
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.2)

    def _show(self, message: dict[str, Any]) -> None:
        reading, properties = message["body"], message["properties"]
        moment = datetime.fromtimestamp(message["arrived"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = self._screen.paint("▲ 1", "32") if reading["value"] else self._screen.paint("▽ 0", "2")
        took = (message["arrived"] - reading["edge_time"]) * 1000
        self._screen.line(
            f"  {moment}  {properties['os-node']}  {properties['os-service']} #{properties['os-sequence']:<5}"
            f"  pin {reading['pin']} {level}  {took:6.1f} ms"
        )

    async def _node(self, api: aiohttp.ClientSession) -> dict[str, Any]:
        nodes = await self._call(api, "GET", "/api/nodes")
        for node in nodes["items"]:
            if node["name"] == NODE:
                detail: dict[str, Any] = await self._call(api, "GET", f"/api/nodes/{node['id']}")
                return detail
        raise DemoError(f"The portal does not know {NODE}.")

    async def _call(self, api: aiohttp.ClientSession, method: str, path: str, body: object = None) -> Any:
        """One REST call; again while the other side is being started again."""
        async for _ in _every(0.2, STEP_LIMIT_SECONDS):
            try:
                async with api.request(method, path, json=body, timeout=aiohttp.ClientTimeout(total=10)) as response:
                    text = await response.text()
                    if response.status >= 400:
                        raise DemoError(f"{method} {path} was answered with {response.status}: {text[:500]}")
                    return json.loads(text) if text else None
            except (aiohttp.ClientConnectionError, TimeoutError) as error:
                last = error
        raise DemoError(f"{method} {path} was not answered: {last}")

    async def _start(self, name: str, *arguments: str) -> None:
        worker = Worker(
            name=name,
            command=[sys.executable, "-m", "agent.cli", *arguments],
            log=self._data / f"{name}.log",
            screen=self._screen,
            environment={"PYTHONUNBUFFERED": "1"},
        )
        self._workers.append(worker)
        await worker.start()

    async def _ready(self, name: str, file: Path) -> dict[str, Any]:
        async for _ in _every(0.05, STEP_LIMIT_SECONDS):
            if file.exists():
                document: dict[str, Any] = json.loads(file.read_text("utf-8"))
                return document
        raise DemoError(f"The {name} did not get ready in {STEP_LIMIT_SECONDS:.0f} s.")


async def _every(pause_seconds: float, limit_seconds: float) -> AsyncIterator[None]:
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        yield
        await asyncio.sleep(pause_seconds)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
