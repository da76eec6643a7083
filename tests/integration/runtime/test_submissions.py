"""From `SubmitMessage` into the outbox."""

from __future__ import annotations

import textwrap
from typing import Any

import msgspec
import pytest

from agent.errors import StorageError


def service(body: str) -> str:
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 12)
    return (
        "import asyncio\nfrom base_service import CustomService\n\n"
        "class Meter(CustomService):\n    async def Start(self):\n        try:\n"
        f"{lines}\n            await self.Debug('done')\n"
        "        except Exception as error:\n"
        "            await self.Debug(f'{type(error).__name__}: {error}')\n"
    )


@pytest.mark.parametrize(
    ("message", "payload", "content_type"),
    [
        ("'{\"id\": 42}'", b'{"id": 42}', "application/json"),
        ("'plain text'", b"plain text", "text/plain"),
        ("b'\\x00\\xff'", b"\x00\xff", "application/octet-stream"),
        ("{'id': 42, 'list': [1, None]}", b'{"id": 42, "list": [1, null]}', "application/json"),
        ("21.5", b"21.5", "application/json"),
        ("None", b"null", "application/json"),
    ],
)
async def test_message_is_sent_as_what_it_is(node: Any, message: str, payload: bytes, content_type: str) -> None:
    await node.run(service(f"await self.SubmitMessage({message})"))
    await node.line("done")
    (submission,) = node.submissions
    assert (submission.payload, submission.content_type) == (payload, content_type)
    assert (submission.service, submission.kind, submission.lane) == ("meter_py", "telemetry", "live")


async def test_extras_of_a_message_travel(node: Any) -> None:
    await node.run(service("await self.SubmitMessage({}, priority='bulk', ttl=60, properties={'room': 'kitchen'})"))
    await node.line("done")
    (submission,) = node.submissions
    assert (submission.lane, submission.ttl_seconds, submission.properties) == ("bulk", 60, {"room": "kitchen"})


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("'x' * 262_144", "ValueError: A message of meter_py is too large: 262144 bytes"),
        ("{1, 2}", "ValueError: The message cannot be sent as JSON: it contains a builtins.set."),
        ("float('nan')", "ValueError: The message cannot be sent as JSON"),
        ("{}, priority='urgent'", "ValueError: priority is 'urgent'; it may be 'live' or 'bulk'."),
        ("{}, ttl='soon'", "TypeError: ttl is a str; it is a number of seconds."),
        ("{}, ttl=0", "ValueError: ttl is 0; it is a number of seconds above 0."),
        ("{}, properties={'room': 7}", "TypeError: The property 'room' is not text to text: its value is a int."),
        ("{}, properties={'os-node': 'x'}", "ValueError: The property 'os-node' cannot be used"),
    ],
)
async def test_message_that_cannot_be_sent_is_refused_at_the_call(node: Any, call: str, error: str) -> None:
    await node.run(service(f"await self.SubmitMessage({call})"))
    await node.line(error)
    assert not node.submissions


async def test_submit_returns_only_when_the_outbox_has_committed(node: Any) -> None:
    node.hold_back = True
    await node.run(service("await self.Debug('before')\nawait self.SubmitMessage({})"))
    await node.line("before")
    await node.until(lambda: node.held_back)
    assert "done" not in node.texts()
    node.held_back.pop()()
    await node.line("done")


async def test_many_submitters_at_once_share_commits_and_keep_their_order(node: Any) -> None:
    await node.run(
        service("await asyncio.gather(*(self.SubmitMessage({'number': number}) for number in range(10_000)))")
    )
    await node.line("done")
    assert node.payloads() == [{"number": number} for number in range(10_000)]


async def test_refused_submission_raises_with_the_outboxs_reason(node: Any) -> None:
    node.refusal = StorageError("The disk is full.")
    await node.run(service("await self.SubmitMessage({})"))
    await node.line("SubmissionRefusedError: The disk is full.")


async def test_thrown_errors_are_red_and_durable(node: Any) -> None:
    await node.run(
        service(
            """
            await self.ThrowError("Unable to read GPIO", "666", "Some internal error description")
            await self.ThrowError({"message": "as a dict", "fault_code": 5})
            await self.ThrowError("reserved", 90000)
            """
        )
    )
    await node.line("ValueError: Fault code 90000 is reserved")
    await node.line("Unable to read GPIO (666)", level="error")
    assert node.faults() == [
        {"code": "666", "text": "Unable to read GPIO", "description": "Some internal error description"},
        {"code": "5", "text": "as a dict", "description": None},
    ]


async def test_tracking_records_are_kept_only_while_tracking_is_on(node: Any) -> None:
    await node.run(
        """
        from base_service import CustomService

        class Tracker(CustomService):
            async def Start(self):
                await self.track(None)

            async def track(self, args):
                await self.Track({"order": 7}, "packed")
                await self.Debug("tracked")
        """
    )
    await node.line("tracked")
    assert not node.submissions
    node.settings = {"enableTracking": True}
    await node.orchestrator.send("test", "tracker", "track", None)
    await node.until(lambda: node.submissions)
    assert msgspec.json.decode(node.submissions[0].payload) == {"order": 7, "description": "packed"}
    assert node.submissions[0].kind == "tracking"


async def test_stop_hands_over_what_is_on_its_way(node: Any) -> None:
    await node.run(
        """
        import asyncio
        from base_service import CustomService

        class Last(CustomService):
            async def Start(self):
                await self.Debug("up")

            async def Stop(self):
                for number in range(100):
                    asyncio.create_task(self.SubmitMessage({"number": number}))
                await asyncio.sleep(0)
        """
    )
    await node.line("up")
    await node.run()
    assert node.payloads() == [{"number": number} for number in range(100)]
