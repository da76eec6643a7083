"""Which sinks' messages are kept: what waits for a hub is not lost by a slip of the portal."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.config import MqttSinkConfig, SinksConfig
from agent.outbox.feed import Feed
from agent.outbox.message import Submission
from agent.outbox.sinks import runner
from agent.outbox.sinks.cloud import CloudEvent
from agent.outbox.sinks.memory import MemorySink
from agent.outbox.sinks.runner import Sinks
from agent.outbox.store import Outbox
from agent.settings import IotHubSettings

HUB = IotHubSettings(connection_string="HostName=hub.example;DeviceId=pi;SharedAccessKey=c2VjcmV0")


class DeadSink(MemorySink):
    """A hub that is not reached."""

    async def run(self, feed: Feed) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemorySink:
    """What stands in for the broker; the hub is never reached."""
    broker = MemorySink("mqtt", kinds=frozenset({"telemetry"}))
    monkeypatch.setattr(runner, "_mqtt_sink", lambda *_: broker)
    monkeypatch.setattr(runner, "AzureSink", lambda *_, **__: DeadSink("azure", kinds=frozenset({"telemetry"})))
    return broker


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = await Outbox.open(tmp_path / "outbox.db", node="pi", clock=SystemClock())
    yield outbox
    await outbox.close()


async def ignore(_: CloudEvent) -> None:
    pass


@asynccontextmanager
async def running(
    outbox: Outbox, say: Callable[[Sinks], None], *, keep_without_hub: bool = True
) -> AsyncIterator[Sinks]:
    """The sinks of one life of the agent, once they have taken in what was said."""
    settled = asyncio.Event()
    retain = outbox.retain_sinks

    async def retain_and_tell(names: set[str]) -> None:
        await retain(names)
        settled.set()

    outbox.retain_sinks = retain_and_tell  # type: ignore[method-assign, assignment]
    sinks = Sinks(
        outbox,
        SinksConfig(mqtt=MqttSinkConfig(host="broker.example")),
        portal=MemorySink("portal", kinds=frozenset({"fault"})),
        node="pi",
        clock=SystemClock(),
        on_cloud_event=ignore,
        keep_without_hub=keep_without_hub,
    )
    say(sinks)
    task = asyncio.create_task(sinks.run())
    try:
        async with asyncio.timeout(10):
            await settled.wait()
        yield sinks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        outbox.retain_sinks = retain  # type: ignore[method-assign]


async def backlog(outbox: Outbox, broker: MemorySink) -> None:
    """Five readings that the broker has and the hub has not."""
    async with running(outbox, lambda sinks: sinks.set_iot_hub(HUB)):
        await outbox.submit_many([Submission(service="a_py", payload=b"{}")] * 5)
        await broker.wait_for(5)
    await outbox.flush()
    assert outbox.stats().depth == 5


def nothing(_: Sinks) -> None:
    """As after a damaged settings file: nobody has said anything."""


@pytest.mark.parametrize("keep_without_hub", [True, False])
@pytest.mark.parametrize(
    "say", [nothing, lambda sinks: sinks.set_iot_hub(IotHubSettings(connection_string="HostName=typo"))]
)
async def test_backlog_outlives_settings_that_cannot_be_used(
    outbox: Outbox, broker: MemorySink, say: Callable[[Sinks], None], keep_without_hub: bool
) -> None:
    await backlog(outbox, broker)
    async with running(outbox, say, keep_without_hub=keep_without_hub):
        await outbox.flush()
        assert outbox.stats().depth == 5


async def test_hub_that_the_portal_takes_away_finds_its_backlog_when_it_comes_back(
    outbox: Outbox, broker: MemorySink
) -> None:
    await backlog(outbox, broker)
    async with running(outbox, lambda sinks: sinks.set_iot_hub(None)):
        await outbox.submit(Submission(service="a_py", payload=b"{}"))
        await broker.wait_for(6)
        await outbox.flush()
        assert outbox.stats().depth == 6


async def test_operator_may_let_a_hub_that_is_taken_away_lose_its_backlog(outbox: Outbox, broker: MemorySink) -> None:
    await backlog(outbox, broker)
    async with running(outbox, lambda sinks: sinks.set_iot_hub(None), keep_without_hub=False):
        await outbox.flush()
        assert outbox.stats().depth == 0
