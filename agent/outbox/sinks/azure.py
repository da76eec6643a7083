"""The Azure IoT Hub sink: Azure's own SDK, in a process that is watched and replaced."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

import agent
from agent.backoff import FullJitterBackoff
from agent.clock import Clock, SystemClock
from agent.errors import ConfigError, MissingExtraError
from agent.outbox.feed import Feed
from agent.outbox.message import Kind, OutboxMessage
from agent.outbox.sinks.azure_wire import (
    Configure,
    Confirmed,
    Connected,
    DesiredPatch,
    Disconnected,
    Draining,
    Method,
    MethodResult,
    Received,
    Record,
    Refused,
    Report,
    Reported,
    Send,
    Stop,
    Telemetry,
    ToParent,
    Twin,
    frame,
    read_frame,
)
from agent.outbox.sinks.base import CLOSE_SECONDS, SinkStatus, StatusBook
from agent.outbox.sinks.cloud import CloudEvent, CloudHandler, CloudMessage, MethodAnswer, MethodCall, TwinUpdate
from agent.outbox.sinks.guard import GuardedFeed
from agent.secret import Secret

log = logging.getLogger(__name__)

START_SECONDS: Final = 60.0
"""For the process to start and import the SDK, which takes seconds on a small board."""

SLACK_SECONDS: Final = 25.0
"""What the process may take beyond its own time limits before it counts as wedged."""

RENEW_SECONDS: Final = 3000.0
"""A session's length: well before its token (one hour) ends."""

REPORT_SECONDS: Final = 40.0
METHODS_AT_ONCE: Final = 20
EVENTS_WAITING: Final = 1000
MESSAGE_ID_LENGTH: Final = 128
"""What an IoT Hub accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSettings:
    """How to reach an IoT Hub, and as which device.

    Args:
        connection_string: `HostName=…;DeviceId=…;SharedAccessKey=…`, also with `GatewayHostName`. Or the next four.
        hostname, device_id: the hub and the device, when it signs in by certificate.
        certificate_file, key_file: its X.509 certificate and key (PEM files).
        certificate_authority: trusted certificates as PEM text; empty: the system's.
        keep_alive_seconds: MQTT keep-alive, 5 to 1740 (default 30): a dead link is seen after twice this time.
        window: messages on their way at once (default 50).
        stall_seconds: how long the hub may acknowledge nothing before the connection is given up (default 20 s).
        connect_timeout_seconds: how long a connection attempt may take (default 30 s).
        websockets: MQTT over port 443 instead of 8883, for networks that let nothing else out (default no).

    Raises ConfigError, which names the key and never its value.
    """

    connection_string: Secret = field(default_factory=lambda: Secret(""))
    hostname: str = ""
    device_id: str = ""
    certificate_file: Path | None = None
    key_file: Path | None = None
    certificate_authority: str = ""
    keep_alive_seconds: int = 30
    window: int = 50
    stall_seconds: float = 20.0
    connect_timeout_seconds: float = 30.0
    websockets: bool = False

    def __post_init__(self) -> None:
        if self.connection_string:
            parts = self._parts()
            missing = [key for key in ("HostName", "DeviceId", "SharedAccessKey") if not parts.get(key)]
            if missing:
                raise ConfigError(
                    f"The IoT Hub connection string has no {' and no '.join(missing)}; "
                    "copy the device's (not the hub's) connection string as it is."
                )
        elif not (self.hostname and self.device_id and self.certificate_file and self.key_file):
            raise ConfigError(
                "The IoT Hub needs a connection string, or all of hostname, device_id, certificate_file and key_file."
            )
        if not 5 <= self.keep_alive_seconds <= 1740:
            raise ConfigError(f"keep_alive_seconds is {self.keep_alive_seconds}; an IoT Hub takes 5 to 1740.")
        if not 1 <= self.window <= 1000:
            raise ConfigError(f"window is {self.window}; it must be from 1 to 1000.")

    @property
    def hub(self) -> str:
        """The hub's host name, to show."""
        return self.hostname or self._parts()["HostName"]

    @property
    def device(self) -> str:
        """The device's name, to show."""
        return self.device_id or self._parts()["DeviceId"]

    def _parts(self) -> dict[str, str]:
        pairs = (part.partition("=") for part in self.connection_string.reveal().split(";"))
        return {key.strip(): value.strip() for key, _, value in pairs}


class AzureSink:
    """Send telemetry to an Azure IoT Hub, and bring back what the cloud says. On the loop only.

    Each message carries its content type and encoding, its message id, `iothub-creation-time-utc`, the service's own
    properties and the ledger's. It is acknowledged when the hub has acknowledged it.

    Args:
        settings: the hub and the credentials.
        on_cloud_event: gets twin updates, direct methods and messages; see `CloudHandler`.
        name: the sink's name in the outbox (default `azure`).
        clock: the time.

    Raises MissingExtraError where Azure's SDK is not installed.
    """

    def __init__(
        self,
        settings: AzureSettings,
        *,
        on_cloud_event: CloudHandler,
        name: str = "azure",
        kinds: frozenset[Kind] = frozenset({"telemetry"}),
        clock: Clock | None = None,
    ) -> None:
        if importlib.util.find_spec("azure") is None or importlib.util.find_spec("azure.iot.device") is None:
            raise MissingExtraError("Azure's SDK is not installed; install it with: pip install 'outstation[azure]'.")
        self.name = name
        self.kinds = kinds
        self._settings = settings
        self._on_cloud_event = on_cloud_event
        self._clock = clock or SystemClock()
        self._book = StatusBook(name, self._clock)
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """The process that runs the SDK now."""
        return None if self._process is None else self._process.pid

    def status(self) -> SinkStatus:
        """How it stands now."""
        return self._book.status()

    async def report(self, patch: dict[str, Any]) -> None:
        """Merge a patch into the twin's reported properties; returns when the hub has accepted it.

        Raises ConnectionError when the hub is not connected, does not answer or refuses.
        """
        if self._process is None:
            raise ConnectionError(f"The IoT Hub {self._settings.hub} is not connected; try again when it is.")
        await self._process.report(patch)

    async def run(self, feed: Feed) -> None:
        """Send what the feed has until cancelled."""
        backoff = FullJitterBackoff(first_seconds=1.0, most_seconds=60.0)
        guarded = GuardedFeed(feed, self._book)
        while True:
            process = _Process(self._settings, guarded, self._book, self._on_cloud_event, self._clock)
            self._process = process
            try:
                reason = await process.run()
            except BaseException:
                guarded.close()
                raise
            finally:
                self._process = None
            if process.progressed:
                backoff.reset()
            delay = backoff.next_seconds()
            log.warning(
                "The IoT Hub process ended (%s); a new one starts in %.1f s.",
                reason,
                delay,
                extra={"action": "azure_process_ended"},
            )
            await self._clock.sleep(delay)


class _Process:
    """One child process, from its start to its end."""

    def __init__(
        self, settings: AzureSettings, feed: GuardedFeed, book: StatusBook, on_cloud_event: CloudHandler, clock: Clock
    ) -> None:
        self._settings = settings
        self._feed = feed
        self._book = book
        self._on_cloud_event = on_cloud_event
        self._clock = clock
        self._session = 0
        """The session that messages may be sent in; 0 between sessions."""
        self._changed = asyncio.Event()
        self._deadline: float | None = None
        self._watched_until: float | None = None
        self._armed = asyncio.Event()
        self._events: asyncio.Queue[CloudEvent] = asyncio.Queue(EVENTS_WAITING)
        self._methods = 0
        self._twin: TwinUpdate | None = None
        self._early_patches: list[dict[str, Any]] = []
        self._reports: dict[int, asyncio.Future[str]] = {}
        self._report_number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._decoder = msgspec.msgpack.Decoder(ToParent)
        self.pid = 0
        self.progressed = False

    async def run(self) -> str:
        """Start the child and serve it until it ends; why it did."""
        async with AsyncExitStack() as stack:
            starting = asyncio.create_task(self._start(stack), name="azure-start")
            try:
                process = await asyncio.shield(starting)
            except OSError as error:
                return f"it cannot be started: {error}"
            except asyncio.CancelledError:
                # Told to end while the child starts: one that nobody waits for would be left behind.
                await asyncio.wait([starting])
                if starting.exception() is None:
                    await self._end(starting.result())
                raise
            try:
                return await self._serve(process)
            finally:
                await self._end(process)

    async def report(self, patch: dict[str, Any]) -> None:
        """See AzureSink.report."""
        self._report_number += 1
        number = self._report_number
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reports[number] = answer
        try:
            self._write(Report(number, patch))
            error = await asyncio.wait_for(answer, REPORT_SECONDS)
        except TimeoutError as late:
            raise ConnectionError("The IoT Hub did not answer the report; it may have been taken.") from late
        finally:
            del self._reports[number]
        if error:
            raise ConnectionError(f"The IoT Hub did not take the report: {error}")

    # ---- life

    async def _start(self, stack: AsyncExitStack) -> asyncio.subprocess.Process:
        ours, theirs = socket.socketpair()
        with theirs:
            stack.callback(ours.close)
            # -P: never import from the working directory. -W: the SDK's deprecations are not the operator's business.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-W", "ignore", "-m", "agent.outbox.sinks.azure_process", "--fd", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self.pid = process.pid
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        stack.callback(self._writer.close)
        settings = self._settings
        self._write(
            Configure(
                connection_string=settings.connection_string.reveal(),
                hostname=settings.hostname,
                device_id=settings.device_id,
                certificate_file=str(settings.certificate_file or ""),
                key_file=str(settings.key_file or ""),
                certificate_authority=settings.certificate_authority,
                keep_alive_seconds=settings.keep_alive_seconds,
                stall_seconds=settings.stall_seconds,
                connect_timeout_seconds=settings.connect_timeout_seconds,
                renew_seconds=RENEW_SECONDS,
                websockets=settings.websockets,
                product=f"outstation/{agent.__version__}",
            )
        )
        self._expect_within(START_SECONDS + settings.connect_timeout_seconds)
        return process

    async def _serve(self, process: asyncio.subprocess.Process) -> str:
        """Until the child closes its end or has to be killed."""
        reading = asyncio.create_task(self._read(), name="azure-read")
        watching = asyncio.create_task(self._watch(), name="azure-watch")
        tasks = [
            reading,
            watching,
            asyncio.create_task(self._send(), name="azure-send"),
            asyncio.create_task(self._hand_on(), name="azure-events"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if watching in done and reading not in done:
                os.kill(process.pid, signal.SIGKILL)
                return "it made no progress and was killed"
            for task in done:
                # The outbox was closed under us: nothing can be sent any more.
                task.result()
            return "it closed its socket"
        except asyncio.CancelledError:
            await self._stop_child(reading)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_child(self, reading: asyncio.Task[None]) -> None:
        """Let the child finish what is on its way; its confirmations still count."""
        self._session = 0
        self._write(Stop())
        await asyncio.wait([reading], timeout=CLOSE_SECONDS)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            try:
                # It has closed its socket or was told to stop; a client that hangs is no reason to wait.
                await asyncio.wait_for(process.wait(), 1.0)
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._session_over("its process ended")
        for task in self._tasks:
            task.cancel()
        for answer in self._reports.values():
            if not answer.done():
                answer.set_result("the connection ended.")

    async def _watch(self) -> None:
        """Return when the child has missed its deadline."""
        while True:
            remaining = None if self._deadline is None else self._deadline - self._clock.monotonic()
            if remaining is not None and remaining <= 0:
                return
            self._armed.clear()
            self._watched_until = self._deadline
            try:
                await asyncio.wait_for(self._armed.wait(), remaining)
            except TimeoutError:
                continue

    def _expect_within(self, seconds: float | None) -> None:
        self._deadline = None if seconds is None else self._clock.monotonic() + seconds
        # A later deadline needs no waking: the watch looks again when the earlier one has come.
        if self._deadline is not None and (self._watched_until is None or self._deadline < self._watched_until):
            self._armed.set()

    def _expect_progress(self) -> None:
        self._expect_within(self._settings.stall_seconds + SLACK_SECONDS if self._feed.outstanding else None)

    # ---- to the child

    async def _send(self) -> None:
        while True:
            room = self._settings.window - len(self._feed.outstanding)
            if not self._session or room <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            batch = await self._feed.take(room)
            session = self._session
            if not session:
                self._feed.give_back([message.id for message in batch])
                continue
            self._book.sent += len(batch)
            self._write(Send(session, [_telemetry(message) for message in batch]))
            if len(batch) == len(self._feed.outstanding):
                self._expect_progress()
            try:
                await self._writer.drain()
            except ConnectionError:
                # The reader sees the end of the child as well, and gives everything back.
                await asyncio.Event().wait()

    def _write(self, record: Record) -> None:
        self._writer.write(frame(record))

    # ---- from the child

    async def _read(self) -> None:
        try:
            while (body := await read_frame(self._reader)) is not None:
                await self._handle(self._decoder.decode(body))
        except ValueError as error:
            log.error("The IoT Hub process said something unreadable: %s", error)

    async def _handle(self, record: ToParent) -> None:
        if isinstance(record, Confirmed):
            await self._confirm(record.ids)
        elif isinstance(record, Connected):
            self.progressed = True
            self._session = record.session
            self._book.connected()
            self._expect_progress()
            self._changed.set()
            log.info("Connected to the IoT Hub %s.", self._settings.hub, extra={"action": "azure_connected"})
        elif isinstance(record, Draining):
            self._session = 0
            self._expect_within(self._settings.connect_timeout_seconds + SLACK_SECONDS)
        elif isinstance(record, Disconnected):
            await self._session_over(record.reason)
            patience = record.retry_seconds + self._settings.connect_timeout_seconds + 10.0 + SLACK_SECONDS
            self._expect_within(patience)
        elif isinstance(record, Refused):
            await self._refuse(record)
        elif isinstance(record, Twin | DesiredPatch):
            self._on_twin(record)
        elif isinstance(record, Method):
            self._call_method(record)
        elif isinstance(record, Received):
            self._hear(
                CloudMessage(
                    payload=record.payload,
                    properties=record.properties,
                    message_id=record.message_id,
                    correlation_id=record.correlation_id,
                    content_type=record.content_type,
                )
            )
        elif isinstance(record, Reported):
            answer = self._reports.get(record.number)
            if answer is not None and not answer.done():
                answer.set_result(record.error)
        else:
            log.warning("IoT Hub %s: %s", self._settings.hub, record.text, extra={"action": "azure_trouble"})

    async def _confirm(self, ids: list[int]) -> None:
        await self._feed.acknowledge(ids)
        self._expect_progress()
        self._changed.set()

    async def _refuse(self, record: Refused) -> None:
        if record.id in self._feed.outstanding:
            await self._feed.park(record.id, record.reason)
            self._changed.set()

    async def _session_over(self, reason: str) -> None:
        was_connected, self._session = self._session != 0, 0
        self._twin = None
        self._early_patches.clear()
        self._book.disconnected(reason)
        # A session that ends without a reason was renewed or stopped on purpose.
        await self._feed.session_over(reason, blame=bool(reason))
        if reason:
            log.log(
                logging.WARNING if was_connected else logging.INFO,
                "Not connected to the IoT Hub %s: %s",
                self._settings.hub,
                reason,
                extra={"action": "azure_disconnected"},
            )

    # ---- cloud events

    def _on_twin(self, record: Twin | DesiredPatch) -> None:
        if record.session != self._session:
            return
        if isinstance(record, Twin):
            self._twin = TwinUpdate(desired=record.desired, reported=record.reported)
            patches, self._early_patches = self._early_patches, []
            for patch in patches:
                self._twin = _patched(self._twin, patch)
            self._hear(self._twin)
        elif self._twin is None:
            # Subscribed before the twin was read: what comes in between may be newer than it.
            self._early_patches.append(record.patch)
        else:
            patched = _patched(self._twin, record.patch)
            if patched is not self._twin:
                self._twin = patched
                self._hear(patched)

    def _hear(self, event: CloudEvent) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            log.warning(
                "%d events from the IoT Hub wait for the services already; this one is dropped.",
                EVENTS_WAITING,
                extra={"action": "azure_event_dropped"},
            )

    async def _hand_on(self) -> None:
        while True:
            await self._ask(await self._events.get())

    def _call_method(self, method: Method) -> None:
        if self._methods >= METHODS_AT_ONCE:
            answer = MethodAnswer(status=429, payload={"error": "Too many direct methods at once; try again later."})
            self._answer(method, answer)
            return
        self._methods += 1
        self._spawn(self._run_method(method))

    async def _run_method(self, method: Method) -> None:
        try:
            answer = await self._ask(MethodCall(name=method.name, payload=method.payload))
        finally:
            self._methods -= 1
        if answer is None:
            answer = MethodAnswer(status=404, payload={"error": f"This node has no method {method.name}."})
        self._answer(method, answer)

    def _answer(self, method: Method, answer: MethodAnswer) -> None:
        try:
            self._write(MethodResult(method.request, answer.status, answer.payload))
        except TypeError as error:
            payload = {"error": f"The result of {method.name} cannot be sent as JSON: {error}."}
            self._write(MethodResult(method.request, 500, payload))

    async def _ask(self, event: CloudEvent) -> MethodAnswer | None:
        try:
            return await self._on_cloud_event(event)
        except Exception as error:
            log.exception("A handler of cloud events failed.", extra={"action": "azure_handler_failed"})
            return MethodAnswer(status=500, payload={"error": f"{type(error).__name__}: {error}"[:1000]})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _patched(twin: TwinUpdate, patch: dict[str, Any]) -> TwinUpdate:
    """The twin with a patch of its desired properties, or the same when it has that version already."""
    if patch.get("$version", 0) <= twin.desired.get("$version", -1):
        return twin
    return TwinUpdate(desired=_merged(twin.desired, patch), reported=twin.reported)


def _merged(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396), as the device twin defines it."""
    result = dict(document)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = _merged(old if isinstance(old, dict) else {}, value)
        else:
            result[key] = value
    return result


def _telemetry(message: OutboxMessage) -> Telemetry:
    created = datetime.fromtimestamp(message.created_wall, UTC).isoformat(timespec="milliseconds")
    return Telemetry(
        id=message.id,
        payload=message.payload,
        message_id=hub_message_id(message.message_id),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        properties={
            **message.properties,
            **message.ledger_properties(),
            "iothub-creation-time-utc": created.replace("+00:00", "Z"),
        },
    )


def hub_message_id(message_id: str) -> str:
    """A message id in the alphabet and length that an IoT Hub accepts, still stable and unique."""
    text = quote(message_id, safe="-:.+%_#*?!(),=@;$'")
    return text if len(text) <= MESSAGE_ID_LENGTH else hashlib.sha256(message_id.encode()).hexdigest()
