"""The store against a model, over restarts, by Hypothesis."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.clock import SystemClock
from agent.outbox.message import Submission
from agent.outbox.store import Outbox

KINDS: dict[str, frozenset[Any]] = {
    "cloud": frozenset({"telemetry"}),
    "broker": frozenset({"telemetry", "tracking"}),
    "portal": frozenset({"fault", "tracking"}),
}
SUBMISSIONS = st.builds(
    Submission,
    service=st.sampled_from(["a_py", "b_py"]),
    payload=st.binary(max_size=20),
    kind=st.sampled_from(["telemetry", "fault", "tracking"]),
    lane=st.sampled_from(["live", "bulk"]),
    properties=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)
Identity = tuple[str, str, int]


class OutboxMachine(RuleBasedStateMachine):
    """Three sinks that take, acknowledge, park and give back; an outbox that is closed and opened at will."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.sequences: dict[tuple[str, str], int] = defaultdict(int)
        self.content: dict[Identity, Submission] = {}
        self.waiting: dict[str, list[Identity]] = {sink: [] for sink in KINDS}
        self.taken: dict[str, dict[int, Identity]] = {sink: {} for sink in KINDS}
        self.producer_sequence = 0
        self.outbox: Outbox
        self.feeds: dict[str, Any]

    @initialize()
    def open(self) -> None:
        async def opening() -> None:
            self.outbox = await Outbox.open(
                Path(self.folder.name) / "outbox.db", node="n", clock=SystemClock(), check_seconds=5
            )
            self.feeds = {sink: self.outbox.feed(sink, kinds) for sink, kinds in KINDS.items()}

        self.runner.run(opening())
        for sink in KINDS:
            # What was taken and not acknowledged is there again.
            self.taken[sink].clear()

    @rule(submissions=st.lists(SUBMISSIONS, min_size=1, max_size=5))
    def submit(self, submissions: list[Submission]) -> None:
        given_out = self.runner.run(self.outbox.submit_many(submissions))
        for submission, sequence in zip(submissions, given_out, strict=True):
            key = (submission.service, submission.kind)
            self.sequences[key] += 1
            assert sequence == self.sequences[key]
            self.content[*key, sequence] = submission
            for sink, kinds in KINDS.items():
                if submission.kind in kinds:
                    self.waiting[sink].append((*key, sequence))

    @rule(repeat=st.booleans())
    def submit_as_a_producer(self, repeat: bool) -> None:
        self.producer_sequence += not (repeat and self.producer_sequence)
        submission = Submission(service="c_py", payload=b"", producer="run", producer_sequence=self.producer_sequence)
        key = ("c_py", "telemetry")
        sequence = self.runner.run(self.outbox.submit(submission))
        if self.producer_sequence > self.sequences[key]:
            self.sequences[key] += 1
            self.content[*key, sequence] = submission
            for sink in ("cloud", "broker"):
                self.waiting[sink].append((*key, sequence))
        else:
            assert sequence == 0

    @rule(sink=st.sampled_from(sorted(KINDS)), limit=st.integers(1, 10))
    def take(self, sink: str, limit: int) -> None:
        free = [identity for identity in self.waiting[sink] if identity not in self.taken[sink].values()]
        if not free:
            return

        async def taking() -> list[Any]:
            async with asyncio.timeout(10):
                return await self.feeds[sink].take(limit)

        got = self.runner.run(taking())
        assert 1 <= len(got) <= limit
        for message in got:
            identity = (message.service, message.kind, message.sequence)
            submission = self.content[identity]
            assert (message.payload, message.properties, message.lane) == (
                submission.payload,
                submission.properties,
                submission.lane,
            )
            # The oldest of its service, kind and lane that this sink may have now.
            assert identity == next(
                other for other in free if other[:2] == identity[:2] and self.content[other].lane == submission.lane
            )
            free.remove(identity)
            self.taken[sink][message.id] = identity

    @precondition(lambda self: any(self.taken.values()))
    @rule(data=st.data(), what=st.sampled_from(["acknowledge", "give back", "park"]))
    def finish(self, data: st.DataObject, what: str) -> None:
        sink = data.draw(st.sampled_from(sorted(sink for sink, taken in self.taken.items() if taken)))
        ids = data.draw(st.lists(st.sampled_from(sorted(self.taken[sink])), min_size=1, unique=True))
        feed = self.feeds[sink]
        if what == "give back":
            feed.give_back(ids)
        elif what == "acknowledge":
            self.runner.run(feed.acknowledge(ids))
        else:
            for message_id in ids:
                self.runner.run(feed.park(message_id, "why"))
        for message_id in ids:
            identity = self.taken[sink].pop(message_id)
            if what != "give back":
                self.waiting[sink].remove(identity)

    @rule()
    def restart(self) -> None:
        self.runner.run(self.outbox.close())
        self.open()

    @invariant()
    def depth_is_what_anybody_waits_for(self) -> None:
        if not hasattr(self, "outbox"):
            return
        self.runner.run(self.outbox.flush())
        expected = {identity for waiting in self.waiting.values() for identity in waiting}
        stats = self.outbox.stats()
        assert stats.depth == len(expected)
        assert (stats.bytes == 0) == (not expected)
        for service in stats.services:
            assert service.submitted == self.sequences[service.service, service.kind]
            done = {sink: service.acknowledged.get(sink, 0) + service.parked.get(sink, 0) for sink in KINDS}
            for sink, kinds in KINDS.items():
                if service.kind in kinds:
                    left = sum(identity[:2] == (service.service, service.kind) for identity in self.waiting[sink])
                    assert done[sink] + left == service.submitted

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.runner.run(self.outbox.close())
        self.runner.close()
        self.folder.cleanup()


TestOutboxAgainstTheModel = OutboxMachine.TestCase
TestOutboxAgainstTheModel.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
