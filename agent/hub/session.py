"""The node's standing relation with its portal: sign in, stay, come back."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import platform
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.backoff import FullJitterBackoff
from agent.clock import Clock
from agent.errors import HubError, HubProtocolError, HubRefusedError, HubUnreachableError, out_of_group
from agent.hub import protocol
from agent.identity import Identity
from agent.settings import DisconnectPolicy, SignIn, read_sign_in
from agent.system import facts

if TYPE_CHECKING:
    from agent.hub.connection import HubConnection

log = logging.getLogger(__name__)

SIGN_IN_TIMEOUT_SECONDS = 30.0
COMMANDS_LIMIT = 32
"""Commands of the portal that may be under way at once; more wait in the socket."""
CONSOLE_LIMIT = 1_000
"""Console lines kept while the link is busy; older ones are dropped and counted."""

CommandHandler = Callable[..., Awaitable[None]]


class HubSession:
    """Keeps one signed-in connection to the portal, with full-jitter back-off between attempts (1 s to 5 min).

    Args:
        on_signed_in: awaited with the answer of each sign-in; what it raises ends the connection, and only that.

    On the loop only.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        clock: Clock,
        on_signed_in: Callable[[SignIn], Awaitable[None]],
        backoff: FullJitterBackoff | None = None,
    ) -> None:
        self.connected = asyncio.Event()
        self.last_error = ""
        self.since_wall = clock.wall()
        self.console_on = False
        self._identity = identity
        self._clock = clock
        self._on_signed_in = on_signed_in
        self._backoff = backoff or FullJitterBackoff()
        self._handlers: dict[str, CommandHandler] = {}
        self._connection: HubConnection | None = None
        self._policy = DisconnectPolicy()
        self._policy_changed = asyncio.Event()
        self._missed_heartbeats = 0
        self._console: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(CONSOLE_LIMIT)
        self._console_dropped = 0

    def handle(self, target: str, handler: CommandHandler) -> None:
        """Await `handler(*arguments)` when the portal calls `target`; what it raises is told to the portal."""
        self._handlers[target] = handler

    def follow(self, policy: DisconnectPolicy) -> None:
        """Find out from now on as the portal says whether the node is cut off. On the loop only."""
        if policy != self._policy:
            self._policy = policy
            self._policy_changed.set()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            try:
                await self._stay_connected()
            except HubError as error:
                # A refusal is no reason to forget who we are either: the portal's mind, or its database, may come back.
                self._failed(error)
            delay = self._backoff.next_seconds()
            log.info("Next attempt to sign in in %.1f s.", delay, extra={"action": "hub_wait"})
            await self._clock.sleep(delay)

    async def invoke(self, target: str, *arguments: Any) -> Any:
        """Call the portal and return what it answers. Raises HubUnreachableError without a signed-in connection."""
        if self._connection is None or not self.connected.is_set():
            raise HubUnreachableError("The node is not signed in to its portal.")
        return await self._connection.invoke(target, *arguments)

    async def fetch(self, path: str, *, token: str) -> bytes:
        """Download `path` from the portal. Raises HubUnreachableError without a connection."""
        if self._connection is None:
            raise HubUnreachableError("The node is not connected to its portal.")
        return await self._connection.request("GET", path, token=token)

    def console(self, text: str, details: dict[str, Any]) -> None:
        """Show one line in the portal's console, if it is on and the link keeps up. From the loop only."""
        if not self.console_on or not self.connected.is_set():
            return
        if self._console.full():
            self._console.get_nowait()
            self._console_dropped += 1
        self._console.put_nowait((text, details))

    async def sign_out(self) -> None:
        """Tell the portal that the node goes on purpose."""
        if self._connection is not None and self.connected.is_set():
            try:
                async with asyncio.timeout(2.0):
                    await self._connection.invoke(
                        "signOut",
                        self._identity.node_name,
                        socket.gethostname(),
                        "Offline",
                        self._identity.organization_id,
                        timeout=2.0,
                    )
            except (HubError, TimeoutError) as error:
                log.debug("The portal was not told of the sign-out: %s", error)

    def _failed(self, error: HubError) -> None:
        if str(error) != self.last_error:
            log.warning("%s", error, extra={"action": "hub_failed", "code": error.code})
        self.last_error = str(error)

    async def _stay_connected(self) -> None:
        # aiohttp takes a tenth of a second to import, and much more on a small board: services start before it.
        client = await asyncio.to_thread(importlib.import_module, "agent.hub.connection")
        url = client.check_portal_url(self._identity.portal_url, insecure_http=self._identity.insecure_http)
        tls = client.make_tls(
            fingerprint=self._identity.fingerprint, certificate_authority=self._identity.certificate_authority
        )
        async with client.HubConnection(url, tls=tls) as connection:
            self._connection = connection
            try:
                await self._converse(connection)
            finally:
                self._connection = None
                if self.connected.is_set():
                    self.connected.clear()
                    self.since_wall = self._clock.wall()

    async def _converse(self, connection: HubConnection) -> None:
        signed_in = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(connection, signed_in, tasks), name="hub reader")
                await self._sign_in(connection, signed_in)
                tasks.create_task(self._heartbeat(connection), name="hub heartbeat")
                tasks.create_task(self._write_console(connection), name="hub console")
                await reader
        except BaseExceptionGroup as group:
            raise out_of_group(group, HubError) from None

    async def _sign_in(self, connection: HubConnection, answer: asyncio.Future[SignIn]) -> None:
        challenge = protocol.sign_in_challenge(
            connection_id=connection.connection_id, nonce=connection.nonce, node_name=self._identity.node_name
        )
        ip_addresses, mac_addresses = await asyncio.to_thread(lambda: (facts.ip_addresses(), facts.mac_addresses()))
        await connection.send(
            "signInAsync",
            protocol.sign_in_request(
                node_id=self._identity.node_id,
                node_name=self._identity.node_name,
                organization_id=self._identity.organization_id,
                machine_name=socket.gethostname(),
                agent_version=__version__,
                platform=f"{platform.system()} {platform.machine()}",
                ip_addresses=ip_addresses,
                mac_addresses=mac_addresses,
                signature=self._identity.sign(challenge),
                wall=self._clock.wall(),
            ),
        )
        try:
            async with asyncio.timeout(SIGN_IN_TIMEOUT_SECONDS):
                settings = await answer
        except TimeoutError as error:
            raise HubUnreachableError(
                f"{connection.url} did not answer the sign-in in {SIGN_IN_TIMEOUT_SECONDS:.0f} s."
            ) from error
        self.follow(settings.policies.disconnect_policy)
        self.console_on = settings.debug
        self.last_error = ""
        self.since_wall = self._clock.wall()
        self.connected.set()
        log.info("Signed in to %s as %s.", connection.url, self._identity.node_name, extra={"action": "signed_in"})
        await connection.send(
            "signedIn",
            self._identity.node_name,
            socket.gethostname(),
            "Online",
            self._identity.organization_id,
            False,
        )
        await self._take_in(connection, settings)
        self._backoff.reset()

    async def _take_in(self, connection: HubConnection, settings: SignIn) -> None:
        try:
            await self._on_signed_in(settings)
        except HubError:
            raise
        except Exception as error:
            # As with a command: whatever the portal said, the node's services run on.
            log.exception("The portal's sign-in answer could not be taken in.", extra={"action": "sign_in_failed"})
            raise HubProtocolError(
                f"The sign-in answer of {connection.url} could not be taken in ({type(error).__name__}); "
                "the node goes on with what it has and signs in again later."
            ) from error

    async def _read(
        self, connection: HubConnection, signed_in: asyncio.Future[SignIn], tasks: asyncio.TaskGroup
    ) -> None:
        room = asyncio.Semaphore(COMMANDS_LIMIT)
        async for call in connection.invocations():
            match call.target:
                case "signInMessage" if not signed_in.done():
                    signed_in.set_result(read_sign_in(call.arguments[0] if call.arguments else None))
                case "errorMessage":
                    raise HubRefusedError(*_error_arguments(call.arguments))
                case "heartBeat":
                    self._missed_heartbeats = 0
                case _:
                    await room.acquire()
                    task = tasks.create_task(self._command(connection, call), name=f"hub command {call.target}")
                    task.add_done_callback(lambda _: room.release())

    async def _command(self, connection: HubConnection, call: protocol.Invocation) -> None:
        handler = self._handlers.get(call.target)
        who = call.arguments[0] if call.arguments and isinstance(call.arguments[0], str) else ""
        if handler is None:
            text = f"This agent ({__version__}) does not know the command {call.target}."
            await connection.send("notify", who, text, "ERROR")
            return
        try:
            await handler(*call.arguments)
        except Exception as error:
            log.exception("The portal's command %s failed.", call.target, extra={"action": "command_failed"})
            await connection.send("notify", who, f"{call.target} failed: {str(error)[:300]}", "ERROR")

    async def _heartbeat(self, connection: HubConnection) -> None:
        self._missed_heartbeats = 0
        while True:
            if self._missed_heartbeats >= max(1, self._policy.missed_hearbeat_limit):
                raise HubUnreachableError(
                    f"{connection.url} left {self._missed_heartbeats} heartbeats unanswered; connecting anew."
                )
            self._missed_heartbeats += 1
            await connection.send("heartBeat", "echo")
            await self._until_next_heartbeat()

    async def _until_next_heartbeat(self) -> None:
        """Wait as long as the policy says, also when it changes meanwhile."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (left := began + max(1.0, self._policy.heartbeat_timeout) - loop.time()) > 0:
            self._policy_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._policy_changed.wait()

    async def _write_console(self, connection: HubConnection) -> None:
        name, organization = self._identity.node_name, self._identity.organization_id
        while True:
            text, details = await self._console.get()
            await connection.send("logMessage", name, text, organization, details)
            if self._console_dropped:
                dropped, self._console_dropped = self._console_dropped, 0
                notice = f"{dropped} console lines were dropped: the link did not keep up."
                await connection.send("logMessage", name, notice, organization, {**details, "level": "warning"})


def _error_arguments(arguments: list[Any]) -> tuple[str, int]:
    text = f"The portal refused this node: {str(arguments[0])[:300] if arguments else 'no reason given'}"
    code = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], int) else protocol.ERROR_INVALID_REQUEST
    return text, code
