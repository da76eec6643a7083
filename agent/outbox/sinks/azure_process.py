"""The Azure sink's own process: Azure's SDK, one client object for each connection, and nothing else.

Started by `agent.outbox.sinks.azure` as `python -m agent.outbox.sinks.azure_process --fd N`, where N is one end of a
socket pair. It ends when the other end closes. The SDK is never trusted to reconnect, to notice a dead link or to end
a client: each connection has a client of its own, watched by its acknowledgements, and when a client does not shut down
in time this process exits and is replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from azure.iot.device import X509, Message, MethodRequest, MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient

from agent.backoff import FullJitterBackoff
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
    ToChild,
    Trouble,
    Twin,
    frame,
    read_frame,
)

SHUTDOWN_SECONDS: Final = 10.0
DRAIN_SECONDS: Final = 3.0
"""How long a session that ends on purpose waits for what is on its way."""

ANSWER_SECONDS: Final = 30.0
"""For twin, report and method answers, which the SDK itself would await for ever."""

TOKEN_SECONDS: Final = 3600
FIRST_RETRY_SECONDS: Final = 1.0
MOST_RETRY_SECONDS: Final = 60.0
HEALTHY_SECONDS: Final = 30.0

EXIT_WEDGED: Final = 70

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """How a session ended."""

    reason: str
    healthy: bool = False
    """It worked for a while, so that the next attempt need not wait long."""
    planned: bool = False
    wedged: bool = False


def explain(error: BaseException | None) -> str:
    """An SDK error with its causes, which say more than it does."""
    texts: list[str] = []
    while error is not None:
        text = str(error) or type(error).__name__
        if text not in texts:
            texts.append(text)
        error = error.__cause__
    return ": ".join(texts)


class Session:
    """One connection with one client object. On the loop; the SDK's threads come in through `_from_thread`."""

    def __init__(
        self, number: int, settings: Configure, tell: Callable[[Record], None], helper: ThreadPoolExecutor
    ) -> None:
        self._number = number
        self._settings = settings
        self._tell = tell
        self._helper = helper
        self._loop = asyncio.get_running_loop()
        self._client = _make_client(settings)
        self._wake = asyncio.Event()
        self._end: Outcome | None = None
        self._connected = False
        self._stopping = False
        self._pending: dict[asyncio.Task[None], int] = {}
        self._progress = 0.0
        self._confirmed: list[int] = []
        self._confirmed_any = False
        self._requests: dict[str, MethodRequest] = {}
        self._side_tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcome:
        """Connect, serve until something ends it, and take the client down."""
        started = time.monotonic()
        # The hub sends waiting messages at once on connecting. The SDK keeps them for a handler that is set later only
        # when it knows by then that handlers will be used, and loses them otherwise.
        self._client.on_message_received = None
        try:
            await asyncio.wait_for(self._client.connect(), self._settings.connect_timeout_seconds)
        except Exception as error:  # noqa: BLE001 - the SDK's edge: it raises more than it documents
            return await self._finish(Outcome(_connect_reason(error)), started)
        self._connected = True
        self._client.on_connection_state_change = functools.partial(self._from_thread, self._on_state)
        self._tell(Connected(self._number))
        self._beside(self._set_up_cloud_to_device())
        return await self._finish(await self._serve(started), started)

    def send(self, messages: list[Telemetry]) -> None:
        """Send messages, in this order."""
        if not self._pending:
            self._progress = time.monotonic()
        for telemetry in messages:
            task = asyncio.create_task(self._client.send_message(_message(telemetry)))
            self._pending[task] = telemetry.id
            task.add_done_callback(self._on_sent)
        self._wake.set()

    def stop(self) -> None:
        """End after what is on its way."""
        self._stopping = True
        self._wake.set()

    def answer(self, result: MethodResult) -> None:
        """Answer a direct method."""
        request = self._requests.pop(result.request, None)
        if request is not None:
            response = MethodResponse.create_from_method_request(request, result.status, result.payload)
            self._beside(self._within(self._client.send_method_response(response), "The answer to a direct method"))

    def report(self, report: Report) -> None:
        """Patch the reported properties."""
        self._beside(self._report(report))

    # ---- until the end

    async def _serve(self, started: float) -> Outcome:
        renew_at = started + self._settings.renew_seconds
        drain_until: float | None = None
        while self._end is None:
            now = time.monotonic()
            if drain_until is None and (self._stopping or now >= renew_at):
                drain_until = now + DRAIN_SECONDS
                self._tell(Draining(self._number))
            if drain_until is not None and (not self._pending or now >= drain_until):
                return Outcome("", healthy=True, planned=True)
            deadline = drain_until or renew_at
            if self._pending:
                stalls_at = self._progress + self._settings.stall_seconds
                if now >= stalls_at:
                    return Outcome(f"The hub acknowledged nothing for {self._settings.stall_seconds:.0f} s.")
                deadline = min(deadline, stalls_at)
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), deadline - now)
            except TimeoutError:
                continue
        return self._end

    async def _finish(self, outcome: Outcome, started: float) -> Outcome:
        for task in self._side_tasks:
            task.cancel()
        # What was confirmed up to here counts; the rest is sent again by the next session.
        self._flush_confirmed()
        pending, self._pending = self._pending, {}
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait_for(self._client.shutdown(), SHUTDOWN_SECONDS)
        except Exception as error:  # noqa: BLE001 - the SDK's edge
            log.info("The client did not shut down: %s", explain(error))
            outcome.wedged = True
        outcome.healthy |= self._confirmed_any or (self._connected and time.monotonic() - started > HEALTHY_SECONDS)
        return outcome

    def _on_sent(self, task: asyncio.Task[None]) -> None:
        message_id = self._pending.pop(task, None)
        if message_id is None or task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._progress = time.monotonic()
            self._confirmed_any = True
            if not self._confirmed:
                self._loop.call_soon(self._flush_confirmed)
            self._confirmed.append(message_id)
            if not self._pending:
                self._wake.set()
        elif isinstance(error, ValueError) or isinstance(error.__cause__, ValueError | TypeError):
            self._tell(Refused(message_id, explain(error)))
        else:
            self._end_with(explain(error))

    def _flush_confirmed(self) -> None:
        if self._confirmed:
            confirmed, self._confirmed = self._confirmed, []
            self._tell(Confirmed(confirmed))

    def _end_with(self, reason: str) -> None:
        if self._end is None:
            self._end = Outcome(reason)
        self._wake.set()

    # ---- cloud to device

    async def _set_up_cloud_to_device(self) -> None:
        # Setting a handler subscribes, and blocks until the hub has answered: never on the loop.
        handlers: list[tuple[str, Callable[[Any], None]]] = [
            ("on_twin_desired_properties_patch_received", self._on_patch),
            ("on_method_request_received", self._on_method),
            ("on_message_received", self._on_message),
        ]
        for name, handler in handlers:
            set_it = functools.partial(setattr, self._client, name, functools.partial(self._from_thread, handler))
            await self._within(self._loop.run_in_executor(self._helper, set_it), f"The hub's answer to setting {name}")
        twin = await self._within(self._client.get_twin(), "The device twin")
        if twin is not None:
            self._tell(Twin(self._number, twin.get("desired", {}), twin.get("reported", {})))

    async def _within(self, work: Any, what: str) -> Any:
        try:
            return await asyncio.wait_for(work, ANSWER_SECONDS)
        except TimeoutError:
            self._tell(Trouble(f"{what} did not come within {ANSWER_SECONDS:.0f} s."))
        except Exception as error:  # noqa: BLE001 - the SDK's edge
            if self._end is None:
                self._tell(Trouble(f"{what} failed: {explain(error)}."))
        return None

    async def _report(self, report: Report) -> None:
        try:
            await asyncio.wait_for(self._client.patch_twin_reported_properties(report.patch), ANSWER_SECONDS)
        except Exception as error:  # noqa: BLE001 - the SDK's edge
            self._tell(Reported(report.number, explain(error)))
        else:
            self._tell(Reported(report.number, ""))

    def _on_state(self) -> None:
        if not self._client.connected:
            self._end_with("The connection to the hub was lost.")

    def _on_patch(self, patch: dict[str, Any]) -> None:
        self._tell(DesiredPatch(self._number, patch))

    def _on_method(self, request: MethodRequest) -> None:
        key = f"{self._number}-{request.request_id}"
        self._requests[key] = request
        self._tell(Method(key, request.name, request.payload))

    def _on_message(self, message: Message) -> None:
        data = message.data
        self._tell(
            Received(
                data if isinstance(data, bytes) else str(data).encode(),
                {str(name): str(value) for name, value in message.custom_properties.items()},
                message.message_id or "",
                message.correlation_id or "",
                message.content_type or "",
            )
        )

    def _from_thread(self, handler: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(handler, *arguments)

    def _beside(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)


class Child:
    """The process: reads what the parent says, and keeps one session after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._session: Session | None = None
        self._session_number = 0
        self._stop = asyncio.Event()
        self._decoder = msgspec.msgpack.Decoder(ToChild)
        self._helper = ThreadPoolExecutor(2, "azure-handlers")

    async def run(self) -> int:
        """Serve until told to stop, the parent is gone, or the SDK has wedged; the exit status."""
        first = await read_frame(self._reader)
        if first is None:
            return 0
        settings = self._decoder.decode(first)
        if not isinstance(settings, Configure):
            return os.EX_PROTOCOL
        listening = asyncio.create_task(self._listen())
        status = await self._sessions(settings)
        listening.cancel()
        await self._flush()
        return status

    async def _sessions(self, settings: Configure) -> int:
        backoff = FullJitterBackoff(first_seconds=FIRST_RETRY_SECONDS, most_seconds=MOST_RETRY_SECONDS)
        while not self._stop.is_set():
            self._session_number += 1
            self._session = Session(self._session_number, settings, self._tell, self._helper)
            outcome = await self._session.run()
            self._session = None
            if outcome.wedged:
                self._tell(Disconnected(self._session_number, outcome.reason or "The SDK's client hangs.", -1.0))
                return EXIT_WEDGED
            if outcome.healthy:
                backoff.reset()
            delay = 0.0 if outcome.planned else backoff.next_seconds()
            self._tell(Disconnected(self._session_number, outcome.reason, delay))
            try:
                await asyncio.wait_for(self._stop.wait(), delay)
            except TimeoutError:
                continue
        return 0

    async def _listen(self) -> None:
        while (body := await read_frame(self._reader)) is not None:
            self._handle(self._decoder.decode(body))
        # The parent is gone: whatever is on its way is in its outbox still.
        os._exit(0)

    def _handle(self, record: ToChild) -> None:
        session = self._session
        if isinstance(record, Send):
            if session is not None and record.session == self._session_number:
                session.send(record.messages)
        elif isinstance(record, Stop):
            self._stop.set()
            if session is not None:
                session.stop()
        elif isinstance(record, Report):
            if session is None:
                self._tell(Reported(record.number, "The hub is not connected."))
            else:
                session.report(record)
        elif isinstance(record, MethodResult) and session is not None:
            session.answer(record)

    def _tell(self, record: Record) -> None:
        self._writer.write(frame(record))

    async def _flush(self) -> None:
        try:
            await asyncio.wait_for(self._writer.drain(), 1.0)
        except (OSError, TimeoutError):
            log.debug("the parent reads no more")


def _make_client(settings: Configure) -> Any:
    options: dict[str, Any] = {
        "connection_retry": False,
        "auto_connect": False,
        "ensure_desired_properties": False,
        "keep_alive": settings.keep_alive_seconds,
        "websockets": settings.websockets,
        "product_info": settings.product,
    }
    if settings.certificate_authority:
        options["server_verification_cert"] = settings.certificate_authority
    if settings.connection_string:
        return IoTHubDeviceClient.create_from_connection_string(
            settings.connection_string, sastoken_ttl=TOKEN_SECONDS, **options
        )
    return IoTHubDeviceClient.create_from_x509_certificate(
        X509(settings.certificate_file, settings.key_file),  # type: ignore[no-untyped-call]
        settings.hostname,
        settings.device_id,
        **options,
    )


def _message(telemetry: Telemetry) -> Message:
    message = Message(  # type: ignore[no-untyped-call]
        telemetry.payload,
        message_id=telemetry.message_id,
        content_encoding=telemetry.content_encoding or None,
        content_type=telemetry.content_type or None,
    )
    message.custom_properties = telemetry.properties
    return message


def _connect_reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "The hub did not answer in time."
    return explain(error)


async def _main(descriptor: int) -> int:
    loop = asyncio.get_running_loop()
    # One thread, so that the SDK hands messages to MQTT in the order in which they were given to it.
    loop.set_default_executor(ThreadPoolExecutor(1, "azure-sdk"))
    # The SDK completes futures of sends that were cancelled with their session.
    loop.set_exception_handler(lambda _, context: log.debug("after the end of a session: %s", context))
    connection = socket.socket(fileno=descriptor)
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 20)
    return await Child(reader, writer).run()


def main() -> None:
    """Run the process."""
    parser = argparse.ArgumentParser(description="The Azure sink's process; started by the agent.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the agent")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    status = asyncio.run(_main(arguments.fd))
    sys.stderr.flush()
    # The SDK's threads do not all end by themselves.
    os._exit(status)


if __name__ == "__main__":
    main()
