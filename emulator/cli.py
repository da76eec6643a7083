"""`outstation iothub`: run the emulator and show what arrives."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from datetime import datetime
from pathlib import Path

from agent.errors import ConfigError
from agent.exitcodes import ExitCode
from agent.files import write_atomically
from agent.flags import add_flag
from agent.logs import LineHandler, LineWriter, clip
from agent.paths import default_state_directory
from emulator.report import Report
from emulator.server import MQTT_PORT, Emulator
from emulator.telemetry import Telemetry

HTTP_PORT = 8884
_PAGE = 500
_BODY_SHOWN_CHARACTERS = 200
_COUNTS_EVERY_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `outstation iothub`."""
    parser.description = (
        "Run a local Azure IoT Hub: devices with Microsoft's SDK connect to it by MQTT over TLS, a small HTTP API "
        "does what a cloud back end would. For demo, tests and development."
    )
    add_flag(
        parser,
        "--host",
        env="OUTSTATION_IOTHUB_HOST",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="IP address for devices. Several emulators at once: 127.0.0.1, 127.0.0.2, … each with port 8883.",
    )
    add_flag(
        parser,
        "--port",
        env="OUTSTATION_IOTHUB_PORT",
        default=MQTT_PORT,
        type=_port,
        help="MQTT port. Microsoft's SDK always dials 8883; another port (0: any) is for other clients only.",
    )
    add_flag(
        parser,
        "--http-host",
        env="OUTSTATION_IOTHUB_HTTP_HOST",
        metavar="ADDRESS",
        help="IP address for the HTTP API. Default: --host when that is loopback, else 127.0.0.1.",
    )
    add_flag(
        parser,
        "--http-port",
        env="OUTSTATION_IOTHUB_HTTP_PORT",
        default=HTTP_PORT,
        type=_port,
        help="Port of the HTTP API; 0 takes any.",
    )
    add_flag(
        parser,
        "--api-token",
        env="OUTSTATION_IOTHUB_API_TOKEN",
        default="",
        secret=True,
        help="Bearer token that the HTTP API asks for; needed when the API is not on loopback. "
        "Better given in the environment, where other users do not see it.",
    )
    parser.add_argument(
        "--hostname",
        action="append",
        default=[name for name in os.environ.get("OUTSTATION_IOTHUB_HOSTNAME", "").split(",") if name],
        metavar="NAME",
        help="A name that devices know this hub by, in its certificate and registry; may be repeated. The first is "
        "the HostName of connection strings. [env: OUTSTATION_IOTHUB_HOSTNAME, separated by commas]",
    )
    add_flag(
        parser,
        "--data",
        env="OUTSTATION_IOTHUB_DATA",
        metavar="DIR",
        help="Where devices, messages and certificates are kept. Default: iothub/ in the state directory.",
    )
    add_flag(
        parser,
        "--keep-messages",
        env="OUTSTATION_IOTHUB_KEEP_MESSAGES",
        default=100_000,
        type=_positive,
        metavar="N",
        help="The newest messages whose contents are kept; the counts are of all.",
    )
    add_flag(
        parser,
        "--ready-file",
        env="OUTSTATION_IOTHUB_READY_FILE",
        metavar="FILE",
        help="Write the addresses as JSON to FILE once devices can connect.",
    )
    add_flag(
        parser,
        "--quiet",
        env="OUTSTATION_IOTHUB_QUIET",
        switch=True,
        help="Print counts every 5 s instead of each message.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the emulator until SIGINT or SIGTERM; returns the exit status."""
    handler = LineHandler(LineWriter())
    log = logging.getLogger("emulator")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        return asyncio.run(_run(arguments))
    finally:
        log.removeHandler(handler)


async def _run(arguments: argparse.Namespace) -> int:
    data = Path(arguments.data) if arguments.data else default_state_directory() / "iothub"
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    screen = Screen()
    async with Emulator(
        data=data.absolute(),
        address=arguments.host,
        port=arguments.port,
        http_host=arguments.http_host or None,
        http_port=arguments.http_port,
        api_token=arguments.api_token or "",
        hostnames=arguments.hostname,
        keep_messages=arguments.keep_messages,
    ) as hub:
        if arguments.ready_file:
            await asyncio.to_thread(_write_ready, Path(arguments.ready_file), hub)
        screen.started(hub, address=arguments.host)
        showing = asyncio.create_task(_show_counts(hub, screen) if arguments.quiet else _show(hub, screen))
        waiting = asyncio.create_task(stopping.wait())
        await asyncio.wait({showing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        failure = showing.exception() if showing.done() else None
        for task in (showing, waiting):
            task.cancel()
        await asyncio.gather(showing, waiting, return_exceptions=True)
        if isinstance(failure, BrokenPipeError):
            # Whoever read the lines has gone (`| head`); nothing more can be said.
            _forget_output()
        elif failure is not None:
            raise failure
        else:
            await asyncio.to_thread(screen.counts, await hub.report())
    return ExitCode.OK


class Screen:
    """What the person sees; colours on a terminal only."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def started(self, hub: Emulator, *, address: str) -> None:
        """Where everything is, and what to do first."""
        self.write(
            [
                self._paint("Local IoT Hub", "1"),
                f"  devices    mqtts://{address}:{hub.mqtt_port} (known as {hub.mqtt_host})",
                f"  HTTP API   {hub.http_url}",
                f"  authority  {hub.ca_file}",
                f"  next       curl -X PUT {hub.http_url}/devices/my-device   (answers with its connection string)",
            ]
        )

    def message(self, message: Telemetry) -> str:
        """One line for one message."""
        moment = datetime.fromtimestamp(message.arrived).astimezone().strftime("%H:%M:%S.%f")[:-3]
        service = message.properties.get("os-service", "")
        place = f"{service} #{message.properties.get('os-sequence', '?')}" if service else ""
        text = message.text
        body = clip(text[:_BODY_SHOWN_CHARACTERS]).replace("\n", " ")
        more = "…" if len(text) > _BODY_SHOWN_CHARACTERS else ""
        again = self._paint(" (duplicate)", "33") if message.duplicate else ""
        parts = [self._paint(moment, "2"), self._paint(clip(message.device), "36"), clip(place), f"{body}{more}{again}"]
        return "  ".join(part for part in parts if part)

    def counts(self, report: Report) -> None:
        """One line for everything so far."""
        line = f"{report.received} received, {report.duplicates} duplicates, {report.missing} missing"
        if report.latency.count:
            line += f", p50 {report.latency.p50_ms:.1f} ms, p99 {report.latency.p99_ms:.1f} ms"
        self.write([self._paint(line, "31" if report.missing else "32")])

    def write(self, lines: list[str]) -> None:
        """Some lines, at once. Blocks when nobody reads them."""
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


async def _show(hub: Emulator, screen: Screen) -> None:
    after = hub.last_message_id
    while True:
        await hub.wait_arrival(after)
        page = await hub.messages(after=after, limit=_PAGE)
        lines = [screen.message(message) for message in page]
        after = page[-1].id if page else hub.last_message_id
        await asyncio.to_thread(screen.write, lines)


async def _show_counts(hub: Emulator, screen: Screen) -> None:
    after = hub.last_message_id
    while True:
        await hub.wait_arrival(after)
        after = hub.last_message_id
        await asyncio.to_thread(screen.counts, await hub.report())
        await asyncio.sleep(_COUNTS_EVERY_SECONDS)


def _write_ready(path: Path, hub: Emulator) -> None:
    document = {
        "mqtt_host": hub.mqtt_host,
        "mqtt_port": hub.mqtt_port,
        "http_url": hub.http_url,
        "ca_file": str(hub.ca_file),
        "pid": os.getpid(),
    }
    try:
        write_atomically(path, json.dumps(document).encode(), mode=0o644)
    except OSError as error:
        raise ConfigError(f"--ready-file {path} cannot be written: {error.strerror}.") from error


def _forget_output() -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is between 0 and 65535")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number
