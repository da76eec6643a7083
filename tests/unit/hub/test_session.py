"""The hub session against a real server."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.backoff import FullJitterBackoff
from agent.clock import SystemClock
from agent.errors import HubUnreachableError
from agent.hub.enrolment import enroll
from agent.hub.fake import FakeHub
from agent.hub.session import HubSession
from agent.identity import Identity, load_identity
from agent.paths import Paths
from agent.settings import SignIn


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub() as hub:
        yield hub


@pytest.fixture
async def identity(hub: FakeHub, tmp_path: Path) -> Identity:
    return await enroll(Paths(state=tmp_path, runtime=tmp_path / "run"), hub.url, code="GOOD-CODE", name="pi")


async def nothing(_: SignIn) -> None:
    pass


@asynccontextmanager
async def running(
    identity: Identity,
    *,
    on_signed_in: Callable[[SignIn], Awaitable[None]] = nothing,
    prepare: Callable[[HubSession], None] = lambda _: None,
) -> AsyncIterator[HubSession]:
    backoff = FullJitterBackoff(first_seconds=0.01, most_seconds=0.02)
    session = HubSession(identity, clock=SystemClock(), on_signed_in=on_signed_in, backoff=backoff)
    prepare(session)
    task = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_sign_in_proves_the_key_and_hands_over_the_settings(hub: FakeHub, identity: Identity) -> None:
    got: asyncio.Future[SignIn] = asyncio.get_running_loop().create_future()

    async def take(settings: SignIn) -> None:
        got.set_result(settings)

    async with running(identity, on_signed_in=take) as session:
        async with asyncio.timeout(10):
            settings = await got
        assert session.connected.is_set()
    assert settings.node_name == "pi"
    assert settings.script_token == "script-token"
    host = (await hub.called("signInAsync"))[0].arguments[0]
    assert host["sas"] == ""
    assert host["Name"] == "pi"
    assert (await hub.called("signedIn"))[0].arguments[2] == "Online"


async def test_wrong_key_is_refused_and_nothing_on_the_node_changes(
    hub: FakeHub, identity: Identity, tmp_path: Path
) -> None:
    other = await enroll(Paths(state=tmp_path / "b", runtime=tmp_path), hub.url, code="GOOD-CODE", name="other")
    impostor = Identity(
        **{**{f: getattr(identity, f) for f in identity.__struct_fields__}, "private_key": other.private_key}
    )
    before = load_identity(Paths(state=tmp_path, runtime=tmp_path))
    async with running(impostor) as session:
        await hub.called("signInAsync", count=3)
        assert "refused this node" in session.last_error
        assert not session.connected.is_set()
    assert hub.sign_ins == 0
    assert load_identity(Paths(state=tmp_path, runtime=tmp_path)) == before


async def test_node_comes_back_after_the_connection_is_cut(hub: FakeHub, identity: Identity) -> None:
    async with running(identity):
        await hub.called("signedIn")
        await hub.disconnect()
        await hub.called("signedIn", count=2)


async def test_portal_with_a_fault_is_tried_until_it_works(hub: FakeHub, identity: Identity) -> None:
    hub.status = 503
    failed = asyncio.Event()

    class Backoff(FullJitterBackoff):
        def next_seconds(self) -> float:
            failed.set()
            return 0.01

    session = HubSession(identity, clock=SystemClock(), on_signed_in=nothing, backoff=Backoff())
    task = asyncio.create_task(session.run())
    try:
        async with asyncio.timeout(10):
            await failed.wait()
            assert "answered 503" in session.last_error
            hub.status = 200
            await session.connected.wait()
        assert session.last_error == ""
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_sign_in_that_cannot_be_taken_in_is_tried_again(
    hub: FakeHub, identity: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = 0
    taken = asyncio.Event()

    async def take(_: SignIn) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError(28, "No space left on device")
        taken.set()

    async with running(identity, on_signed_in=take):
        async with asyncio.timeout(10):
            await taken.wait()
    assert "could not be taken in" in caplog.text


async def test_deployment_of_thousands_of_services_is_taken_in(hub: FakeHub, identity: Identity) -> None:
    hub.assign({f"Service{number}.py": "class Service: pass" for number in range(3000)}, note="x" * 200)
    got: asyncio.Future[SignIn] = asyncio.get_running_loop().create_future()

    async def take(settings: SignIn) -> None:
        got.set_result(settings)

    async with running(identity, on_signed_in=take), asyncio.timeout(10):
        manifest = (await got).manifest
    assert manifest is not None
    assert len(manifest.document) > 1024 * 1024
    assert len(manifest.open(public_key=base64.b64decode(hub.manifest_key)).services) == 3000


async def test_unanswered_heartbeats_end_the_connection(hub: FakeHub, identity: Identity) -> None:
    hub.answer_heartbeats = False
    hub.settings = {"policies": {"disconnectPolicy": {"heartbeatTimeout": 0, "missedHearbeatLimit": 1}}}
    async with running(identity):
        await hub.called("signInAsync", count=2)


async def test_commands_reach_their_handler_and_unknown_ones_are_answered(hub: FakeHub, identity: Identity) -> None:
    heard: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    async def handler(*arguments: object) -> None:
        heard.put_nowait(arguments)

    async def broken(*_: object) -> None:
        raise ValueError("the pump is dry")

    def prepare(session: HubSession) -> None:
        session.handle("changeState", handler)
        session.handle("restart", broken)

    async with running(identity, prepare=prepare):
        await hub.called("signedIn")
        await hub.call("changeState", "InActive")
        async with asyncio.timeout(10):
            assert await heard.get() == ("InActive",)
        await hub.call("dance", "person-1")
        await hub.call("restart", "person-1")
        answers = [call.arguments for call in await hub.called("notify", count=2)]
    assert [answers[0][0], answers[0][2]] == ["person-1", "ERROR"]
    assert "does not know the command dance" in answers[0][1]
    assert "the pump is dry" in answers[1][1]


async def test_slow_command_does_not_hold_up_the_others(hub: FakeHub, identity: Identity) -> None:
    never = asyncio.Event()
    quick = asyncio.Event()

    async def stuck(*_: object) -> None:
        await never.wait()

    async def prompt(*_: object) -> None:
        quick.set()

    def prepare(session: HubSession) -> None:
        session.handle("reportState", stuck)
        session.handle("ping", prompt)

    async with running(identity, prepare=prepare):
        await hub.called("signedIn")
        await hub.call("reportState")
        await hub.call("ping")
        async with asyncio.timeout(10):
            await quick.wait()


async def test_console_lines_travel_only_while_the_console_is_on(hub: FakeHub, identity: Identity) -> None:
    hub.settings = {"debug": False}
    async with running(identity) as session:
        await hub.called("signedIn")
        session.console("unseen", {})
        session.console_on = True
        session.console("seen", {"service": "readgpio_py", "level": "debug"})
        lines = await hub.called("logMessage")
    assert [line.arguments[1] for line in lines] == ["seen"]
    assert lines[0].arguments[3]["service"] == "readgpio_py"


async def test_calling_the_portal_without_a_connection_says_so(identity: Identity) -> None:
    session = HubSession(identity, clock=SystemClock(), on_signed_in=nothing)
    with pytest.raises(HubUnreachableError, match="not signed in"):
        await session.invoke("facts", {})
    with pytest.raises(HubUnreachableError, match="not connected"):
        await session.fetch("/api/Scripts/x", token="t")
    session.console("dropped", {})
    await session.sign_out()
