"""What a person does with a node: enrol, run, stop, start without a network; and what happens when things die."""

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture
def running(site):
    """A site with portal, hub and an enrolled node whose agent runs."""
    site.start_hub()
    site.start_portal()
    site.set_up_portal()
    site.enroll("pi")
    site.start_agent()
    site.wait("the node to sign in", lambda: site.node()["online"])
    return site


def library(site, name: str) -> str:
    return site.portal_api("POST", "/api/services", {"name": name, "file": f"{name}.py", "from": f"library:{name}"})[
        "id"
    ]


def pins(site, *arguments: str):
    return site.call("pins", "--runtime-dir", site.folder / "run", *arguments)


def status(site, *arguments: str):
    return site.call("status", "--state-dir", site.folder / "node", "--runtime-dir", site.folder / "run", *arguments)


def runs_offline(site, service: str) -> bool:
    known = json.loads(status(site, "--json").stdout)
    return known["running"] and {s["id"]: s["state"] for s in known["services"]}.get(service) == "running"


def latest(site, name: str):
    return [process for process in site.processes if process.name == name and process.running][-1]


def child_of_agent(site, name: str) -> int:
    """The pid of the agent's template process, of the Azure sink's, or of ReadGPIO's."""
    if name == "service":
        return next(s["pid"] for s in json.loads(status(site, "--json").stdout)["services"] if s["id"] == "readgpio_py")

    agent = latest(site, "agent").popen.pid

    def found() -> int | None:
        for child in psutil.Process(agent).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if f".{name}" in " ".join(child.cmdline()):
                    return child.pid
        return None

    return site.wait(f"the agent's {name}", found)


def press(site, pin: int, times: int) -> None:
    """Toggle a simulated pin with the product's own command."""
    result = pins(site, "toggle", str(pin), "--count", str(times), "--every", "0.02")
    assert result.returncode == 0, result.stderr


def readings(site) -> list[dict[str, Any]]:
    return [message for message in site.messages() if message["properties"]["os-service"] == "readgpio_py"]


def test_node_runs_library_and_own_services_and_starts_again_without_any_network(running):
    site = running
    source = (
        "from base_service import CustomService\n\n"
        "class Greeter(CustomService):\n"
        "    async def Start(self):\n"
        "        await self.Debug('hello from the greeter')\n"
        "        await self.SubmitMessage({'hello': self.get_settings()['nodeName']})\n"
    )
    greeter = site.import_service("Greeter.py", source)
    guide = site.import_service("YOUR_SERVICE_NAME.py", (SAMPLES / "YOUR_SERVICE_NAME.py").read_text("utf-8"))
    gpio = library(site, "ReadGPIO")
    site.portal_api("PUT", f"/api/nodes/{site.node()['id']}/console", {"on": True})
    site.assign(
        {"service_id": guide, "host": "pi"},
        {"service_id": gpio, "host": "pi", "static": {"pins": "17", "pull": "down", "debounce": 0}},
        {"service_id": greeter, "host": "#ALL"},
    )
    site.wait("ReadGPIO to run", lambda: site.service_state("readgpio_py") == "running")

    press(site, 17, 10)
    site.wait("ten readings", lambda: len(readings(site)) == 10)
    assert [reading["body"]["count"] for reading in readings(site)] == list(range(1, 11))
    assert any(message.get("body") == {"hello": "pi"} for message in site.messages())

    agent = next(process for process in site.processes if process.name == "agent")
    shown = status(site)
    assert shown.returncode == 0, shown.stderr
    assert "readgpio_py" in shown.stdout
    assert agent.stop() == 0
    for line in ("your_service_name_py: Started", "your_service_name_py: Stopped"):
        assert line in agent.text(), "the author's guide's own sample"
    console = [line["text"] for line in site.portal_api("GET", "/api/console")]
    assert "Started" in console

    for process in site.processes:
        if process.running:
            process.stop()
    site.start_agent()
    site.wait("ReadGPIO to run with no portal and no hub", lambda: runs_offline(site, "readgpio_py"))
    press(site, 17, 5)
    site.start_hub()
    site.wait("the readings that were made without a network", lambda: len(readings(site)) == 15, seconds=90)
    report = site.hub_api("GET", "/report")
    assert report["missing"] == 0


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_nothing_is_lost_when_any_process_is_killed_at_any_moment(running):
    site = running
    gpio = library(site, "ReadGPIO")
    site.assign({"service_id": gpio, "host": "pi", "static": {"pins": "17", "pull": "down", "debounce": 0}})
    site.wait("ReadGPIO to run", lambda: site.service_state("readgpio_py") == "running")
    chance = random.Random(20260101)
    starters = {"agent": site.start_agent, "iothub": site.start_hub, "portal": site.start_portal}
    runtime = site.folder / "run"

    for name in ("agent", "iothub", "portal", "service", "template", "azure_process") * 2:
        presser = site.start(
            "presser", "pins", "--runtime-dir", runtime, "toggle", "17", "--count", "20", "--every", "0.02"
        )
        time.sleep(chance.uniform(0.1, 0.6))  # the moment of the kill is what is being varied
        if name in starters:
            latest(site, name).kill()
            starters[name]()
        else:
            os.kill(child_of_agent(site, name), signal.SIGKILL)
        presser.popen.wait(30)
        site.wait("the node to read its pins again", lambda: runs_offline(site, "readgpio_py"))

    press(site, 17, 1)

    def settled() -> Any:
        empty = json.loads(status(site, "--json").stdout)["outbox"]["depth"] == 0
        return empty and site.hub_api("GET", "/report")

    report = site.wait("the outbox to be empty", settled, seconds=90)
    assert report["missing"] == 0
    assert report["distinct"] > 12


def test_service_that_is_killed_is_started_again_and_the_portal_knows_why(running):
    site = running
    source = (
        "import os, signal\n"
        "from base_service import CustomService\n\n"
        "class Victim(CustomService):\n"
        "    async def Start(self):\n"
        "        await self.SubmitMessage({'pid': os.getpid()})\n"
    )
    site.assign({"service_id": site.import_service("Victim.py", source), "host": "pi"})
    first = site.wait("the first message", site.messages)[0]["body"]["pid"]
    os.kill(first, signal.SIGKILL)
    messages = site.wait("another process", lambda: len(site.messages()) > 1 and site.messages())
    assert messages[1]["body"]["pid"] != first
    node = site.node()["id"]
    faults = site.wait("the fault at the portal", lambda: site.portal_api("GET", f"/api/faults?node={node}")["items"])
    assert faults[0]["code"] == "90000"
    assert "SIGKILL" in faults[0]["text"]


def test_no_secret_is_in_any_log(running):
    site = running
    source = (
        "from base_service import CustomService\n\n"
        "class Keeper(CustomService):\n"
        "    async def Start(self):\n"
        "        await self.SubmitMessage({'length': len(self.GetPropertyValue('security', 'token'))})\n"
    )
    service = site.portal_api(
        "POST",
        "/api/services",
        {
            "name": "Keeper",
            "file": "Keeper.py",
            "from": "import",
            "source": source,
        },
    )["id"]
    token = {"id": "token", "label": "Token", "type": "string"}
    site.portal_api("PATCH", f"/api/services/{service}", {"properties": {"security": [token]}})
    site.assign({"service_id": service, "host": "pi", "security": {"token": "correct-horse-battery"}})
    site.wait("the message", site.messages)
    assert site.messages()[0]["body"] == {"length": len("correct-horse-battery")}
    device = site.hub_api("PUT", "/devices/pi")
    key = re.search(r"SharedAccessKey=([^;]+)", device["connection_string"])[1]
    identity = (site.folder / "node" / "identity.json").read_text("utf-8")
    private = re.search(r'"private_key": "([^"]+)"', identity)[1]
    logs = site.logs()
    for secret in ("correct-horse-battery", key, private, site.password):
        assert secret not in logs
    for file in (site.folder / "node").rglob("*"):
        if file.is_file() and "correct-horse-battery" in file.read_text("utf-8", errors="ignore"):
            assert file.stat().st_mode & 0o077 == 0, file
