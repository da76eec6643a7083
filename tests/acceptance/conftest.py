"""The product as a user has it: the wheel in an environment of its own, its commands as processes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
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
READY_SECONDS = 40.0


def wait_until(what: str, condition: Callable[[], Any], *, seconds: float = READY_SECONDS) -> Any:
    """Ask `condition` until it is true; a failure names what was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


class Process:
    """One command of the product; its output is in `log`."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name, self.command, self.log = name, command, folder / f"{name}.log"
        self.folder = folder
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def stop(self, *, seconds: float = 20.0) -> int:
        """SIGTERM, and the exit status; a process that does not go is killed and fails the test."""
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end in {seconds:.0f} s of SIGTERM:\n{self.text()}") from None

    def kill(self) -> None:
        assert self.popen is not None
        with contextlib.suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait(10)

    def text(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""


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


class Site:
    """A portal, a hub and a node in one folder, each its own process."""

    def __init__(self, outstation: Path, folder: Path) -> None:
        self.outstation, self.folder = outstation, folder
        self.processes: list[Process] = []
        self.portal_api: Api
        self.hub_api: Api
        self.portal_url = ""
        self.password = "a long enough password"
        self._ports: dict[str, int] = {}
        self._hub_address = ""

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(self.outstation), *map(str, arguments)]

    def call(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, name: str, *arguments: str | Path) -> Process:
        process = Process(name, self.command(*arguments), self.folder).start()
        self.processes.append(process)
        return process

    def start_portal(self) -> Process:
        ready = self.folder / "portal.json"
        ready.unlink(missing_ok=True)
        port = self._ports.setdefault("portal", free_port())
        process = self.start(
            "portal",
            *("portal", "run", "--host", "127.0.0.1", "--port", str(port)),
            *("--data", self.folder / "portal", "--ready-file", ready),
        )
        document = self.ready(process, ready)
        self.portal_url = document["url"]
        return process

    def set_up_portal(self) -> None:
        """Open the one-time link, as the owner does."""
        process = next(process for process in self.processes if process.name == "portal")
        token = parse_qs(urlsplit(self.setup_link(process)).query)["token"][0]
        self.portal_api = Api(self.portal_url)
        self.portal_api("POST", "/api/setup", {"token": token, "name": "owner", "password": self.password})
        self.portal_api("POST", "/api/session", {"name": "owner", "password": self.password})

    def setup_link(self, portal: Process) -> str:
        """The one-time link that a fresh portal prints."""
        link = wait_until("the set-up link", lambda: re.search(r"https?://\S+/setup\?token=\S+", portal.text()))
        return str(link[0])

    def start_hub(self) -> Process:
        from emulator.server import free_loopback_address

        self._hub_address = self._hub_address or free_loopback_address()
        ready = self.folder / "hub.json"
        ready.unlink(missing_ok=True)
        port = self._ports.setdefault("hub", free_port())
        process = self.start(
            "iothub",
            *("iothub", "--host", self._hub_address, "--http-port", str(port)),
            *("--data", self.folder / "hub", "--ready-file", ready),
        )
        self.hub_api = Api(self.ready(process, ready)["http_url"])
        return process

    wait = staticmethod(wait_until)

    @staticmethod
    def free_port() -> int:
        return free_port()

    def code(self) -> str:
        made = self.portal_api("POST", "/api/verification-codes", {})
        return str(made["code"])

    def enroll(self, name: str = "pi") -> None:
        """Enrol the node and give it a device of the hub."""
        result = self.call(
            "enroll", self.portal_url, "--code", self.code(), "--name", name, "--state-dir", self.folder / "node"
        )
        assert result.returncode == 0, result.stderr
        device = self.hub_api("PUT", f"/devices/{name}")
        self.portal_api(
            "PUT",
            f"/api/nodes/{self.node(name)['id']}/iot-hub",
            {
                "connection_string": device["connection_string"],
                "certificate_authority": device["certificate_authority"],
            },
        )

    def start_agent(self) -> Process:
        return self.start(
            "agent",
            "run",
            "--gpio",
            "simulated",
            "--state-dir",
            self.folder / "node",
            "--runtime-dir",
            self.folder / "run",
        )

    def node(self, name: str = "pi") -> dict[str, Any]:
        nodes = self.portal_api("GET", "/api/nodes")["items"]
        found = next(node for node in nodes if node["name"] == name)
        detail: dict[str, Any] = self.portal_api("GET", f"/api/nodes/{found['id']}")
        return detail

    def service_state(self, service: str, name: str = "pi") -> str:
        states = {known["id"]: known["state"] for known in self.node(name)["services"]}
        return str(states.get(service, ""))

    def import_service(self, file: str, source: str) -> str:
        made = self.portal_api(
            "POST",
            "/api/services",
            {"name": file.removesuffix(".py"), "file": file, "from": "import", "source": source},
        )
        return str(made["id"])

    def assign(self, *activities: dict[str, Any], flow: str = "flow") -> None:
        self.portal_api("POST", "/api/flows", {"name": flow, "activities": list(activities)})

    def messages(self) -> list[dict[str, Any]]:
        found = self.hub_api("GET", "/messages?limit=1000")
        return list(found["messages"])

    def logs(self) -> str:
        return "\n".join(f"--- {process.name}\n{process.text()}" for process in self.processes)

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.running:
                process.kill()

    def ready(self, process: Process, file: Path) -> dict[str, Any]:
        def ready() -> bool:
            assert process.running, f"{process.name} ended:\n{process.text()}"
            return file.exists()

        wait_until(f"{process.name} to be ready", ready)
        document: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return document


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def outstation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `outstation` command of the wheel, installed into an environment of its own.

    What it depends on is taken from the environment that runs the tests, so that no network is needed.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    wheel = next(folder.glob("*.whl"))
    environment = folder / "environment"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([str(uv), "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [str(uv), "pip", "install", "-q", "--offline", "--no-deps", "--python", str(python), str(wheel)], check=True
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Below the wheel's own folder on the path, and without its .pth files: the checkout itself stays out of it.
    (environment / "lib" / version / "site-packages" / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n", "utf-8"
    )
    return environment / "bin" / "outstation"


@pytest.fixture
def site(outstation: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """An empty place for processes, which are ended with the test; their logs are shown when it fails."""
    made = Site(outstation, tmp_path)
    os.environ.pop("NOTIFY_SOCKET", None)
    yield made
    made.close()
    sys.stdout.write(made.logs()[-20_000:])
