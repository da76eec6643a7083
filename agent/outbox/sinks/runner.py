"""The sinks of this node: which there are, and that they run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.clock import Clock
from agent.config import AzureSinkConfig, MqttSinkConfig, SinksConfig
from agent.errors import ConfigError, OutstationError, StorageError
from agent.outbox.feed import Feed
from agent.outbox.sinks.azure import AzureSettings, AzureSink
from agent.outbox.sinks.base import Sink, SinkStatus
from agent.outbox.sinks.cloud import CloudHandler
from agent.outbox.store import Outbox
from agent.secret import Secret
from agent.settings import IotHubSettings

if TYPE_CHECKING:
    from agent.outbox.sinks.mqtt import MqttSettings

log = logging.getLogger(__name__)

FAILED_PAUSE_SECONDS = 10.0


class Sinks:
    """Runs every sink that the operator or the portal set up, each with its own place in the outbox.

    The operator's configuration beats what the portal says. On the loop only.

    Args:
        config: what the operator set up; ConfigError when it cannot be used.
        portal: the sink to the portal, which is always there.
        keep_without_hub: keep what waits for the IoT Hub while there is none (default yes).
    """

    def __init__(
        self,
        outbox: Outbox,
        config: SinksConfig,
        *,
        portal: Sink,
        node: str,
        clock: Clock,
        on_cloud_event: CloudHandler,
        keep_without_hub: bool = True,
    ) -> None:
        self._outbox = outbox
        self._keep_without_hub = keep_without_hub
        self._hub_was_taken_away = False
        """By the portal's word: settings that could not be read, or a hub that cannot be used, are no word."""
        self._config = config
        self._portal = portal
        self._node = node
        self._clock = clock
        self._on_cloud_event = on_cloud_event
        self._running: dict[str, tuple[Sink, asyncio.Task[None]]] = {}
        self._azure: AzureSettings | None = None
        self._azure_running: AzureSettings | None = None
        self._restart_wanted = False
        self._changed = asyncio.Event()
        check_sinks(config)
        if config.azure is not None:
            self._azure = _azure_settings(config.azure)

    def set_iot_hub(self, settings: IotHubSettings | None) -> None:
        """Send to the IoT Hub that the portal names, or to none for now; a connection string that is none is logged."""
        self._hub_was_taken_away = settings is None
        if self._config.azure is None:
            try:
                self._azure = None if settings is None else _assigned_settings(settings)
            except ConfigError as error:
                log.error("The portal's IoT Hub cannot be used: %s", error, extra={"action": "iot_hub_refused"})
        self._changed.set()

    def restart(self) -> None:
        """Connect every sink anew."""
        self._restart_wanted = True
        self._changed.set()

    def statuses(self) -> list[SinkStatus]:
        """How each stands."""
        return [sink.status() for sink, _ in self._running.values()]

    async def report(self, patch: dict[str, Any]) -> None:
        """Patch the device twin's reported properties. Raises ConnectionError while no IoT Hub is connected."""
        for sink, _ in self._running.values():
            if isinstance(sink, AzureSink):
                await sink.report(patch)
                return
        raise ConnectionError("This node has no IoT Hub; set its connection string in the portal.")

    async def run(self) -> None:
        """Run them until cancelled."""
        try:
            while True:
                self._changed.clear()
                if self._restart_wanted:
                    self._restart_wanted = False
                    await self._stop_all()
                if self._azure != self._azure_running:
                    await self._stop("azure")
                self._azure_running = self._azure
                for name, make in self._wanted().items():
                    if name not in self._running:
                        self._start(name, make)
                # Only the operator ends what is kept. What the portal says may be a slip, or a hub that comes back.
                is_over = self._hub_was_taken_away and not self._keep_without_hub
                await self._outbox.retain_sinks(set(self._wanted()) | (set() if is_over else {"azure"}))
                await self._changed.wait()
        finally:
            await self._stop_all()

    def _wanted(self) -> dict[str, Callable[[], Sink]]:
        wanted: dict[str, Callable[[], Sink]] = {"portal": lambda: self._portal}
        if (azure := self._azure) is not None:
            wanted["azure"] = lambda: AzureSink(azure, clock=self._clock, on_cloud_event=self._on_cloud_event)
        if (mqtt := self._config.mqtt) is not None:
            wanted["mqtt"] = lambda: _mqtt_sink(mqtt, self._node, self._clock)
        return wanted

    def _start(self, name: str, make: Callable[[], Sink]) -> None:
        try:
            sink = make()
        except OutstationError as error:
            # The messages wait in the outbox, and the node's other work goes on.
            log.error("The sink %s cannot run: %s", name, error, extra={"action": "sink_refused"})
            return
        feed = self._outbox.feed(name, sink.kinds)
        self._running[name] = (sink, asyncio.create_task(_keep(sink, feed), name=f"sink {name}"))

    async def _stop_all(self) -> None:
        await asyncio.gather(*(self._stop(name) for name in list(self._running)))

    async def _stop(self, name: str) -> None:
        if name in self._running:
            _, task = self._running.pop(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._outbox.drop_feed(name)


def check_sinks(config: SinksConfig) -> None:
    """Raise ConfigError for settings with which a sink cannot run. Reads the files that they name."""
    if config.azure is not None:
        _azure_settings(config.azure)
    if config.mqtt is not None:
        _mqtt_settings(config.mqtt)


async def _keep(sink: Sink, feed: Feed) -> None:
    while True:
        try:
            await sink.run(feed)
        except StorageError:
            return  # the outbox is closed: the agent ends
        except Exception:
            # Against its contract; the other sinks and the services have nothing to do with it.
            log.exception("The sink %s failed; it starts again.", sink.name, extra={"action": "sink_failed"})
        await asyncio.sleep(FAILED_PAUSE_SECONDS)


def _mqtt_sink(config: MqttSinkConfig, node: str, clock: Clock) -> Sink:
    from agent.outbox.sinks.mqtt import MqttSink

    return MqttSink(_mqtt_settings(config), node=node, clock=clock)


def _mqtt_settings(config: MqttSinkConfig) -> MqttSettings:
    from agent.outbox.sinks.mqtt import MqttSettings  # only where a broker is set up

    return MqttSettings(
        host=config.host,
        port=config.port,
        tls=config.tls,
        topic=config.topic,
        protocol=config.protocol,
        username=config.username,
        password=Secret(_read(config.password_file)),
        certificate_authority_file=_path(config.certificate_authority_file),
        certificate_file=_path(config.certificate_file),
        key_file=_path(config.key_file),
    )


def _assigned_settings(settings: IotHubSettings) -> AzureSettings:
    return AzureSettings(
        connection_string=Secret(settings.connection_string), certificate_authority=settings.certificate_authority
    )


def _azure_settings(config: AzureSinkConfig) -> AzureSettings:
    return AzureSettings(
        connection_string=Secret(_read(config.connection_string_file)),
        hostname=config.hostname,
        device_id=config.device_id,
        certificate_file=_path(config.certificate_file),
        key_file=_path(config.key_file),
        certificate_authority=_read(config.certificate_authority_file),
    )


def _path(file: str) -> Path | None:
    return Path(file) if file else None


def _read(file: str) -> str:
    try:
        return Path(file).read_text("utf-8").strip() if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
