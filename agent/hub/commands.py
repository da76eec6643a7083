"""What the portal says, carried out: sign-in answers, deployments, commands."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from agent.errors import HubError, HubProtocolError, HubUnreachableError
from agent.hub.protocol import SignedManifest
from agent.orchestrator.deployments import DeploymentError, Deployments
from agent.runtime.collecting import collect_packages
from agent.settings import SignIn, store_settings

if TYPE_CHECKING:
    from agent.hub.reporter import Reporter
    from agent.hub.session import HubSession
    from agent.orchestrator.orchestrator import Orchestrator
    from agent.outbox.sinks.runner import Sinks
    from agent.paths import Paths

log = logging.getLogger(__name__)


class Commands:
    """Keeps the node as the portal wants it.

    Args:
        stored: the settings of the last sign-in, None before the first.
        restart: begins the agent anew.
    """

    def __init__(
        self, paths: Paths, deployments: Deployments, *, stored: SignIn | None, restart: Callable[[], None]
    ) -> None:
        self.settings = stored
        self.deployment = ""
        """The deployment that runs."""
        self.deployment_error = ""
        self._paths = paths
        self._deployments = deployments
        self._restart = restart
        self._session: HubSession
        self._orchestrator: Orchestrator
        self._reporter: Reporter
        self._sinks: Sinks
        # One deployment at a time: a second one waits and then finds what the first has staged.
        self._deploying = asyncio.Lock()
        self._services: list[str] = []
        """The deployment's services, stopped ones too."""
        self._changed = asyncio.Event()

    def connect(self, session: HubSession, orchestrator: Orchestrator, reporter: Reporter, sinks: Sinks) -> None:
        """Register the commands, and say whom they concern."""
        self._session, self._orchestrator, self._reporter, self._sinks = session, orchestrator, reporter, sinks
        for target, handler in {
            "ping": self._ping,
            "restart": self._restart_agent,
            "restartCom": self._restart_sinks,
            "changeState": self._change_state,
            "changeDebug": self._change_debug,
            "changeTracking": self._change_tracking,
            "updateDeployment": self._update_deployment,
            "reportState": self._report_state,
            "sendMessage": self._send_message,
        }.items():
            session.handle(target, handler)

    def settings_for_services(self) -> dict[str, Any]:
        """What `get_settings()` returns, also when the node has never been online since boot."""
        return self.settings.for_services() if self.settings else {}

    def use_stored_settings(self) -> None:
        """Go on with what the portal said last, before it is reached."""
        if self.settings is not None:
            self._sinks.set_iot_hub(self.settings.iot_hub)

    async def start_stored_deployment(self) -> None:
        """Start what was deployed last, without a network."""
        manifest = self._deployments.load()
        if manifest is not None and (self.settings is None or self.settings.active):
            self.deployment = manifest.deployment
            await self._orchestrator.apply(self._deployments.specs(manifest))

    async def tidy_up(self) -> None:
        """After each new deployment, delete packages that nothing uses, if they take much. Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await collect_packages(self._paths.packages, self._services)

    async def signed_in(self, settings: SignIn) -> None:
        """Take in a sign-in answer: settings, cloud, deployment."""
        self._take_settings(settings)
        await self._deploy(settings.manifest)
        self._reporter.signed_in()
        await self._orchestrator.broadcast("msb_signed_in", self.settings_for_services())

    def _take_settings(self, settings: SignIn) -> None:
        self.settings = settings
        try:
            store_settings(self._paths, settings)
        except OSError as error:
            # They hold until the agent ends, and the portal says them again.
            log.error("The portal's settings cannot be stored: %s", error, extra={"action": "settings_not_stored"})
        self._session.follow(settings.policies.disconnect_policy)
        self._orchestrator.settings_changed()
        self._sinks.set_iot_hub(settings.iot_hub)

    async def _deploy(self, signed: SignedManifest | None) -> None:
        async with self._deploying:
            if signed is None:
                return
            try:
                token = self.settings.script_token if self.settings else ""
                manifest = await self._deployments.stage(signed, partial(self._session.fetch, token=token))
                self._deployments.switch(signed)
            except HubUnreachableError:
                raise  # the next sign-in brings the deployment again
            except (DeploymentError, HubProtocolError) as error:
                await self._refuse(str(error))
                return
            except OSError as error:
                await self._refuse(
                    f"It cannot be stored in {self._paths.state}: {error.strerror}; the node keeps what it runs. "
                    "Free some space, then restart the node from the portal."
                )
                return
            self.deployment_error = ""
            changed = manifest.deployment != self.deployment
            self.deployment = manifest.deployment
            active = self.settings is None or self.settings.active
            await self._orchestrator.apply(self._deployments.specs(manifest) if active else [])
            self._deployments.collect(manifest)
            if changed:
                self._services = [service.id for service in manifest.services]
                self._changed.set()
                log.info(
                    "Deployment %s is in place: %s.",
                    manifest.deployment[:12],
                    ", ".join(f"{service.file} {service.version}" for service in manifest.services) or "no service",
                    extra={"action": "deployed"},
                )
            await self._reporter.deployment(manifest.deployment, "running", "")

    async def _refuse(self, why: str) -> None:
        self.deployment_error = why
        log.error("The deployment was not taken: %s", why, extra={"action": "deployment_refused"})
        await self._reporter.deployment("", "failed", why)

    # --- Commands: arguments as the portal sends them -----------------------------------------------------------

    async def _update_deployment(self, changes: dict[str, Any], *_: Any) -> None:
        if self.settings is None:
            raise HubProtocolError("A deployment came before the first sign-in.")
        self._take_settings(self.settings.updated(changes))
        try:
            signed = msgspec.convert(changes.get("manifest"), SignedManifest | None)
        except msgspec.ValidationError as error:
            raise HubProtocolError(f"The deployment cannot be read: {error}.") from error
        if signed is None:
            manifest = self._deployments.load()
            active = self.settings.active and manifest is not None
            await self._orchestrator.apply(self._deployments.specs(manifest) if active and manifest else [])
        else:
            await self._deploy(signed)

    async def _change_state(self, state: str, *_: Any) -> None:
        await self._update_deployment({"state": state})
        log.info("The portal set this node %s.", state, extra={"action": "state_changed"})

    async def _change_debug(self, on: bool, *_: Any) -> None:
        self._session.console_on = bool(on)
        if self.settings is not None:
            self._take_settings(self.settings.updated({"debug": bool(on)}))

    async def _change_tracking(self, on: bool, *_: Any) -> None:
        if self.settings is not None:
            self._take_settings(self.settings.updated({"enableTracking": bool(on)}))

    async def _restart_agent(self, *_: Any) -> None:
        self._restart()

    async def _restart_sinks(self, *_: Any) -> None:
        self._sinks.restart()

    async def _ping(self, who: str = "", *_: Any) -> None:
        assert self.settings is not None
        await self._session.invoke("pingResponse", self.settings.node_name, socket.gethostname(), "Online", who, False)

    async def _report_state(self, who: str = "", *_: Any) -> None:
        await self._session.invoke("reportStateResponse", await self._reporter.facts(), who)

    async def _send_message(self, message: Any, destination: str = "", action: str = "Process", *_: Any) -> None:
        if not destination:
            raise HubError("sendMessage needs the service that the message is for.")
        await self._orchestrator.send("msb", destination, action, message)
