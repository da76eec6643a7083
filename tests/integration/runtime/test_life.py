"""A service's life in its own process."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from agent.runtime import host

SAMPLE = (Path(__file__).parents[2] / "samples" / "YOUR_SERVICE_NAME.py").read_text("utf-8")


async def test_sample_service_of_the_authors_guide_starts_and_stops_unmodified(node: Any) -> None:
    await node.run(SAMPLE)
    started = await node.line("Started")
    assert (started.service, started.level) == ("your_service_name_py", "debug")
    status = await node.state("your_service_name_py", "running")
    assert status.pid not in (None, os.getpid())

    await node.run()

    assert "Stopped" in node.texts()
    assert node.orchestrator.statuses() == []
    assert not node.faults()


async def test_submitted_messages_reach_the_outbox_in_order(node: Any) -> None:
    await node.run(
        """
        from base_service import CustomService
        import json

        class Meter(CustomService):
            async def Start(self):
                for number in range(500):
                    await self.SubmitMessage(json.dumps({"number": number}))
                await self.Debug("done")
        """
    )
    await node.line("done")
    assert node.payloads("meter_py") == [{"number": number} for number in range(500)]
    assert {one.producer_sequence for one in node.submissions} == set(range(1, 501))


async def test_constructor_may_use_the_api_before_the_base_class_and_the_running_loop(node: Any) -> None:
    await node.run(
        """
        import asyncio
        from base_service import CustomService

        class Early(CustomService):
            def __init__(self, id, queue, config):
                self.printf("printed early")
                self.decoder = self.AddPipPackage("json", "json", "JSONDecoder")
                self.loop = asyncio.get_event_loop()
                super().__init__(id, queue, config)

            async def Start(self):
                assert self.loop.is_running()
                await self.Debug(f"{self.id} {self.decoder.__name__}")
        """
    )
    await node.line("early_py JSONDecoder", level="debug")
    assert (await node.line("printed early")).level == "info"


async def test_older_service_with_two_arguments_has_its_configuration(node: Any) -> None:
    await node.run(
        node.spec(
            """
            from base_service import CustomService

            class Older(CustomService):
                def __init__(self, id, queue):
                    super().__init__(id, queue)
                    self.pin = self.GetPropertyValue("static", "pin")

                async def Start(self):
                    missing = self.GetPropertyValue("static", "missing")
                    await self.Debug(f"pin {self.pin}, missing {missing}, enabled {self.GetState()}")
            """,
            static={"pin": 17},
        )
    )
    await node.line("pin 17, missing undefined, enabled True")


async def test_settings_are_there_without_a_network_and_follow_a_sign_in(node: Any) -> None:
    await node.run(
        """
        from base_service import CustomService

        class Curious(CustomService):
            async def Start(self):
                settings = self.get_settings()
                settings["nodeName"] = "changed by the service"
                await self.Debug("first " + self.get_settings()["nodeName"])

            async def msb_signed_in(self, args):
                await self.Debug("then " + self.get_settings()["nodeName"])
        """
    )
    await node.line("first shed")
    node.settings = {"nodeName": "barn"}
    await node.orchestrator.broadcast("msb_signed_in", {})
    await node.line("then barn")


async def test_printed_lines_and_logging_carry_the_services_name(node: Any) -> None:
    await node.run(
        """
        import logging, sys
        from base_service import CustomService

        class Chatty(CustomService):
            async def Start(self):
                print("to stdout")
                print("to stderr", file=sys.stderr)
                print("half a surrogate: \\\\ud800".encode().decode("unicode_escape"))
                logging.getLogger("lib").warning("from a library")
        """
    )
    await node.line("from a library")
    assert {"to stdout", "to stderr"} <= set(node.texts("chatty_py"))


async def test_only_the_service_that_changed_restarts(node: Any) -> None:
    source = """
        from base_service import CustomService

        class {name}(CustomService):
            async def Start(self):
                await self.Debug("{text}")
        """
    stays = node.spec(source.format(name="Stays", text="one"))
    changes = node.spec(source.format(name="Changes", text="old"))
    await node.run(stays, changes)
    await node.line("old")
    pids = {(await node.state(service, "running")).pid for service in ("stays_py", "changes_py")}

    await node.run(stays, node.spec(source.format(name="Changes", text="new"), version="0.2"))
    await node.line("new")

    assert (await node.state("stays_py", "running")).pid in pids
    status = await node.state("changes_py", "running")
    assert status.pid not in pids
    assert status.version == "0.2"


async def test_disabled_service_is_shown_and_does_not_run(node: Any) -> None:
    spec = dataclasses.replace(node.spec(SAMPLE), enabled=False)
    await node.run(spec)
    assert node.status(spec.id).state == "stopped"
    assert node.status(spec.id).pid is None


async def test_service_starts_and_stops_by_hand(node: Any) -> None:
    await node.run(SAMPLE)
    await node.line("Started")
    await node.orchestrator.stop_service("your_service_name_py")
    assert node.status("your_service_name_py").state == "stopped"
    await node.orchestrator.start_service("your_service_name_py")
    await node.state("your_service_name_py", "running")
    await node.until(lambda: node.texts().count("Started") == 2)
    with pytest.raises(LookupError, match="nobody_py"):
        await node.orchestrator.start_service("nobody_py")


async def test_endless_start_and_loops_end_with_stop(node: Any) -> None:
    await node.run(
        """
        import asyncio
        from base_service import CustomService

        class Loop(CustomService):
            async def Start(self):
                self.going = True
                while self.going:
                    await self.Debug("turn")
                    await asyncio.sleep(0.01)
                await self.Debug("left the loop")

            async def Stop(self):
                self.going = False
                await asyncio.sleep(0.05)
        """
    )
    await node.line("turn")
    await node.run()
    assert "left the loop" in node.texts()


async def test_stop_that_hangs_is_cancelled_and_reported(node: Any) -> None:
    await node.run(
        """
        import asyncio
        from base_service import CustomService

        class Hangs(CustomService):
            async def Start(self):
                await self.Debug("up")

            async def Stop(self):
                await asyncio.Event().wait()
        """
    )
    await node.line("up")
    await node.orchestrator.stop(0.2)
    assert "Stop did not end within 0.2 s and was cancelled." in node.texts()
    assert node.status("hangs_py").state == "stopped"


async def test_service_that_ignores_everything_is_killed(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "STOP_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(host, "TERMINATE_SECONDS", 0.1)
    await node.run(
        """
        import time
        from base_service import CustomService

        class Deaf(CustomService):
            async def Start(self):
                await self.Debug("up")
                while True:
                    try:
                        time.sleep(1000)
                    except BaseException:
                        pass
        """
    )
    await node.line("up")
    await node.orchestrator.stop(0.1)
    texts = node.texts("deaf_py")
    assert "The process did not end when asked; it is sent SIGTERM." in texts
    assert "The process did not end when asked; it is sent SIGKILL." in texts
    assert node.status("deaf_py").state == "stopped"
    assert not node.faults()


async def test_processes_that_a_service_started_end_with_it(node: Any) -> None:
    await node.run(
        """
        import subprocess, sys
        from base_service import CustomService

        class Parent(CustomService):
            async def Start(self):
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
                await self.Debug(f"child {child.pid}")
        """
    )
    pid = int((await node.line("child ")).text.removeprefix("child "))
    child = os.pidfd_open(pid)
    await node.run()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(child, ended.set)
    async with asyncio.timeout(10):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(child)
    os.close(child)


async def test_each_service_has_its_own_session_folder_and_name(node: Any) -> None:
    await node.run(
        """
        import os
        from base_service import CustomService

        class Where(CustomService):
            async def Start(self):
                await self.Debug([os.getcwd(), os.getsid(0) == os.getpid(), os.environ["OUTSTATION_SERVICE_ID"],
                                  "NOTIFY_SOCKET" in os.environ])
        """
    )
    folder = node.paths.runtime / "services" / "where_py"
    await node.line(f"['{folder}', True, 'where_py', False]")
