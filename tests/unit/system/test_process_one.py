"""What stays behind as process 1, tried in a process that inherits orphans as process 1 does."""

from __future__ import annotations

import signal
import subprocess
import sys

AS_PROCESS_ONE = """
import ctypes, os, signal, sys, time
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
os.getpid = lambda: 1
from agent.system.process_one import leave_process_one
leave_process_one()
"""

ORPHAN = """
read, write = os.pipe()
if not os.fork():
    orphan = os.fork()
    if orphan:
        os.write(write, str(orphan).encode())
        os._exit(0)
    os._exit(0)
os.wait()
orphan = os.read(read, 20).decode()
while os.path.exists(f"/proc/{orphan}"):
    time.sleep(0.01)
sys.exit(3)
"""

WAIT_FOR_SIGTERM = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
signal.pause()
"""

LATE_WORK = """
read, write = os.pipe()
if not os.fork():
    os.close(write)
    os.read(read, 1)  # until the one before has been killed
    print("saved", flush=True)
    os._exit(0)
signal.raise_signal(signal.SIGKILL)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_PROCESS_ONE + code], capture_output=True, text=True, timeout=30, check=False
    )


def test_orphans_are_reaped_and_the_childs_status_is_handed_on() -> None:
    assert run(ORPHAN).returncode == 3


def test_signals_reach_the_child() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", AS_PROCESS_ONE + WAIT_FOR_SIGTERM], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 7
    process.stdout.close()


def test_what_a_killed_child_leaves_may_finish() -> None:
    done = run(LATE_WORK)
    assert done.stdout == "saved\n"
    assert done.returncode == 128 + signal.SIGKILL


def test_any_other_process_goes_on_as_it_is() -> None:
    code = "import os; before = os.getpid(); from agent.system.process_one import leave_process_one as leave; leave(); "
    done = subprocess.run([sys.executable, "-c", code + "assert os.getpid() == before"], timeout=30, check=False)
    assert done.returncode == 0
