"""A portal and a node under a real systemd, set up by `systemd/install`, in a throw-away machine without a network."""

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NODE = "booted-pi"
AGENT = "outstation-agent.service"
PORTAL = "outstation-portal.service"
PORTAL_ENV = "/etc/outstation/portal.env"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("systemd-nspawn") or not shutil.which("mmdebstrap"),
        reason="a machine is booted by root with systemd-nspawn, from what mmdebstrap made",
    ),
]


class Machine:
    """A booted machine, looked at from outside."""

    def __init__(self, leader: int) -> None:
        # With what a person who signs in there has, and nothing of whoever runs the tests.
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._enter = ["nsenter", f"--target={leader}", "--all", "--root", "--wd", "env", "-i", f"PATH={path}"]

    def run(self, *command: str) -> str:
        result = subprocess.run([*self._enter, *command], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def show(self, unit: str, *properties: str) -> list[str]:
        shown = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties))
        values = dict(line.split("=", 1) for line in shown.splitlines())
        return [values[name] for name in properties]

    def write(self, path: str, content: str) -> None:
        self.run("mkdir", "-p", str(Path(path).parent))
        subprocess.run([*self._enter, "tee", path], input=content, text=True, check=True, stdout=subprocess.DEVNULL)

    @contextmanager
    def following(self, unit: str) -> "Iterator[Journal]":
        """The unit's journal from now on."""
        cursor = self.run("journalctl", "--lines=1", "--show-cursor").rpartition("-- cursor: ")[2]
        command = ["journalctl", "--follow", f"--unit={unit}", "--output=cat", f"--after-cursor={cursor}"]
        with subprocess.Popen([*self._enter, *command], stdout=subprocess.PIPE, bufsize=0) as process:
            try:
                yield Journal(process)
            finally:
                process.terminate()


class Journal:
    """Lines as they come."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stream, selectors.EVENT_READ)
        self._unread = b""
        self.lines: list[str] = []

    def wait_for(self, pattern: str, *, quiet_seconds: float = 30) -> str:
        """The next line that matches; fails when nothing at all comes for `quiet_seconds`."""
        while True:
            while b"\n" in self._unread:
                line, self._unread = self._unread.split(b"\n", 1)
                self.lines.append(line.decode(errors="replace"))
                if re.search(pattern, self.lines[-1]):
                    return self.lines[-1]
            assert self._selector.select(quiet_seconds), f"no line like {pattern!r} in:\n" + "\n".join(self.lines)
            chunk = os.read(self._stream.fileno(), 65536)
            assert chunk, "the journal ended"
            self._unread += chunk


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    log = tmp_path_factory.mktemp("machine") / "console.log"
    with (
        log.open("wb") as console,
        subprocess.Popen(
            [HERE / "nspawn.sh"], stdout=subprocess.PIPE, stderr=console, stdin=subprocess.DEVNULL
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if b"login:" in line or b"Queued start job" in line:
                    break
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
            assert children, log.read_text("utf-8", errors="replace")
            yield Machine(int(children[0]))
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def setup_link(machine) -> str:
    machine.run("systemctl", "is-system-running", "--wait")
    # Set up for a network, with TLS; but this machine has no name in any.
    machine.run("sed", "--in-place", "s#^PORTAL_PUBLIC_URL=.*#PORTAL_PUBLIC_URL=https://localhost:8080#", PORTAL_ENV)
    with machine.following(PORTAL) as journal:
        machine.run("systemctl", "restart", PORTAL)
        found = re.search(r"https://\S+/setup\?token=\S+", journal.wait_for(r"/setup\?token="))
    assert found
    return found[0]


def client(machine: Machine, *arguments: str) -> str:
    return machine.run("/opt/outstation/bin/python", "/root/outstation/tests/packaging/portal_client.py", *arguments)


@pytest.fixture(scope="module")
def enrolled(machine, setup_link) -> str:
    """The node's name; its agent was started by nothing but the enrolment."""
    machine.write("/run/systemd/system/outstation-agent.service.d/test.conf", "[Service]\nWatchdogSec=4s\n")
    machine.write("/etc/outstation/agent.env", "OUTSTATION_GPIO=simulated\n")
    machine.run("systemctl", "daemon-reload")
    command = client(machine, setup_link, "enrol")
    with machine.following(AGENT) as journal:
        machine.run("sh", "-c", f"{command} --name {NODE}")
        journal.wait_for("Started outstation-agent")
    return NODE


def test_portal_is_running_as_its_own_user(machine, setup_link):
    state, main, user = machine.show(PORTAL, "ActiveState", "MainPID", "User")

    assert (state, user) == ("active", "outstation-portal")
    assert machine.run("stat", "--format=%U", f"/proc/{main}") == "outstation-portal"


def test_enrolment_alone_starts_the_agent(machine, enrolled):
    status = json.loads(machine.run("outstation", "status", "--json"))

    assert status["running"]
    assert status["node"]["name"] == enrolled
    assert machine.run("stat", "--format=%U %a", "/var/lib/outstation/identity.json") == "outstation 600"


def test_services_run_inside_the_sandbox(machine, setup_link, enrolled):
    with machine.following(AGENT) as journal:
        client(machine, setup_link, "assign", enrolled, "ReadGPIO")
        journal.wait_for("Reading pins 17")

    (service,) = json.loads(machine.run("outstation", "status", "--json"))["services"]
    assert (service["id"], service["state"]) == ("readgpio_py", "running")
    # Everything the agent started is in the unit's control group, and runs as the unit's user without any right.
    assert machine.run("stat", "--format=%U", f"/proc/{service['pid']}") == "outstation"
    rights = machine.run("grep", "-E", "^(CapEff|NoNewPrivs|Seccomp):", f"/proc/{service['pid']}/status").split()
    assert rights == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1", "Seccomp:", "2"]


def test_killed_agent_is_started_again(machine, enrolled):
    (before,) = machine.show(AGENT, "MainPID")

    with machine.following(AGENT) as journal:
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", AGENT)
        journal.wait_for("Started outstation-agent")

    state, after = machine.show(AGENT, "ActiveState", "MainPID")
    assert state == "active"
    assert after != before


def test_agent_that_hangs_is_ended_by_the_watchdog_and_started_again(machine, enrolled):
    (before,) = machine.show(AGENT, "MainPID")

    with machine.following(AGENT) as journal:
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", AGENT)
        journal.wait_for("Watchdog timeout")
        journal.wait_for("Started outstation-agent")

    state, after = machine.show(AGENT, "ActiveState", "MainPID")
    assert state == "active"
    assert after != before


def test_agent_that_is_stopped_ends_cleanly_and_stays_stopped(machine, enrolled):
    (group,) = machine.show(AGENT, "ControlGroup")

    machine.run("systemctl", "stop", AGENT)

    assert machine.show(AGENT, "ActiveState", "Result", "ExecMainStatus") == ["inactive", "success", "0"]
    assert machine.show("outstation-agent.path", "ActiveState") == ["active"]
    assert machine.run("systemctl", "list-jobs", "--no-legend") == ""
    assert not machine.run("sh", "-c", f"cat /sys/fs/cgroup/unified{group}/cgroup.procs 2>/dev/null || true")

    machine.run("systemctl", "start", AGENT)
    assert machine.show(AGENT, "ActiveState") == ["active"]


def test_set_up_again_is_harmless(machine, enrolled):
    """As after an upgrade: the program is in place, and the script is the one beside it."""
    (before,) = machine.show(AGENT, "MainPID")

    said = machine.run("sh", "/opt/outstation/share/outstation/systemd/install", "agent")

    assert "This node is enrolled" in said
    state, after = machine.show(AGENT, "ActiveState", "MainPID")
    assert state == "active"
    assert after != before
