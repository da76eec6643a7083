"""A real portal process, a real browser, and a node that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright

from agent.errors import HubUnreachableError
from agent.hub import protocol
from agent.hub.connection import HubConnection, make_tls
from agent.hub.enrolment import enroll
from agent.identity import Identity
from agent.paths import Paths

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY_SECONDS = 40.0
ANSWER_MILLISECONDS = 15_000
OWNER = "alice"
PASSWORD = "a long enough password"
_SETUP_LINK = re.compile(r"(?P<url>http://[^/ ]+)/setup\?token=\S+")
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}

module_loop = pytest_asyncio.fixture(scope="module", loop_scope="module")


@dataclass
class PortalProcess:
    """`outstation portal run` on a free port in a folder of its own."""

    url: str
    setup_url: str
    folder: Path
    log: list[str] = field(default_factory=list)
    cookie: str = ""

    @property
    def setup_path(self) -> str:
        """The one-time set-up link, without the host."""
        return self.setup_url.removeprefix(self.url)

    async def set_up(self) -> None:
        """Create the owner over the API, and sign in."""
        token = parse_qs(urlsplit(self.setup_url).query)["token"][0]
        await self._open_session("/api/setup", {"token": token, "organization": "Test"})

    async def sign_in(self) -> None:
        """Open another session."""
        await self._open_session("/api/session", {})

    async def _open_session(self, path: str, form: dict[str, str]) -> None:
        body = {**form, "name": OWNER, "password": PASSWORD}
        async with aiohttp.ClientSession() as session, session.post(self.url + path, json=body) as answer:
            assert answer.status == 201, await answer.text()
            self.cookie = answer.cookies["outstation_session"].value

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the REST API as the owner; the answer's JSON."""
        headers = {"Cookie": f"outstation_session={self.cookie}", "Origin": self.url}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, self.url + path, json=body) as answer,
        ):
            text = await answer.text()
            assert answer.status < 400, f"{method} {path}: {answer.status} {text}"
            return json.loads(text) if text else None


@asynccontextmanager
async def running_portal(folder: Path) -> AsyncIterator[PortalProcess]:
    """Run a portal until the block ends; its end must be clean."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("outstation")),
        *("portal", "run", "--data", str(folder / "data"), "--port", "0"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    log: list[str] = []
    ready = asyncio.Event()

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            log.append(line.decode(errors="replace").rstrip())
            if _SETUP_LINK.search(log[-1]):
                ready.set()
        ready.set()

    reader = asyncio.create_task(read())
    try:
        async with asyncio.timeout(READY_SECONDS):
            await ready.wait()
        link = _SETUP_LINK.search(log[-1] if log else "")
        assert link is not None, "the portal printed no set-up link:\n" + "\n".join(log)
        yield PortalProcess(link["url"], link[0], folder, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            pytest.fail("the portal did not end within 20 s of SIGTERM:\n" + "\n".join(log))
        await reader
    assert process.returncode == 0, "\n".join(log)


@module_loop
async def fresh_portal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PortalProcess]:
    """A portal that nobody has set up yet."""
    async with running_portal(tmp_path_factory.mktemp("fresh-portal")) as portal:
        yield portal


@module_loop
async def portal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PortalProcess]:
    """A portal with an owner."""
    async with running_portal(tmp_path_factory.mktemp("portal")) as portal:
        await portal.set_up()
        yield portal


@module_loop
async def browser() -> AsyncIterator[Browser]:
    """The machine's Chromium, headless."""
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing: run `apt-get install chromium`; the browser tests need it.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        await browser.close()


class Watched:
    """Opens pages, and remembers what must not happen on them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._expected: list[re.Pattern[str]] = []
        self.problems: list[str] = []

    def expect(self, pattern: str) -> None:
        """Let a console message pass: a page that answers 404 on purpose."""
        self._expected.append(re.compile(pattern))

    async def open(
        self, portal: PortalProcess, path: str = "", *, width: int = 1280, height: int = 900, theme: Any = "light"
    ) -> Page:
        """Open a page of the portal, signed in if the portal has an owner."""
        context = await self._browser.new_context(
            base_url=portal.url, viewport={"width": width, "height": height}, color_scheme=theme, locale="en-GB"
        )
        self._contexts.append(context)
        context.set_default_timeout(ANSWER_MILLISECONDS)
        if portal.cookie:
            await context.add_cookies([{"name": "outstation_session", "value": portal.cookie, "url": portal.url}])
        page = await context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"{page.url}: {error}"))
        page.on("request", self._request)
        if path:
            await page.goto(path)
        return page

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(each.search(message.text) for each in self._expected):
            self.problems.append(f"console {message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in LOOPBACK:
            self.problems.append(f"a request left this machine: {request.url}")

    async def close(self) -> None:
        """Close every page."""
        for context in self._contexts:
            await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def pages(browser: Browser) -> AsyncIterator[Watched]:
    """Opens pages; the test fails for any script error, console error or request to another host."""
    watched = Watched(browser)
    yield watched
    await watched.close()
    assert not watched.problems, "\n".join(watched.problems)


class FakeNode:
    """A node's side of the hub: it enrols and signs in as ours do, and says what a test tells it to say."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.name = identity.node_name
        self.id = identity.node_id
        self.settings: dict[str, Any] = {}
        self.calls: asyncio.Queue[protocol.Invocation] = asyncio.Queue()
        self._sequence = 0

    @classmethod
    async def enrol(cls, portal: PortalProcess, code: str, folder: Path, *, name: str = "") -> Self:
        """Exchange a verification code for an identity."""
        paths = Paths(state=folder / "state", runtime=folder / "run")
        return cls(await enroll(paths, portal.url, code=code, name=name))

    @asynccontextmanager
    async def online(self) -> AsyncIterator[Self]:
        """Stay signed in until the block ends."""
        async with HubConnection(self.identity.portal_url, tls=make_tls()) as self._connection:
            challenge = protocol.sign_in_challenge(
                connection_id=self._connection.connection_id, nonce=self._connection.nonce, node_name=self.name
            )
            signed_in = asyncio.Event()
            reader = asyncio.create_task(self._read(signed_in))
            request = protocol.sign_in_request(
                node_id=self.id,
                node_name=self.name,
                organization_id=self.identity.organization_id,
                machine_name=f"{self.name}-board",
                agent_version="0.1.0",
                platform="Linux aarch64",
                ip_addresses=["192.168.1.20"],
                mac_addresses=["dc:a6:32:01:02:03"],
                signature=self.identity.sign(challenge),
                wall=1_767_225_600.0,
            )
            await self._connection.send("signInAsync", request)
            async with asyncio.timeout(10):
                await signed_in.wait()
            try:
                yield self
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, signed_in: asyncio.Event) -> None:
        with contextlib.suppress(HubUnreachableError):
            async for call in self._connection.invocations():
                if call.target == "signInMessage":
                    self.settings = call.arguments[0]
                    signed_in.set()
                elif call.target == "ping":
                    await self._connection.send("pingResponse", self.name, "board", "Online", call.arguments[0], False)
                self.calls.put_nowait(call)

    async def told(self, target: str) -> protocol.Invocation:
        """The portal's next call of `target`."""
        async with asyncio.timeout(10):
            while (call := await self.calls.get()).target != target:
                pass
        return call

    async def write(self, text: str, *, level: str = "debug", service: str = "ReadGPIO") -> None:
        """Write a console line."""
        details = {"service": service, "level": level, "time": 1_767_225_600.0}
        await self._connection.invoke("logMessage", self.name, text, self.identity.organization_id, details)

    async def report(self, states: list[dict[str, Any]]) -> None:
        """Report its services."""
        await self._connection.invoke("serviceStates", states)

    async def measure(self, **facts: Any) -> None:
        """Send facts about the machine."""
        await self._connection.invoke("facts", facts)

    async def fault(self, text: str, *, code: str = "1002", service: str = "ReadGPIO", description: str = "") -> None:
        """Deliver a fault."""
        self._sequence += 1
        record = {"stream": "faults", "service": service, "sequence": self._sequence, "boot": "boot-1", "kind": "fault"}
        record |= {"time": 1_767_225_600.0, "code": code, "text": text, "description": description}
        await self._connection.invoke("faults", [record])

    async def track(self, record: dict[str, Any], *, service: str = "Packer") -> None:
        """Deliver a tracking record."""
        self._sequence += 1
        place = {"stream": "s1", "service": service, "sequence": self._sequence, "boot": "boot-1", "kind": "tracking"}
        await self._connection.invoke("faults", [{**place, "time": 1_767_225_600.0, "record": record}])


@pytest.fixture
def fake_node() -> type[FakeNode]:
    """The class of nodes that do as they are told."""
    return FakeNode


@module_loop
async def node(portal: PortalProcess, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FakeNode]:
    """A node of the portal, signed in."""
    code = await portal.api("POST", "/api/verification-codes", {"name": "pump-house-1", "tags": ["pumps"]})
    node = await FakeNode.enrol(portal, code["code"], tmp_path_factory.mktemp("node"))
    async with node.online():
        yield node


@pytest.fixture
def screenshots() -> Callable[[str], Path]:
    """Where a screenshot of some name goes: `artefacts/screenshots/<name>.png`."""
    folder = ROOT / "artefacts" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: folder / f"{name}.png"
