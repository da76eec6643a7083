"""Whatever a service does to itself, it does to nobody else, and the portal is told."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest

from agent.orchestrator import lifecycle

HEALTHY = """
    import asyncio
    from base_service import CustomService

    class Healthy(CustomService):
        async def Start(self):
            self.count = 0
            while True:
                self.count += 1
                await self.SubmitMessage({"count": self.count})
                await asyncio.sleep(0.005)
    """


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MOST_BACKOFF_SECONDS", 0.001)


def service(name: str, body: str, *, imports: str = "") -> str:
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    head = f"{imports}\nfrom base_service import CustomService\n\nclass {name}(CustomService):\n"
    return f"{head}    async def Start(self):\n{lines}\n"


@pytest.mark.parametrize(
    ("name", "body", "imports", "fault"),
    [
        ("Leaves", "sys.exit(3)", "import sys", "Leaves ended by itself with status 3."),
        ("Aborts", "os.abort()", "import os", "Aborts died of SIGABRT (signal 6)."),
        ("Segfaults", "ctypes.string_at(0)", "import ctypes", "Segfaults died of SIGSEGV (signal 11)."),
        ("Raises", 'raise OSError("no such pin")', "", "Raises raised OSError: no such pin (in Start)"),
        (
            "Imports",
            "pass",
            "import not_there",
            "Imports raised ModuleNotFoundError: No module named 'not_there' (while it was loaded)",
        ),
        (
            "Vanishes",
            "os.kill(os.getpid(), signal.SIGKILL)",
            "import os, signal",
            "Vanishes died of SIGKILL (signal 9) (out of memory, or killed by hand).",
        ),
        (
            "Closes",
            "os.closerange(3, 1000)\ntime.sleep(1000)",
            "import os, time",
            "Closes: The process closed its connection to the agent.",
        ),
    ],
)
async def test_service_that_ends_itself_is_reported_and_restarted_beside_healthy_ones(
    node: Any, no_backoff: None, name: str, body: str, imports: str, fault: str
) -> None:
    await node.run(HEALTHY, service(name, body, imports=imports))
    reported = await node.until(lambda: node.faults(f"{name.lower()}_py"))
    assert reported[0]["code"] == "90000"
    assert reported[0]["text"] == fault
    await node.until(lambda: node.status(f"{name.lower()}_py").restarts >= 1)
    assert node.status(f"{name.lower()}_py").fault == fault

    seen = len(node.payloads("healthy_py"))
    await node.until(lambda: len(node.payloads("healthy_py")) > seen)
    counts = [payload["count"] for payload in node.payloads("healthy_py")]
    assert counts == list(range(1, len(counts) + 1))
    assert node.status("healthy_py").restarts == 0


async def test_traceback_of_a_crash_travels_with_the_fault(node: Any) -> None:
    await node.run(service("Raises", 'raise OSError("no such pin")'))
    (fault,) = await node.until(lambda: node.faults())
    assert "Raises.py" in fault["description"]
    assert "no such pin" in fault["description"]


async def test_segfault_shows_where_python_was(node: Any) -> None:
    await node.run(service("Segfaults", "ctypes.string_at(0)", imports="import ctypes"))
    (fault,) = await node.until(lambda: node.faults())
    assert "Fatal Python error: Segmentation fault" in fault["description"]
    assert "Segfaults.py" in fault["description"]


async def test_exception_in_the_constructor_names_it(node: Any) -> None:
    await node.run(
        """
        from base_service import CustomService

        class Broken(CustomService):
            def __init__(self, id, queue, config):
                raise KeyError("pin")
        """
    )
    (fault,) = await node.until(lambda: node.faults())
    assert fault["text"] == "Broken raised KeyError: 'pin' (in its constructor)"
    await node.state("broken_py", "backing_off")


async def test_constructor_that_takes_something_else_is_explained(node: Any) -> None:
    await node.run(
        """
        from base_service import CustomService

        class Odd(CustomService):
            def __init__(self, id):
                pass
        """
    )
    (fault,) = await node.until(lambda: node.faults())
    assert "The constructor of Odd takes (self, id); it must take (self, id, queue, config)." in fault["text"]


@pytest.mark.parametrize(
    ("name", "source", "text"),
    [
        (
            "ReadGPIO",
            "from base_service import CustomService\nclass Readgpio(CustomService): pass\n",
            "ReadGPIO.py has no class ReadGPIO; the class must be named as the file. It has Readgpio.",
        ),
        (
            "Empty",
            "x = 1\n",
            "Empty.py has no class Empty; the class must be named as the file. It has no service class at all.",
        ),
        (
            "Plain",
            "class Plain: pass\n",
            "Plain.py: the class Plain is not a service. Write: class Plain(CustomService).",
        ),
        ("Typo", "class Typo(:\n", "Typo.py is not valid Python"),
    ],
)
async def test_script_that_can_never_run_fails_at_once_and_says_why(
    node: Any, name: str, source: str, text: str
) -> None:
    await node.run(node.spec(source, name=name))
    status = await node.state(f"{name.lower()}_py", "failed")
    assert text in status.fault
    assert len(node.faults()) == 1


async def test_changed_script_is_refused(node: Any) -> None:
    spec = node.spec(HEALTHY)
    spec.script.write_bytes(spec.script.read_bytes() + b"# changed")
    await node.run(spec)
    status = await node.state("healthy_py", "failed")
    assert "its SHA-256 differs" in status.fault


async def test_service_that_keeps_failing_is_left_alone_and_can_be_started_by_hand(node: Any, no_backoff: None) -> None:
    await node.run(service("Stubborn", 'raise RuntimeError("again")'))
    status = await node.state("stubborn_py", "failed")
    assert len(node.faults()) == lifecycle.FAILED_AFTER
    assert status.pid is None

    await node.orchestrator.start_service("stubborn_py")
    await node.until(lambda: len(node.faults()) > lifecycle.FAILED_AFTER)


async def test_service_that_waits_for_its_restart_stops_at_once(node: Any) -> None:
    await node.run(service("Raises", 'raise RuntimeError("once")'))
    await node.state("raises_py", "backing_off")
    await node.run()
    assert node.orchestrator.statuses() == []


async def test_killed_process_is_replaced(node: Any, no_backoff: None) -> None:
    await node.run(HEALTHY)
    before = (await node.state("healthy_py", "running")).pid
    os.kill(before, signal.SIGKILL)
    status = await node.until(
        lambda: next((s for s in node.orchestrator.statuses() if s.state == "running" and s.pid != before), None)
    )
    assert status.restarts == 1


async def test_blocking_loop_holds_up_nobody_else(node: Any) -> None:
    await node.run(
        HEALTHY,
        service("Blocks", 'await self.Debug("about to block")\nwhile True: pass'),
    )
    await node.line("about to block")
    seen = len(node.payloads("healthy_py"))
    await node.until(lambda: len(node.payloads("healthy_py")) > seen + 50)
    await node.orchestrator.stop(0.1)


async def test_exceptions_in_handlers_tasks_and_threads_are_reported_and_the_service_goes_on(node: Any) -> None:
    await node.run(
        """
        import asyncio, threading
        from base_service import CustomService

        class Careless(CustomService):
            async def Start(self):
                asyncio.create_task(self.fail("in a task"))
                threading.Thread(target=self.fail_now, args=("in a thread",), name="sensor").start()

            async def fail(self, where):
                raise ValueError(where)

            def fail_now(self, where):
                raise ValueError(where)

            async def handle(self, args):
                raise ValueError("in a handler")

            async def ping(self, args):
                return "pong"
        """
    )
    await node.state("careless_py", "running")
    await node.orchestrator.send("test", "careless", "handle", None)
    faults = await node.until(lambda: len(node.faults()) == 3 and node.faults())
    texts = " | ".join(fault["text"] for fault in faults)
    assert "careless_py.handle raised ValueError: in a handler" in texts
    assert "Thread sensor ended by ValueError: in a thread" in texts
    assert "ValueError: in a task" in texts
    assert all("Traceback" in fault["description"] for fault in faults)
    assert await node.orchestrator.request("test", "careless", "ping", None) == "pong"
    assert node.status("careless_py").restarts == 0


async def test_flood_of_lines_is_cut_and_counted(node: Any) -> None:
    body = 'for number in range(20000): print("line", number)\nfor number in range(20000): await self.Debug(number)'
    await node.run(HEALTHY, service("Floods", body))
    await node.line("lines were left out: too many at once.")
    assert len(node.texts("floods_py")) < 5000
    seen = len(node.payloads("healthy_py"))
    await node.until(lambda: len(node.payloads("healthy_py")) > seen)


async def test_services_outlive_the_template_process(node: Any, no_backoff: None) -> None:
    await node.run(HEALTHY)
    status = await node.state("healthy_py", "running")
    os.kill(node.orchestrator.template_pid, signal.SIGKILL)
    seen = len(node.payloads("healthy_py"))
    await node.until(lambda: len(node.payloads("healthy_py")) > seen + 20)
    assert node.status("healthy_py").pid == status.pid

    os.kill(status.pid, signal.SIGKILL)
    await node.until(lambda: node.status("healthy_py").restarts == 1 and node.status("healthy_py").state == "running")
    assert "how is not known" in node.faults()[0]["text"]


async def test_orchestrator_that_is_cancelled_leaves_no_process(paths: Any, node_class: Any) -> None:
    node = node_class(paths)
    running = asyncio.create_task(node.orchestrator.run())
    await node.run(HEALTHY, service("Blocks", 'await self.Debug("blocked")\ntime.sleep(1000)', imports="import time"))
    await node.line("blocked")
    await node.state("healthy_py", "running")
    pids = [status.pid for status in node.orchestrator.statuses()] + [node.orchestrator.template_pid]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
