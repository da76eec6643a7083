"""Messages between services in processes of their own."""

from __future__ import annotations

import asyncio
import textwrap
from typing import Any

import pytest

RECEIVER = """
    from base_service import CustomService

    class Receiver(CustomService):
        async def Start(self):
            self.seen = []

        async def take(self, args):
            self.seen.append(args.message[0])

        async def take_large(self, args):
            self.seen.append([args.message[0][0], len(args.message[0])])

        async def seen_so_far(self, args):
            return self.seen

        async def describe(self, args):
            await self.Debug([args.source, args.destination, args.action, type(args.message).__name__, args.message[0]])

        async def Process(self, args):
            await self.Debug(f"processed {args.message[0]}")

        def plain(self, args):
            return args.message[0] * 2

        async def fails(self, args):
            raise ValueError("not today")

        async def returns_a_set(self, args):
            return object()
    """


def sender(body: str) -> str:
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 12)
    return (
        "import asyncio, datetime, threading\nfrom queue_message import QueueMessage\n"
        "from base_service import CustomService, ServiceError\n\n"
        "class Sender(CustomService):\n    async def Start(self):\n        try:\n"
        f"{lines}\n            await self.Debug('sent')\n"
        "        except Exception as error:\n"
        "            await self.Debug(f'{type(error).__name__}: {error}')\n"
    )


async def seen(node: Any) -> list[Any]:
    found: list[Any] = await node.orchestrator.request("test", "receiver_py", "seen_so_far", None)
    return found


async def until_seen(node: Any, count: int) -> list[Any]:
    async with asyncio.timeout(20):
        while len(found := await seen(node)) < count:
            pass
    return found


@pytest.mark.parametrize("destination", ["receiver_py", "receiver", "Receiver_py", "RECEIVER", "ReceivER"])
async def test_destination_is_matched_in_any_case_with_or_without_its_ending(node: Any, destination: str) -> None:
    await node.run(RECEIVER, sender(f'await self.SubmitAction("{destination}", "describe", {{"id": 42}})'))
    await node.line("['sender_py', 'receiver_py', 'describe', 'tuple', {'id': 42}]")


async def test_messages_of_one_sender_arrive_in_order_and_complete(node: Any) -> None:
    await node.run(
        RECEIVER,
        sender('for number in range(5000): await self.SubmitAction("receiver_py", "take", number)'),
    )
    await node.line("sent")
    assert await until_seen(node, 5000) == list(range(5000))


async def test_message_put_on_the_queue_by_hand_needs_no_await_and_keeps_its_place(node: Any) -> None:
    await node.run(
        RECEIVER,
        sender(
            """
            self.queue.put(QueueMessage(self.id, "receiver_py", "take", 1))
            await self.queue.put(QueueMessage(self.id, "receiver_py", "take", 2))
            self.queue.put(QueueMessage(self.id, "receiver_py", "take", 3))
            await self.SubmitAction("receiver_py", "take", 4)
            """
        ),
    )
    assert await until_seen(node, 4) == [1, 2, 3, 4]


async def test_field_code_that_writes_to_the_built_in_services_by_hand_is_understood(node: Any) -> None:
    await node.run(
        sender(
            """
            await self.SubmitAction("logger", "_debug", "by hand")
            await self.SubmitAction("logger", "_warning", "careful")
            await self.SubmitAction("logger", "_error", {"fault_code": "7", "message": "bad"})
            await self.SubmitAction("com", "_sendEvent", {"celsius": 21})
            """
        )
    )
    await node.line("by hand", level="debug")
    await node.line("careful", level="warning")
    await node.line("bad (7)", level="error")
    await node.line("sent")
    assert node.payloads() == [{"celsius": 21}]
    assert node.faults()[0]["code"] == "7"


async def test_payload_that_cannot_be_sent_raises_at_the_call_and_names_its_type(node: Any) -> None:
    await node.run(RECEIVER, sender('await self.SubmitAction("receiver_py", "take", self.Start)'))
    await node.line("TypeError: A method cannot be sent to another service")


async def test_payload_that_is_too_large_raises_and_says_how_large(node: Any) -> None:
    await node.run(RECEIVER, sender('await self.SubmitAction("receiver_py", "take", "x" * 2_000_000)'))
    await node.line("ValueError: A message of 2000005 bytes is too large for another service; 1048576 is the most.")


async def test_large_payloads_pass_whole(node: Any) -> None:
    await node.run(
        RECEIVER,
        sender('for number in range(20): await self.SubmitAction("receiver_py", "take_large", [number] * 200_000)'),
    )
    found = await until_seen(node, 20)
    assert found == [[number, 200_000] for number in range(20)]


async def test_unknown_service_is_one_warning_that_names_it_and_no_exception(node: Any) -> None:
    await node.run(sender('for _ in range(100): await self.SubmitAction("nobody_py", "take", 1)'))
    await node.line("sent")
    warnings = [line for line in node.lines if line.level == "warning"]
    assert [line.text for line in warnings] == [
        "No service nobody_py runs on this node; sender_py called its method take."
    ]


async def test_unknown_method_is_one_warning_that_names_both(node: Any) -> None:
    await node.run(RECEIVER, sender('for _ in range(100): await self.SubmitAction("receiver_py", "not_there", 1)'))
    await node.line("receiver_py has no method not_there, which sender_py called.", level="warning")
    await seen(node)
    assert sum(line.level == "warning" for line in node.lines) == 1


@pytest.mark.parametrize("action", ["SubmitMessage", "__init__", "GetState", "AddPipPackage"])
async def test_methods_of_the_api_itself_are_no_actions(node: Any, action: str) -> None:
    await node.run(RECEIVER, sender(f'await self.SubmitAction("receiver_py", "{action}", "x")'))
    await node.line(f"receiver_py has no method {action}", level="warning")


async def test_broadcast_reaches_everybody_who_has_the_method(node: Any) -> None:
    await node.run(RECEIVER, sender('await self.SubmitAction("*", "describe", 1)'))
    await node.line("'describe', 'tuple', 1]")
    await node.line("sent")
    assert not [line for line in node.lines if line.level == "warning"]


async def test_message_from_the_agent_reaches_a_service_that_is_still_starting(node: Any) -> None:
    await node.run(RECEIVER)
    await node.orchestrator.send("com", "receiver", "Process", "early")
    await node.line("processed early")


async def test_request_returns_what_the_method_returned(node: Any) -> None:
    await node.run(
        RECEIVER,
        sender(
            """
            answer = await self.Request("receiver", "plain", 21)
            await self.Debug(f"answer {answer}")
            """
        ),
    )
    await node.line("answer 42")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            'self.Request("nobody", "plain", 1)',
            "UnknownServiceError: No service nobody runs on this node; sender_py called its method plain",
        ),
        (
            'self.Request("receiver", "not_there", 1)',
            "UnknownServiceError: receiver_py has no method not_there, which sender_py called",
        ),
        ('self.Request("receiver", "fails", 1)', "RequestFailedError: ValueError: not today"),
        (
            'self.Request("receiver", "returns_a_set", 1)',
            "RequestFailedError: what receiver_py.returns_a_set returned cannot be sent",
        ),
        ('self.Request("slow", "wait", 1, timeout=0.05)', "TimeoutError: slow did not answer wait within 0.05 s."),
    ],
)
async def test_request_that_fails_says_how(node: Any, call: str, text: str) -> None:
    slow = """
        import asyncio
        from base_service import CustomService

        class Slow(CustomService):
            async def wait(self, args):
                await asyncio.Event().wait()
        """
    await node.run(RECEIVER, slow, sender(f"await {call}"))
    await node.line(text)


async def test_request_to_a_service_that_dies_fails_instead_of_hanging(node: Any) -> None:
    dying = """
        import os, signal
        from base_service import CustomService

        class Dying(CustomService):
            async def die(self, args):
                os.kill(os.getpid(), signal.SIGKILL)
        """
    await node.run(dying, sender('await self.Request("dying", "die", None)'))
    await node.line("RequestFailedError: dying_py ended before it answered")


async def test_handlers_that_never_return_hold_up_no_other_message(node: Any) -> None:
    await node.run(
        """
        import asyncio
        from base_service import CustomService

        class Endless(CustomService):
            async def StateUpdate(self, message):
                desired = message.message[0]["desired"]
                while True:
                    await asyncio.sleep(0.01)
                    await self.Debug(f"turn with {desired}")

            async def ping(self, args):
                return "pong"
        """
    )
    await node.orchestrator.broadcast("StateUpdate", {"desired": 1, "reported": {}})
    await node.line("turn with 1")
    await node.orchestrator.broadcast("StateUpdate", {"desired": 2, "reported": {}})
    await node.line("turn with 2")
    assert await node.orchestrator.request("test", "endless", "ping", None) == "pong"


async def test_slow_service_holds_up_only_those_who_write_to_it(node: Any) -> None:
    stuck = """
        import asyncio
        from base_service import CustomService

        class Stuck(CustomService):
            async def Start(self):
                self.gate = asyncio.Event()
                self.count = 0

            async def take(self, args):
                await self.gate.wait()
                self.count += 1

            async def release(self, args):
                self.gate.set()
        """
    flooding = """
        import asyncio
        from base_service import CustomService

        class Flooding(CustomService):
            async def Start(self):
                self.sent = 0
                for self.sent in range(1, 5001):
                    await self.SubmitAction("stuck", "take", self.sent)
                await self.Debug("all sent")

            async def how_many(self, args):
                await self.SubmitMessage({"sent": self.sent})
                return self.sent
        """
    await node.run(stuck, flooding, RECEIVER, sender('await self.SubmitAction("receiver", "take", "through")'))
    assert await until_seen(node, 1) == ["through"]

    # It stands still with its windows full, and can still be asked and submit.
    async with asyncio.timeout(10):
        while (sent := await node.orchestrator.request("test", "flooding", "how_many", None)) < 2000:
            pass
    assert await node.orchestrator.request("test", "flooding", "how_many", None) == sent
    assert sent <= 2001
    assert "all sent" not in node.texts()


async def test_waiting_senders_go_on_when_the_slow_service_is_stopped(node: Any) -> None:
    stuck = """
        import asyncio
        from base_service import CustomService

        class Stuck(CustomService):
            async def take(self, args):
                await asyncio.Event().wait()
        """
    await node.run(
        stuck,
        sender(
            """
            for number in range(5000):
                await self.SubmitAction("stuck", "take", number)
                if number == 1500:
                    await self.Debug("the mailbox is full")
            """
        ),
    )
    await node.line("the mailbox is full")
    await node.orchestrator.stop_service("stuck_py")
    await node.line("sent")
    await node.line("messages that waited for it were dropped: it does not run.")


async def test_events_reach_the_subscribers_of_their_topic(node: Any) -> None:
    listener = """
        from base_service import CustomService

        class Listener(CustomService):
            async def Start(self):
                self.Subscribe("room/+/temperature", self.on_temperature)
                await self.Subscribe("room/#", self.on_room)
                await self.Debug("listening")

            async def on_temperature(self, args):
                await self.Debug(f"temperature {args.source} {args.action} {args.message[0]}")

            def on_room(self, args):
                self.printf(f"room {args.action}")
        """
    await node.run(listener)
    await node.line("listening")
    talker = sender(
        """
        await self.Publish("room/kitchen/temperature", 21.5)
        await self.Publish("room/kitchen/light", True)
        await self.Publish("house/door", True)
        """
    )
    await node.run(node.spec(listener), node.spec(talker))
    await node.line("temperature sender_py room/kitchen/temperature 21.5")
    await node.line("room room/kitchen/light")
    await node.line("sent")
    assert sum(text.startswith("room ") for text in node.texts()) == 2


async def test_calls_from_threads_with_loops_of_their_own_arrive(node: Any) -> None:
    await node.run(
        RECEIVER,
        """
        import asyncio, threading
        from base_service import CustomService
        from queue_message import QueueMessage

        class Pressed(CustomService):
            async def Start(self):
                for number in range(4):
                    threading.Thread(target=self.pressed, args=(number,)).start()

            def pressed(self, number):
                asyncio.run(self.Debug(f"pressed {number}"))
                asyncio.run(self.SubmitMessage({"pressed": number}))
                asyncio.run(self.SubmitAction("receiver", "take", number))
                self.queue.put(QueueMessage(self.id, "receiver", "take", number + 100))
                answer = asyncio.run(self.Request("receiver", "plain", number))
                try:
                    asyncio.run(self.SubmitMessage({1, 2}))
                except ValueError as error:
                    asyncio.run(self.Debug(f"{number} got {answer}, then {error}"))
        """,
    )
    for number in range(4):
        await node.line(
            f"{number} got {number * 2}, then The message cannot be sent as JSON: it contains a builtins.set"
        )
    found = await until_seen(node, 8)
    assert sorted(found) == [0, 1, 2, 3, 100, 101, 102, 103]
    assert sorted(payload["pressed"] for payload in node.payloads()) == [0, 1, 2, 3]


async def test_service_made_by_a_service_runs_under_its_own_id(node: Any) -> None:
    await node.run(
        RECEIVER,
        node.spec(
            """
        from base_service import CustomService

        class Inner(CustomService):
            async def Start(self):
                await self.Debug("inner started")
                await self.SubmitMessage({"from": "inner"})

            async def ping(self, args):
                return f"{self.id} {args.source}"

        class Outer(CustomService):
            async def Start(self):
                await self.StartService(Inner("inner_py", self.queue, self.config))
                await self.Debug(await self.Request("inner", "ping"))
        """,
            name="Outer",
        ),
    )
    await node.line("inner started")
    await node.line("inner_py outer_py")
    await node.until(lambda: node.submissions)
    assert node.submissions[0].service == "inner_py"


async def test_custom_services_can_be_stopped_and_started_by_one_of_them(node: Any) -> None:
    await node.run(
        RECEIVER,
        sender(
            """
            await self.StopCustomServices()
            await self.Debug("stopped the others")
            await self.StartCustomServices()
            """
        ),
    )
    await node.line("stopped the others")
    await node.line("sent")
    await node.state("receiver_py", "running")
    assert any(status.id == "receiver_py" and status.state == "stopped" for status in node.states)
    assert not any(status.id == "sender_py" and status.state == "stopped" for status in node.states)
