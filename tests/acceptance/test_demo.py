"""`outstation demo`, as `make demo` calls it."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path


def start(site, *arguments):
    return subprocess.Popen(
        site.command("demo", "--portal-port", "0", "--interval", "0.1", *arguments),
        cwd=site.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(site.folder)},
    )


def test_demo_ends_by_itself_after_its_readings(site):
    process = start(site, "--once", "10")
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    summary = output.strip().splitlines()[-1]
    assert re.search(
        r"\d+ readings, 0 lost, \d+ duplicated, p50 [\d.]+ ms, p99 [\d.]+ ms from pin edge to hub", summary
    ), output
    assert len(re.findall(r"readgpio_py #\d+", output)) == 10
    assert not list(site.folder.glob("outstation-demo-*")), "the temporary folder is left"


def test_demo_ends_cleanly_on_ctrl_c_and_leaves_no_process(site):
    pids: set[int] = set()
    output = ""
    with start(site) as process:
        for line in process.stdout:
            output += line
            if "readgpio_py #3" in line:
                pids = descendants(process.pid)
                process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, output
    assert len(pids) >= 5, "portal, hub, agent, its template, a service"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


def test_demo_says_where_it_is_stuck_when_no_reading_arrives(site):
    with start(site, "--once", "1000", "--limit", "12") as process:
        for line in process.stdout:
            if "readgpio_py #2" in line:
                hub = next(pid for pid in descendants(process.pid) if "iothub" in command_line(pid))
                os.kill(hub, signal.SIGSTOP)
                break
        output = ""
        for line in process.stdout:
            output += line
            if "Stuck after" in line:
                os.kill(hub, signal.SIGCONT)
        assert process.wait(30) == 1, output
    assert "Stuck after 12 s while waiting for readings at the hub" in output
    assert "iothub|" in output, "the processes' logs are shown"


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended meanwhile


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split():
        found |= {int(child)} | descendants(int(child))
    return found


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
