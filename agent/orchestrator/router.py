"""One queue with a mailbox for each service: who gets a message, and who waits for whom.

A message goes straight from the sender's connection to the receiver's. Where the receiver has a thousand messages that
it has not finished, further ones queue, and their senders' windows are not opened again until there is room: a slow
service holds up those who write to it and nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from agent.orchestrator.model import BuiltIn
from agent.runtime.frames import (
    BROADCAST,
    Accepted,
    Action,
    Answer,
    Deliver,
    ErrorCode,
    Event,
    Finished,
    FrameLink,
    Publish,
    Reply,
    Subscribe,
    decode_payload,
    encode_frame,
    encode_payload,
    window_cost,
)
from services.sdk.errors import RequestFailedError, UnknownServiceError
from services.sdk.topics import topic_matches

MAILBOX_LIMIT = 1000
"""Unfinished deliveries of one service; beyond, senders wait."""
MAILBOX_BYTES = 4 * 1024 * 1024
"""The same for what waits in the agent for one service."""
EVERYBODY = "*"
_ROUTES_LIMIT = 4096
_WARNED_LIMIT = 1000

Warn = Callable[[str, str], None]
"""`warn(service, text)`: a warning in a service's name."""


class Sender(Protocol):
    """Where a message came from."""

    def accept(self, destination: str, cost: int) -> None:
        """One of its messages to `destination` has found its place."""

    def answer(self, request: int, error: ErrorCode | None, payload: msgspec.Raw) -> None:
        """Its request has been dealt with."""


class Port:
    """A service's process, as the router sees it: it sends, and it takes what is for its mailbox. On the loop only."""

    def __init__(self, router: Router, mailbox: Mailbox, link: FrameLink) -> None:
        self.mailbox = mailbox
        self.hosted = {mailbox.service}
        self._router = router
        self._routes = router.routes
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._accepted: dict[str, int] = {}
        self.handlers: dict[type, Callable[[Any], None]] = {
            Action: self._action,
            Finished: self._finished,
            Publish: self._publish,
            Reply: mailbox.replied,
            Subscribe: self._subscribe,
        }
        """What to call with each frame of the process that is for the router."""

    def accept(self, destination: str, cost: int) -> None:
        """Count; the counts of one turn of the loop leave together."""
        accepted = self._accepted
        if not accepted:
            self._loop.call_soon(self._tell)
        accepted[destination] = accepted.get(destination, 0) + cost

    def answer(self, request: int, error: ErrorCode | None, payload: msgspec.Raw) -> None:
        """Pass the answer on."""
        self._link.write(Answer(request, error or "", payload))

    def _action(self, frame: Action) -> None:
        route = self._routes.get(frame.destination)
        source = frame.source
        source = source if source in self.hosted else self.mailbox.service
        if route is None or frame.request:
            self._router.route(frame, source, self)
            return
        # The way of nearly every message, kept short.
        mailbox, service = route
        payload = frame.payload
        mailbox.put(
            Deliver(source, service, frame.action, 0, payload), self, frame.destination, 1 + (len(payload) >> 10)
        )

    def _publish(self, frame: Publish) -> None:
        self._router.publish(frame, frame.source if frame.source in self.hosted else self.mailbox.service, self)

    def _finished(self, frame: Finished) -> None:
        self.mailbox.finished(frame.count)

    def _subscribe(self, frame: Subscribe) -> None:
        self._router.subscribe(self.mailbox, frame.topic_filter)

    def _tell(self) -> None:
        accepted, self._accepted = self._accepted, {}
        for destination, cost in accepted.items():
            self._link.write(Accepted(destination, cost))


class AgentSender:
    """The agent itself as a sender of one message; `accepted` and `answered` are its outcome."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.answered: asyncio.Future[Any] = loop.create_future()

    def accept(self, destination: str, cost: int) -> None:
        """The message has its place."""
        if not self.accepted.done():
            self.accepted.set_result(None)

    def answer(self, request: int, error: ErrorCode | None, payload: msgspec.Raw) -> None:
        """The answer is there."""
        if self.answered.done():
            return
        content = decode_payload(payload)
        if error is None:
            self.answered.set_result(content)
        else:
            failure = UnknownServiceError if error == "unknown" else RequestFailedError
            self.answered.set_exception(failure(content))


class _Countdown:
    """The sender of a message to several: accepted when all have it."""

    def __init__(self, sender: Sender, count: int) -> None:
        self._sender = sender
        self._left = count

    def accept(self, destination: str, cost: int) -> None:
        self._left -= 1
        if self._left == 0:
            self._sender.accept(destination, cost)

    def answer(self, request: int, error: ErrorCode | None, payload: msgspec.Raw) -> None:
        """Not reached: what goes to several asks for no answer."""


class Mailbox:
    """What is on its way to one service, whether its process runs at the moment or not. On the loop only."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._link: FrameLink | None = None
        self._unfinished = 0
        self._queue: deque[tuple[bytes, Sender | None, str, int]] = deque()
        self._queued_bytes = 0
        self._expected: dict[int, tuple[Sender, int]] = {}
        self._last_delivery = 0
        self._drain_due = False

    # --- In ---

    def put(self, frame: Deliver | Event, sender: Sender, destination: str, cost: int) -> None:
        """Deliver, or queue; the sender is told when the message has its place."""
        link = self._link
        if link is not None and not self._queue and self._unfinished < MAILBOX_LIMIT and not link.congested:
            self._unfinished += 1
            link.write(frame)
            sender.accept(destination, cost)
        else:
            self.put_encoded(encode_frame(frame), sender, destination, cost)

    def put_encoded(self, frame: bytes, sender: Sender, destination: str, cost: int) -> None:
        """As `put`, for a frame that goes to several."""
        if self.full:
            self._queue.append((frame, sender, destination, cost))
        else:
            self._queue.append((frame, None, destination, cost))
            sender.accept(destination, cost)
        self._queued_bytes += len(frame)
        self._drain()

    def expect(self, sender: Sender, request: int) -> int:
        """Note that the sender wants an answer under `request`; returns the delivery's number."""
        self._last_delivery += 1
        self._expected[self._last_delivery] = (sender, request)
        return self._last_delivery

    @property
    def full(self) -> bool:
        """Whether senders wait."""
        return self._unfinished + len(self._queue) >= MAILBOX_LIMIT or self._queued_bytes >= MAILBOX_BYTES

    # --- Out ---

    def attach(self, link: FrameLink) -> None:
        """The service's process is ready: it gets what has gathered."""
        self._link = link
        self._unfinished = 0
        self._drain()

    def detach(self) -> None:
        """The process has ended. Requests to it fail; messages that it did not get wait for the next one."""
        self._link = None
        self._unfinished = 0
        expected, self._expected = self._expected, {}
        text = encode_payload(f"{self.service} ended before it answered")
        for sender, request in expected.values():
            sender.answer(request, "failed", text)

    def clear(self) -> int:
        """Drop what waits, because nobody is to run; returns how many messages that were."""
        queue, self._queue = self._queue, deque()
        self._queued_bytes = 0
        for _, sender, destination, cost in queue:
            if sender is not None:
                sender.accept(destination, cost)
        return len(queue)

    def finished(self, count: int) -> None:
        """The process is done with so many."""
        self._unfinished = max(0, self._unfinished - count)
        if self._queue:
            self._drain()

    def replied(self, frame: Reply) -> None:
        """The process answers a request."""
        expected = self._expected.pop(frame.delivery, None)
        if expected is not None:
            sender, request = expected
            error: ErrorCode | None = "unknown" if frame.error == "unknown" else "failed" if frame.error else None
            sender.answer(request, error, frame.payload)

    def _drain(self) -> None:
        link, queue = self._link, self._queue
        while link is not None and queue and self._unfinished < MAILBOX_LIMIT:
            if link.congested:
                if not self._drain_due:
                    self._drain_due = True
                    link.when_relieved(self._relieved)
                return
            frame, sender, destination, cost = queue.popleft()
            self._queued_bytes -= len(frame)
            self._unfinished += 1
            link.write_encoded(frame)
            if sender is not None:
                sender.accept(destination, cost)

    def _relieved(self) -> None:
        self._drain_due = False
        self._drain()


class BuiltInMailbox:
    """Messages for a built-in service: each is a task in the agent's loop, so many at once and no more."""

    def __init__(self, built_in: BuiltIn, warn: Warn) -> None:
        self.service = built_in.id
        self._built_in = built_in
        self._warn = warn
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: deque[tuple[Action, str, Sender, int]] = deque()

    def put(self, frame: Action, source: str, sender: Sender, cost: int) -> None:
        """Handle now, or when an earlier one is done."""
        if frame.action not in self._built_in.actions:
            text = f"{self.service} has no action {frame.action}, which {source} called"
            if frame.request:
                sender.answer(frame.request, "unknown", encode_payload(text))
            else:
                self._warn(source, f"{text}.")
            sender.accept(frame.destination, cost)
        elif len(self._tasks) < MAILBOX_LIMIT:
            self._start(frame, decode_payload(frame.payload), source, sender, cost)
        else:
            # The payload is a view of a buffer that is used again.
            kept = msgspec.structs.replace(frame, payload=msgspec.Raw(bytes(frame.payload)))
            self._queue.append((kept, source, sender, cost))

    def _start(self, frame: Action, payload: Any, source: str, sender: Sender, cost: int) -> None:
        task = asyncio.get_running_loop().create_task(
            self._handle(frame.action, frame.request, payload, source, sender)
        )
        self._tasks.add(task)
        task.add_done_callback(self._done)
        sender.accept(frame.destination, cost)

    async def _handle(self, action: str, request: int, payload: Any, source: str, sender: Sender) -> None:
        error: ErrorCode | None = None
        try:
            answer = encode_payload(await self._built_in.handle(source, action, payload))
        except Exception as failure:  # noqa: BLE001 - a message's boundary: what a service sent must not end the agent
            error, answer = "failed", encode_payload(f"{type(failure).__name__}: {failure}")
            if not request:
                self._warn(source, f"{self.service} could not {action}: {failure}")
        if request:
            sender.answer(request, error, answer)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._queue:
            frame, source, sender, cost = self._queue.popleft()
            self._start(frame, decode_payload(frame.payload), source, sender, cost)


class Router:
    """Finds who a message is for. On the loop only.

    Args:
        warn: shows a warning in a service's name.
    """

    def __init__(self, warn: Warn) -> None:
        self._warn_all = warn
        self._mailboxes: dict[str, Mailbox] = {}
        self._ids: dict[str, str] = {}
        """Other services in a mailbox's process: id → the mailbox's id."""
        self._built_ins: dict[str, BuiltInMailbox] = {}
        self._built_in_actions: dict[str, frozenset[str]] = {}
        self.routes: dict[str, tuple[Mailbox, str]] = {}
        """Destinations as senders write them, once found."""
        self._subscriptions: dict[Mailbox, list[str]] = {}
        self._topics: dict[str, list[Mailbox]] = {}
        self._warned: set[tuple[str, str]] = set()

    # --- Who there is ---

    def add_built_in(self, built_in: BuiltIn) -> None:
        """Make a built-in service reachable."""
        self._built_ins[built_in.id] = BuiltInMailbox(built_in, self._warn)
        self._built_in_actions[built_in.id] = built_in.actions

    def open(self, service: str) -> Mailbox:
        """The mailbox of a service that runs or is about to."""
        mailbox = self._mailboxes.get(service)
        if mailbox is None:
            mailbox = self._mailboxes[service] = Mailbox(service)
            self._forget_routes()
        return mailbox

    def close(self, service: str) -> int:
        """The service does not run any more; returns how many messages that waited for it are dropped."""
        mailbox = self._mailboxes.pop(service, None)
        self._forget_routes()
        if mailbox is None:
            return 0
        self.detach(mailbox)
        return mailbox.clear()

    def attach(self, service: str, link: FrameLink) -> Port:
        """The service's process is ready."""
        mailbox = self.open(service)
        port = Port(self, mailbox, link)
        mailbox.attach(link)
        return port

    def detach(self, mailbox: Mailbox) -> None:
        """The service's process has ended, its subscriptions and the services it hosted with it."""
        mailbox.detach()
        self._subscriptions.pop(mailbox, None)
        self._topics.clear()
        for service in [service for service, owner in self._ids.items() if owner == mailbox.service]:
            del self._ids[service]
            self._forget_routes()

    def adopt(self, port: Port, service: str) -> bool:
        """Route `service` to the port's process too; False when there is one of that id."""
        if service in self._mailboxes or service in self._built_ins or service in self._ids:
            return False
        self._ids[service] = port.mailbox.service
        port.hosted.add(service)
        self._forget_routes()
        return True

    def subscribe(self, mailbox: Mailbox, topic_filter: str) -> None:
        """The mailbox's process wants events."""
        filters = self._subscriptions.setdefault(mailbox, [])
        if topic_filter not in filters:
            filters.append(topic_filter)
            self._topics.clear()

    # --- Messages ---

    def route(self, frame: Action, source: str, sender: Sender) -> None:
        """Bring a message to its mailbox. No such service: a warning that names it, or a failed request."""
        destination = frame.destination
        route = self.routes.get(destination) or self._find(destination)
        cost = window_cost(frame.payload)
        if route is not None:
            mailbox, service = route
            delivery = mailbox.expect(sender, frame.request) if frame.request else 0
            mailbox.put(Deliver(source, service, frame.action, delivery, frame.payload), sender, destination, cost)
        elif destination == EVERYBODY:
            self._broadcast(frame, source, sender, cost)
        elif (built_in := self._built_ins.get(destination.lower())) is not None:
            built_in.put(frame, source, sender, cost)
        else:
            text = f"No service {destination} runs on this node; {source} called its method {frame.action}"
            if frame.request:
                sender.answer(frame.request, "unknown", encode_payload(text))
            else:
                self._warn(source, f"{text}.")
            sender.accept(destination, cost)

    def offer(self, source: str, destination: str, action: str, message: Any) -> None:
        """Bring a message of the agent itself to its mailboxes, if there is room: the agent waits for no service.

        Raises TypeError or ValueError for a message that cannot be sent.
        """
        frame = Action(source, destination, action, 0, encode_payload(message))
        if destination == EVERYBODY:
            for service in [*self._mailboxes, *self._ids]:
                self._offer(Action(source, service, action, BROADCAST, frame.payload))
        else:
            self._offer(frame)

    def _offer(self, frame: Action) -> None:
        route = self._find(frame.destination)
        if route is None:
            self.route(frame, frame.source, AgentSender())
        elif route[0].full:
            self._warn(
                frame.destination,
                f"{frame.destination} has {MAILBOX_LIMIT} messages that it has not finished; {frame.action} of "
                f"{frame.source} did not reach it.",
            )
        else:
            mailbox, service = route
            deliver = Deliver(frame.source, service, frame.action, min(frame.request, 0), frame.payload)
            mailbox.put(deliver, AgentSender(), frame.destination, 0)

    def publish(self, frame: Publish, source: str, sender: Sender) -> None:
        """Bring an event to every mailbox with a subscription for its topic."""
        topic = frame.topic
        wanted = self._topics.get(topic)
        if wanted is None:
            wanted = [
                mailbox
                for mailbox, filters in self._subscriptions.items()
                if any(topic_matches(topic_filter, topic) for topic_filter in filters)
            ]
            if len(self._topics) >= _ROUTES_LIMIT:
                self._topics.clear()
            self._topics[topic] = wanted
        cost = window_cost(frame.payload)
        if not wanted:
            sender.accept("", cost)
            return
        encoded = encode_frame(Event(source, topic, frame.payload))
        countdown = _Countdown(sender, len(wanted))
        for mailbox in wanted:
            mailbox.put_encoded(encoded, countdown, "", cost)

    def _broadcast(self, frame: Action, source: str, sender: Sender, cost: int) -> None:
        built_ins = [
            self._built_ins[name] for name, actions in self._built_in_actions.items() if frame.action in actions
        ]
        targets = [(mailbox, mailbox.service) for mailbox in self._mailboxes.values()]
        targets += [(self._mailboxes[owner], service) for service, owner in self._ids.items()]
        if not targets and not built_ins:
            sender.accept(EVERYBODY, cost)
            return
        countdown = _Countdown(sender, len(targets) + len(built_ins))
        for mailbox, service in targets:
            mailbox.put(Deliver(source, service, frame.action, BROADCAST, frame.payload), countdown, EVERYBODY, cost)
        for built_in in built_ins:
            built_in.put(msgspec.structs.replace(frame, request=0), source, countdown, cost)

    def _find(self, destination: str) -> tuple[Mailbox, str] | None:
        name = destination.lower()
        for candidate in (name, f"{name}_py"):
            mailbox = self._mailboxes.get(candidate) or self._mailboxes.get(self._ids.get(candidate, ""))
            if mailbox is not None:
                if len(self.routes) >= _ROUTES_LIMIT:
                    self.routes.clear()
                self.routes[destination] = (mailbox, candidate)
                return mailbox, candidate
        return None

    def _forget_routes(self) -> None:
        self.routes.clear()
        self._warned.clear()

    def _warn(self, source: str, text: str) -> None:
        """Once for each text, until services come or go: field code repeats itself many times a second."""
        if (source, text) not in self._warned and len(self._warned) < _WARNED_LIMIT:
            self._warned.add((source, text))
            self._warn_all(source, text)
