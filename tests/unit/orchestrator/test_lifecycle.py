"""Back-off, `failed`, and being stopped at any moment."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from agent.backoff import FullJitterBackoff
from agent.hub.protocol import ServiceConfig
from agent.orchestrator.lifecycle import FAILED_AFTER, FAILED_WITHIN_SECONDS, SETTLED_SECONDS, ServiceLife
from agent.orchestrator.model import ServiceSpec
from agent.runtime.forking import TemplateError
from agent.runtime.host import Ending
from agent.testing import FakeClock

pytestmark = pytest.mark.usefixtures("no_blocking_calls")

SPEC = ServiceSpec("meter_py", "Meter", "Meter.py", "0.1", Path("Meter.py"), "", ServiceConfig())
CRASH = Ending(asked=False, text="Meter died.")


class Host:
    """A process that ends when the test says so."""

    pid = 42

    def __init__(self) -> None:
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.stop_timeout: float | None = None

    async def run(self) -> Ending:
        return await self.ended

    def stop(self, timeout_seconds: float) -> None:
        self.stop_timeout = timeout_seconds
        if not self.ended.done():
            self.ended.set_result(Ending(asked=True))


class MostJitter(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.hosts: list[Host] = []
        self.states: list[str] = []
        self.delays: list[float | None] = []
        self.gone = 0
        self.started = asyncio.Event()
        self.life = ServiceLife(
            SPEC,
            clock=self.clock,
            make_host=self._make_host,  # type: ignore[arg-type]
            on_state=lambda status: self.states.append(status.state),
            on_gone=self._gone,
            on_ended=lambda spec, ending, delay: self.delays.append(delay),
            backoff=FullJitterBackoff(most_seconds=60, random_source=MostJitter()),
        )
        self.task = asyncio.create_task(self.life.run())

    def _make_host(self, spec: ServiceSpec) -> Host:
        self.hosts.append(Host())
        self.started.set()
        return self.hosts[-1]

    def _gone(self, spec: ServiceSpec) -> None:
        self.gone += 1

    async def host(self, number: int) -> Host:
        async with asyncio.timeout(5):
            while len(self.hosts) < number:
                self.started.clear()
                await self.started.wait()
        await asyncio.sleep(0)
        return self.hosts[number - 1]

    async def crash(self, number: int, ending: Ending = CRASH) -> None:
        (await self.host(number)).ended.set_result(ending)

    async def end(self) -> None:
        self.life.stop(1)
        async with asyncio.timeout(5):
            await self.task


@pytest.fixture
async def bench() -> Any:
    return Bench()


async def test_back_off_doubles_up_to_its_cap(bench):
    for number in range(1, FAILED_AFTER):
        await bench.crash(number)
        await bench.clock.advance(await bench.clock.until_asleep())
    assert bench.delays == [1, 2, 4, 8, 16, 32, 60]
    assert bench.gone == FAILED_AFTER - 1
    await bench.end()


async def test_service_fails_after_so_many_ends_within_the_time(bench):
    for number in range(1, FAILED_AFTER):
        await bench.crash(number)
        await bench.clock.advance(await bench.clock.until_asleep())
    await bench.crash(FAILED_AFTER)
    await bench.task
    assert bench.life.status.state == "failed"
    assert bench.life.status.fault == "Meter died."
    assert bench.life.status.pid is None
    assert bench.delays[-1] is None


async def test_service_that_fails_now_and_then_is_always_started_again(bench):
    for number in range(1, 3 * FAILED_AFTER):
        host = await bench.host(number)
        bench.life.ready()
        await bench.clock.advance(FAILED_WITHIN_SECONDS / (FAILED_AFTER - 2))
        host.ended.set_result(CRASH)
        await bench.clock.advance(await bench.clock.until_asleep())
    assert bench.life.status.restarts == 3 * FAILED_AFTER - 1
    assert set(bench.delays) == {1}
    await bench.end()


async def test_process_that_came_up_makes_the_next_back_off_small(bench):
    await bench.crash(1)
    await bench.clock.advance(await bench.clock.until_asleep())
    host = await bench.host(2)
    bench.life.ready()
    await bench.clock.advance(SETTLED_SECONDS)
    host.ended.set_result(CRASH)
    await bench.clock.until_asleep()
    assert bench.delays == [1, 1]
    await bench.end()


async def test_package_index_out_of_reach_never_makes_a_service_fail(bench):
    for number in range(1, 3 * FAILED_AFTER):
        await bench.crash(number, Ending(asked=False, text="no index", counts=False))
        await bench.clock.advance(await bench.clock.until_asleep())
    assert bench.life.status.state in ("starting", "backing_off")
    await bench.end()


async def test_script_that_can_only_fail_fails_at_once(bench):
    await bench.crash(1, Ending(asked=False, text="wrong class", permanent=True))
    await bench.task
    assert bench.life.status.state == "failed"


async def test_template_that_cannot_fork_is_tried_again(bench):
    (await bench.host(1)).ended.set_exception(TemplateError("The template process did not fork: no memory."))
    await bench.clock.advance(await bench.clock.until_asleep())
    await bench.host(2)
    assert bench.life.status.fault == "The template process did not fork: no memory."
    await bench.end()


async def test_stop_ends_a_running_process_within_its_time(bench):
    host = await bench.host(1)
    bench.life.ready()
    bench.life.stop(7.5)
    await bench.task
    assert host.stop_timeout == 7.5
    assert bench.states == ["starting", "running", "stopping", "stopped"]
    assert not bench.delays


async def test_stop_ends_a_back_off_at_once(bench):
    await bench.crash(1)
    await bench.clock.until_asleep()
    await bench.end()
    assert bench.states[-2:] == ["backing_off", "stopped"]


async def test_service_that_installs_while_it_runs_is_running_again_afterwards(bench):
    await bench.host(1)
    bench.life.progress("installing")
    bench.life.progress("starting")
    bench.life.ready()
    bench.life.progress("installing")
    bench.life.progress("starting")
    assert bench.states == ["starting", "installing", "starting", "running", "installing", "running"]
    await bench.end()
