"""An unmodified agent of the original product beside a portal of ours, both as processes of their own."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "compat.txt"
MACHINE = Path(__file__).with_name("machine")
PASSWORD = "a long enough password"
PATIENCE_SECONDS = 30.0

SERVICE = """
import asyncio

from base_service import CustomService


class Greeter(CustomService):
    def __init__(self, id, queue, config):
        self.running = False
        super(Greeter, self).__init__(id, queue, config)

    async def Start(self):
        await self.SubmitMessage({"greeting": self.GetPropertyValue("static", "greeting")})
        while True:
            await self.Debug(f"{self.GetPropertyValue('static', 'greeting')} at your service")
            await asyncio.sleep(1)

    async def Stop(self):
        await self.Debug("good night")
"""


def wait_until(what: str, condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Ask `condition` until it is true; a failure names what was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


class Api:
    """JSON over HTTP with a cookie jar."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(CookieJar()), urllib.request.ProxyHandler({})
        )

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Origin": self.url},
        )
        try:
            with self._opener.open(request, timeout=20) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()[:800]}") from None
        return json.loads(text) if text else None


class Portal:
    """`outstation portal run`, always on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "portal.log"
        self.api: Api
        self._popen: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "agent.cli", "portal", "run", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*command, "--data", str(self.folder / "portal"), "--ready-file", str(ready)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until("the portal to be ready", ready.exists)
        setup_url = json.loads(ready.read_text("utf-8"))["setup_url"]
        self.api = Api(self.url)
        if setup_url:
            token = parse_qs(urlsplit(setup_url).query)["token"][0]
            self.api("POST", "/api/setup", {"token": token, "name": "owner", "password": PASSWORD})
        self.api("POST", "/api/session", {"name": "owner", "password": PASSWORD})

    def stop(self) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(15)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait(10)

    def text(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""


class Cable:
    """A loopback port that leads to the portal's and can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End the connections that are open; new ones are carried again."""
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # Closing alone does not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as far:
            self._ends |= {near, far}
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()
            self._ends -= {near, far}

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class OriginalAgent:
    """The console script `microservicebus-py`, shut in by `machine/sitecustomize.py`."""

    def __init__(self, environment: Path, folder: Path, portal_url: str) -> None:
        self.folder, self.home, self.log = folder, folder / "home", folder / "agent.out"
        self.home.mkdir()
        self._command = [str(environment / "bin" / "microservicebus-py")]
        self._popen: subprocess.Popen[bytes] | None = None
        self._environment = {
            "HOME": str(self.home),
            "MSB_HOST": portal_url,
            # It starts anew as `python`, found on the path; nothing else is on it.
            "PATH": str(environment / "bin"),
            "PYTHONPATH": str(MACHINE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "COMPAT_ROOT": str(folder),
            "TMPDIR": str(folder),
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
            "no_proxy": "127.0.0.1,localhost",
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self._command,
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it by its pid with SIGKILL: it does not end on SIGTERM."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                self._popen.kill()
            self._popen.wait(10)

    def settings(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.home / "msb-py" / "settings.json").read_text("utf-8"))
        return document

    def starts(self) -> int:
        """How often its program began; a restart replaces the process and keeps the pid."""
        return self.text().count("pid: ")

    def refused(self) -> str:
        """What it tried outside its folder or beyond loopback."""
        file = self.folder / "refused.txt"
        return file.read_text("utf-8") if file.exists() else ""

    def text(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""


class Site:
    """Both, and what a person does in the portal."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.portal = Portal(folder)
        self.cable = Cable(self.portal.port)
        self.agent = OriginalAgent(environment, folder, self.cable.url)
        self.node_id = ""

    def api(self, method: str, path: str, body: object = None) -> Any:
        return self.portal.api(method, path, body)

    def node(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api("GET", f"/api/nodes/{self.node_id}")
        return found

    def events(self) -> list[dict[str, Any]]:
        """The node's timeline, newest first."""
        found: list[dict[str, Any]] = self.api("GET", f"/api/nodes/{self.node_id}/events")["items"]
        return found

    def last_event(self) -> int:
        return int(self.events()[0]["id"])

    def wait_online(self, after: int) -> None:
        """Wait for a sign-in later than an event."""
        wait_until(
            "the node to sign in",
            lambda: any(event["kind"] == "online" and event["id"] > after for event in self.events()),
        )

    def last_line(self) -> int:
        lines = self.api("GET", f"/api/console?node={self.node_id}&limit=1")
        return int(lines[-1]["id"]) if lines else 0

    def wait_line(self, pattern: str, after: int = 0) -> dict[str, Any]:
        """Wait for a console line of the node."""

        def seen() -> dict[str, Any] | None:
            lines = self.api("GET", f"/api/console?node={self.node_id}&limit=2000&after={after}")
            return next((line for line in lines if re.search(pattern, line["text"])), None)

        found: dict[str, Any] = wait_until(f"a console line like {pattern!r}", seen)
        return found

    def wait_refused(self, text: str) -> None:
        """Wait until the agent says that the portal refused it with `text`."""
        wait_until(f"the agent to be refused: {text}", lambda: f"HUB ERROR: {text}" in self.agent.text())

    def close(self) -> None:
        self.agent.kill()
        self.portal.stop()
        self.cable.close()


@pytest.fixture(scope="session")
def original_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the original agent and what it imports, as `requirements/compat.txt` locks them.

    Skips when no package index is reachable.
    """
    environment = tmp_path_factory.mktemp("original") / "environment"
    uv = Path(sys.executable).with_name("uv")
    python = environment / "bin" / "python"
    subprocess.run([str(uv), "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    install = ["install", "-q", "--require-hashes", "-r", str(LOCK)]
    # The second for machines where pip alone is told of a mirror.
    tries = [
        [str(uv), "pip", *install, "--python", str(python)],
        [sys.executable, "-m", "pip", "--python", str(python), *install],
    ]
    output = ""
    for command in tries:
        done = subprocess.run(
            command,
            env={**os.environ, "UV_HTTP_RETRIES": "1", "PIP_RETRIES": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 0:
            return environment
        output += done.stderr
    if "Failed to fetch" in output or "No matching distribution" in output:
        pytest.skip(f"the original agent cannot be installed, no package index is reachable: {output.strip()[-300:]}")
    raise AssertionError(f"requirements/compat.txt could not be installed:\n{output}")


@pytest.fixture(scope="module")
def site(original_agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A portal that takes original agents, with a service for tag `old`, and an original agent that was claimed."""
    site = Site(original_agent, tmp_path_factory.mktemp("site"))
    try:
        site.portal.start()
        site.api(
            "PATCH",
            "/api/organization",
            {"allow_original_agents": True, "heartbeat_seconds": 5, "missed_heartbeat_limit": 1},
        )
        site.api("POST", "/api/services", {"file": "Greeter.py", "from": "import", "source": SERVICE})
        definition = {"id": "greeting", "type": "string", "default": "hello"}
        site.api("PATCH", "/api/services/greeter_py", {"properties": {"static": [definition], "security": []}})
        activity = {"service_id": "greeter_py", "host": "#old", "static": {"greeting": "good day"}}
        site.api("POST", "/api/flows", {"name": "greetings", "activities": [activity]})
        site.agent.start()
        waiting = wait_until(
            "the agent to announce itself",
            lambda: [item for item in site.api("GET", "/api/announcements") if item["connected"]],
        )
        claim = {"name": "old-pi", "tags": ["old"]}
        site.node_id = site.api("POST", f"/api/announcements/{waiting[0]['id']}/claim", claim)["id"]
        site.wait_online(after=0)
        site.api("PUT", f"/api/nodes/{site.node_id}/console", {"on": True})
        yield site
    finally:
        site.close()
