"""What the node tells its portal fits into the hub's records, however much there is to tell."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.errors import HubUnreachableError
from agent.hub.enrolment import enroll
from agent.hub.fake import FakeHub
from agent.hub.reporter import Reporter
from agent.hub.session import HubSession
from agent.orchestrator.model import ServiceStatus
from agent.outbox.message import Submission
from agent.outbox.store import Outbox
from agent.paths import Paths
from agent.settings import SignIn


class Services:
    """Has statuses, as the orchestrator does."""

    def __init__(self, statuses: list[ServiceStatus]) -> None:
        self.statuses = lambda: statuses


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub() as hub:
        yield hub


@pytest.fixture
async def outbox() -> AsyncIterator[Outbox]:
    outbox = await Outbox.open(None, node="pi", clock=SystemClock())
    yield outbox
    await outbox.close()


@pytest.fixture
async def session(hub: FakeHub, tmp_path: Path) -> AsyncIterator[HubSession]:
    identity = await enroll(Paths(state=tmp_path, runtime=tmp_path), hub.url, code="GOOD-CODE", name="pi")

    async def take(_: SignIn) -> None:
        pass

    session = HubSession(identity, clock=SystemClock(), on_signed_in=take)
    task = asyncio.create_task(session.run())
    async with asyncio.timeout(10):
        await session.connected.wait()
    yield session
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def told(hub: FakeHub, target: str) -> list[dict[str, Any]]:
    return [record for call in hub.calls if call.target == target for record in call.arguments[0]]


async def test_a_batch_of_long_faults_arrives_whole_in_records_that_the_hub_takes(
    hub: FakeHub, session: HubSession, outbox: Outbox, tmp_path: Path
) -> None:
    reporter = Reporter(session, outbox, state=tmp_path, clock=SystemClock())
    feed = outbox.feed("portal", frozenset({"fault"}))
    # Control characters take six characters each in JSON.
    payload = b'{"text": "%s", "description": "%s"}' % (b"\\u0001" * 20_000, b"x" * 20_000)
    await outbox.submit_many([Submission(service="a_py", payload=payload, kind="fault")] * 50)
    delivered = 0
    while delivered < 50:
        batch = await feed.take(50)
        await reporter.deliver_faults(batch)
        await feed.acknowledge([message.id for message in batch])
        delivered += len(batch)
    await hub.called("faults", where=lambda call: call.arguments[0][-1]["sequence"] == 50)
    assert hub.sign_ins == 1, "the connection was not closed"
    assert [record["sequence"] for record in told(hub, "faults")] == list(range(1, 51))


async def test_long_faults_of_many_services_are_cut_until_their_states_fit(
    hub: FakeHub, session: HubSession, outbox: Outbox, tmp_path: Path
) -> None:
    statuses = [ServiceStatus(f"s{n}_py", "1.0", "failed", fault="\u0001" * 100_000) for n in range(1000)]
    reporter = Reporter(session, outbox, state=tmp_path, clock=SystemClock())
    reporter.connect(Services(statuses))  # type: ignore[arg-type]
    task = asyncio.create_task(reporter.run())
    reporter.service_state(statuses[0])
    await hub.called("serviceStates")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert hub.sign_ins == 1
    assert len(told(hub, "serviceStates")) == 1000
    assert all(record["fault"] for record in told(hub, "serviceStates"))


async def test_faults_wait_while_the_node_is_not_signed_in(outbox: Outbox, hub: FakeHub, tmp_path: Path) -> None:
    identity = await enroll(Paths(state=tmp_path, runtime=tmp_path), hub.url, code="GOOD-CODE", name="pi")

    async def take(_: SignIn) -> None:
        pass

    session = HubSession(identity, clock=SystemClock(), on_signed_in=take)
    reporter = Reporter(session, outbox, state=tmp_path, clock=SystemClock())
    feed = outbox.feed("portal", frozenset({"fault"}))
    await outbox.submit(Submission(service="a_py", payload=b"{}", kind="fault"))
    with pytest.raises(HubUnreachableError):
        await reporter.deliver_faults(await feed.take(1))
