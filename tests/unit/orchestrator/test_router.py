"""Who gets a message, and who waits for whom."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agent.orchestrator.router import MAILBOX_BYTES, MAILBOX_LIMIT, Port, Router
from agent.runtime import frames
from agent.runtime.frames import (
    Accepted,
    Action,
    Answer,
    Deliver,
    Event,
    Finished,
    Publish,
    Reply,
    Subscribe,
    decode_payload,
    encode_payload,
)

pytestmark = pytest.mark.usefixtures("no_blocking_calls")

_decode = msgspec.msgpack.Decoder(frames.Frame).decode


class Link:
    """Stands in for the connection to a process: keeps what is written."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.congested = False
        self._relieved: list[Any] = []

    def write(self, frame: Any) -> None:
        self.frames.append(frame)

    def write_encoded(self, frame: bytes) -> None:
        self.frames.append(_decode(frame[4:]))

    def when_relieved(self, callback: Any) -> None:
        self._relieved.append(callback)

    def relieve(self) -> None:
        self.congested = False
        for callback in self._relieved:
            callback()

    def of(self, kind: type) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    def payloads(self) -> list[Any]:
        return [decode_payload(frame.payload) for frame in self.frames if isinstance(frame, (Deliver, Event))]


class BuiltInEcho:
    id = "echo"
    actions = frozenset({"say"})

    def __init__(self) -> None:
        self.gate: asyncio.Event | None = None

    async def handle(self, source: str, action: str, payload: Any) -> Any:
        if self.gate is not None:
            await self.gate.wait()
        if payload == "fail":
            raise ValueError("no")
        return [source, payload]


class Node:
    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []
        self.router = Router(lambda service, text: self.warnings.append((service, text)))

    def attach(self, service: str) -> tuple[Port, Link]:
        link = Link()
        return self.router.attach(service, link), link  # type: ignore[arg-type]


@pytest.fixture
def node() -> Node:
    return Node()


def send(
    port: Port, destination: str, payload: Any, *, action: str = "take", request: int = 0, source: str = ""
) -> None:
    port.handlers[Action](Action(source, destination, action, request, encode_payload(payload)))


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def accepted(link: Link) -> int:
    return sum(frame.cost for frame in link.of(Accepted))


async def test_acknowledgements_of_one_turn_leave_together(node):
    sender, link = node.attach("sender_py")
    _, receiving = node.attach("receiver_py")
    for number in range(100):
        send(sender, "receiver", number)
    assert receiving.payloads() == list(range(100))
    assert not link.frames
    await turn()
    assert link.frames == [Accepted("receiver", 100)]


async def test_full_mailbox_holds_its_senders_until_deliveries_finish(node):
    sender, link = node.attach("sender_py")
    receiver, receiving = node.attach("receiver_py")
    for number in range(MAILBOX_LIMIT + 300):
        send(sender, "receiver_py", number)
    await turn()
    assert accepted(link) == MAILBOX_LIMIT
    assert len(receiving.frames) == MAILBOX_LIMIT

    receiver.handlers[Finished](Finished(200))
    await turn()
    assert accepted(link) == MAILBOX_LIMIT + 200
    receiver.handlers[Finished](Finished(MAILBOX_LIMIT))
    await turn()
    assert receiving.payloads() == list(range(MAILBOX_LIMIT + 300))
    assert accepted(link) == MAILBOX_LIMIT + 300


async def test_full_mailbox_holds_up_no_other(node):
    sender, link = node.attach("sender_py")
    node.attach("slow_py")
    _, quick = node.attach("quick_py")
    for number in range(MAILBOX_LIMIT + 1):
        send(sender, "slow", number)
    send(sender, "quick", "through")
    assert quick.payloads() == ["through"]
    await turn()
    assert Accepted("quick", 1) in link.frames


async def test_connection_that_does_not_read_counts_as_a_full_mailbox_for_bytes(node):
    sender, link = node.attach("sender_py")
    _, receiving = node.attach("receiver_py")
    receiving.congested = True
    for _ in range(MAILBOX_BYTES // 100_000 + 10):
        send(sender, "receiver", b"x" * 100_000)
    await turn()
    sent = MAILBOX_BYTES // 100_000 + 10
    assert not receiving.frames
    assert accepted(link) < sent * 98
    receiving.relieve()
    await turn()
    assert len(receiving.frames) == sent
    assert accepted(link) == sent * 98


async def test_messages_wait_for_a_service_that_is_starting_and_outlive_a_crash(node):
    sender, link = node.attach("sender_py")
    mailbox = node.router.open("receiver_py")
    send(sender, "receiver", 1)
    await turn()
    assert accepted(link) == 1
    _, receiving = node.attach("receiver_py")
    assert receiving.payloads() == [1]
    node.router.detach(mailbox)
    send(sender, "receiver", 2)
    _, again = node.attach("receiver_py")
    assert again.payloads() == [2]


async def test_closing_a_mailbox_lets_its_senders_go_and_counts_what_is_dropped(node):
    sender, link = node.attach("sender_py")
    node.router.open("receiver_py")
    for number in range(MAILBOX_LIMIT + 5):
        send(sender, "receiver", number)
    assert node.router.close("receiver_py") == MAILBOX_LIMIT + 5
    await turn()
    assert accepted(link) == MAILBOX_LIMIT + 5


async def test_unknown_service_is_warned_of_once_until_services_change(node):
    sender, link = node.attach("sender_py")
    for _ in range(3):
        send(sender, "nobody", 1)
    text = "No service nobody runs on this node; sender_py called its method take."
    assert node.warnings == [("sender_py", text)]
    await turn()
    assert accepted(link) == 3
    node.attach("other_py")
    send(sender, "nobody", 1)
    assert len(node.warnings) == 2


async def test_sender_cannot_speak_in_another_services_name(node):
    sender, _ = node.attach("sender_py")
    _, receiving = node.attach("receiver_py")
    send(sender, "receiver", 1, source="com")
    assert receiving.frames[0].source == "sender_py"
    assert node.router.adopt(sender, "inner_py")
    send(sender, "receiver", 1, source="inner_py")
    assert receiving.frames[1].source == "inner_py"


async def test_adopted_service_is_reached_through_its_process_and_goes_with_it(node):
    sender, _ = node.attach("sender_py")
    outer, receiving = node.attach("outer_py")
    assert node.router.adopt(outer, "inner_py")
    assert not node.router.adopt(sender, "inner_py")
    assert not node.router.adopt(sender, "outer_py")
    send(sender, "inner", 1)
    assert receiving.frames[0].destination == "inner_py"
    node.router.detach(outer.mailbox)
    send(sender, "inner", 1)
    assert node.warnings


async def test_answer_finds_its_way_back_and_a_second_one_is_ignored(node):
    sender, link = node.attach("sender_py")
    receiver, receiving = node.attach("receiver_py")
    send(sender, "receiver", 1, request=7)
    delivery = receiving.frames[0].delivery
    assert delivery > 0
    for _ in range(2):
        receiver.handlers[Reply](Reply(delivery, "", encode_payload("pong")))
    (answer,) = link.of(Answer)
    assert (answer.request, answer.error, decode_payload(answer.payload)) == (7, "", "pong")


async def test_request_to_a_service_that_ends_is_failed(node):
    sender, link = node.attach("sender_py")
    receiver, _ = node.attach("receiver_py")
    send(sender, "receiver", 1, request=7)
    node.router.detach(receiver.mailbox)
    (answer,) = link.of(Answer)
    assert (answer.request, answer.error) == (7, "failed")


async def test_broadcast_goes_to_everybody_and_is_accepted_when_all_have_room(node):
    sender, link = node.attach("sender_py")
    full, _ = node.attach("full_py")
    _, other = node.attach("other_py")
    for number in range(MAILBOX_LIMIT):
        send(sender, "full", number)
    await turn()
    send(sender, "*", "all")
    await turn()
    assert other.payloads() == ["all"]
    assert not [frame for frame in link.of(Accepted) if frame.destination == "*"]
    full.handlers[Finished](Finished(1))
    await turn()
    assert Accepted("*", 1) in link.frames
    assert link.payloads() == ["all"]


async def test_events_go_to_subscribers_only_once_each(node):
    publisher, link = node.attach("publisher_py")
    listener, listening = node.attach("listener_py")
    _, deaf = node.attach("deaf_py")
    for topic_filter in ("room/#", "room/+/light", "room/#"):
        listener.handlers[Subscribe](Subscribe(topic_filter))
    publisher.handlers[Publish](Publish("", "room/kitchen/light", encode_payload(True)))
    publisher.handlers[Publish](Publish("", "garden", encode_payload(True)))
    await turn()
    assert [(event.source, event.topic) for event in listening.of(Event)] == [("publisher_py", "room/kitchen/light")]
    assert not deaf.frames
    assert accepted(link) == 2


async def test_built_in_services_answer_fail_and_are_named_when_they_cannot(node):
    node.router.add_built_in(BuiltInEcho())
    sender, link = node.attach("sender_py")
    send(sender, "Echo", "hi", action="say", request=1)
    send(sender, "echo", "fail", action="say", request=2)
    send(sender, "echo", "x", action="other", request=3)
    send(sender, "echo", "fail", action="say")
    for _ in range(5):
        await turn()
    answers = {answer.request: (answer.error, decode_payload(answer.payload)) for answer in link.of(Answer)}
    assert answers == {
        1: ("", ["sender_py", "hi"]),
        2: ("failed", "ValueError: no"),
        3: ("unknown", "echo has no action other, which sender_py called"),
    }
    assert node.warnings == [("sender_py", "echo could not say: no")]
    assert accepted(link) == 4


async def test_built_in_service_that_hangs_takes_so_many_and_no_more(node):
    echo = BuiltInEcho()
    echo.gate = asyncio.Event()
    node.router.add_built_in(echo)
    sender, link = node.attach("sender_py")
    for number in range(MAILBOX_LIMIT + 10):
        send(sender, "echo", number, action="say", request=number + 1)
    await turn()
    assert accepted(link) == MAILBOX_LIMIT
    echo.gate.set()
    for _ in range(10):
        await turn()
    assert accepted(link) == MAILBOX_LIMIT + 10
    assert [decode_payload(answer.payload)[1] for answer in link.of(Answer)] == list(range(MAILBOX_LIMIT + 10))


async def test_agent_waits_for_no_service(node):
    node.attach("full_py")
    _, other = node.attach("other_py")
    for number in range(MAILBOX_LIMIT + 5):
        node.router.offer("com", "full", "StateUpdate", number)
    assert node.warnings == [
        (
            "full",
            "full has 1000 messages that it has not finished; StateUpdate of com did not reach it.",
        )
    ]
    node.router.offer("com", "*", "StateUpdate", "all")
    assert other.payloads() == ["all"]
    assert other.frames[0].delivery == frames.BROADCAST
