"""The base classes of services.

A service is one file with one class of the same name:

    from base_service import CustomService

    class Heating(CustomService):
        async def Start(self):
            self.target = self.GetPropertyValue("static", "target")
            await self.Debug(f"Heating to {self.target} degrees")

        async def set_target(self, args):
            self.target = args.message[0]["celsius"]
            await self.SubmitMessage({"target": self.target})

Every coroutine may be awaited from the service's own loop, from another thread's loop
(`asyncio.run(self.Debug("pressed"))` in a gpiozero callback) and from several tasks at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import json
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, ClassVar, Literal, cast, get_args

from services.sdk import runtime as _runtimes
from services.sdk.errors import NotRunningError, PackagesUnavailableError
from services.sdk.payload import encode, text_of
from services.sdk.queue_message import QueueMessage
from services.sdk.runtime import DONE, Handler, Priority, Runtime, on_loop
from services.sdk.topics import check_topic, check_topic_filter

RESERVED_FAULT_CODE = 90_000
"""Fault codes from here on are the agent's own."""
CONFIGURATION_LIMIT_BYTES = 4 * 1024 * 1024
CONFIGURATION_TIMEOUT_SECONDS = 30.0
UNDEFINED = "undefined"


class BaseService:
    """What every service has: a life cycle, messages to other services, to the cloud and to the console.

    Args:
        id: the service's id, for instance `readgpio_py`.
        queue: the node's queue; see `ServiceQueue`.
    """

    _runtime: Runtime
    """Only there when a node or a test's harness is around the object."""
    id: str
    config: dict[str, Any]

    def __new__(cls, *_arguments: Any, **_options: Any) -> BaseService:
        """Bind the object to the process's runtime before any constructor runs: authors call the API in theirs."""
        service = super().__new__(cls)
        runtime = _runtimes.current()
        if runtime is not None:
            service._runtime = runtime
            service.id, service.config = runtime.identify()
        return service

    def __init__(self, id: str, queue: Any) -> None:
        self.id = id
        self.queue = queue
        self.task: Any = None

    # --- Life cycle: override what you need -------------------------------------------------------------------

    async def Start(self) -> None:
        """Begin. Called once the script, its packages and the constructor are through; may return or run for ever."""

    async def Stop(self) -> None:
        """End loops and release devices. Called before the service's tasks are cancelled; has 10 seconds by default."""

    async def Process(self, message: QueueMessage) -> None:
        """Handle a message from another service; the default action."""

    async def StateUpdate(self, message: QueueMessage) -> None:
        """Handle the device twin: `message.message[0]` is `{"desired": {...}, "reported": {...}}`.

        Called when the cloud connection is up and at each change. May run for ever: it blocks nobody.
        """

    async def msb_signed_in(self, args: QueueMessage) -> None:
        """Handle a sign-in of the node."""

    # --- To the console and the portal -------------------------------------------------------------------------

    async def Debug(self, message: Any) -> None:
        """Show `message`, of any type, in the node's log, and in the portal's console while that is on.

        Example:
            await self.Debug("Started")
        """
        runtime = self._attached("Debug")
        await on_loop(runtime, runtime.log, self.id, "debug", text_of(message))

    async def Warning(self, message: Any) -> None:
        """As `Debug`, in yellow."""
        runtime = self._attached("Warning")
        await on_loop(runtime, runtime.log, self.id, "warning", text_of(message))

    async def ThrowError(
        self, message: Any, fault_code: str | int | None = None, fault_description: Any = None
    ) -> None:
        """Report an error: red in the console, and durably to the portal, where it feeds alerts.

        Returns once it is in the node's outbox: it reaches the portal also after an outage.

        Args:
            message: text, or a dict, which may hold `fault_code` and `fault_description` itself.
            fault_code: a number or text below 90000; those above are the agent's own (ValueError).
            fault_description: more about it.

        Example:
            await self.ThrowError("Unable to read GPIO", "666", "The pin is in use")
        """
        runtime = self._attached("ThrowError")
        fault = _fault(message, fault_code, fault_description)
        await on_loop(runtime, runtime.submit, self.id, encode(fault), kind="fault")

    async def Track(self, message: Any, description: str | None = None) -> None:
        """Send a tracking record to the portal while tracking is on for the node.

        Args:
            message: a dict or anything else JSON can hold (ValueError otherwise).
            description: added to the record.
        """
        runtime = self._attached("Track")
        record = dict(message) if isinstance(message, dict) else {"message": message}
        if description is not None:
            record["description"] = description
        await on_loop(runtime, runtime.submit, self.id, encode(record), kind="tracking")

    def printf(self, text: Any) -> None:
        """Write a line to the node's own log, unbuffered. From any thread, also before `super().__init__`."""
        runtime = _runtimes.current()
        if runtime is None:
            print(text, flush=True)  # noqa: T201 - without a node this is what the author expects
        else:
            runtime.print_line(text_of(text))

    # --- To the cloud --------------------------------------------------------------------------------------------

    async def SubmitMessage(
        self,
        message: Any,
        *,
        priority: Priority = "live",
        ttl: float | None = None,
        properties: dict[str, str] | None = None,
    ) -> None:
        """Send `message` to the cloud. **When the await returns, it is in the node's durable outbox.**

        Example:
            await self.SubmitMessage({"celsius": 21.5}, properties={"room": "kitchen"})

        Args:
            message: `str` or `bytes`, sent as they are (`application/json` if they parse as that), or anything that
                JSON can hold.
            priority: `"live"` (default), or `"bulk"` for what may wait behind live messages.
            ttl: seconds after which the message is worthless and may be dropped; None (default) for never.
            properties: message properties, text to text.

        Raises:
            ValueError: at the call, when the message is not serialisable or larger than the cloud takes (256 KiB with
                its properties); the text says what and how large.
            TypeError: when an argument has a wrong type.
            SubmissionRefusedError: when the outbox cannot take it.
        """
        runtime = self._attached("SubmitMessage")
        _check_submission(priority, ttl, properties)
        await on_loop(
            runtime,
            runtime.submit,
            self.id,
            encode(message),
            priority=priority,
            ttl_seconds=ttl,
            properties=properties,
        )

    # --- To other services ---------------------------------------------------------------------------------------

    async def SubmitAction(self, destination: str, action: str, message: Any) -> None:
        """Call method `action` of the service `destination` with a `QueueMessage` that holds `message`.

        Returns when the message is accepted, not when it is handled; waits while the other side has 1,000 unhandled.
        A service or method that does not exist is a warning in the console, not an exception.

        Example:
            await self.SubmitAction("heating_py", "set_target", {"celsius": 21})

        Args:
            destination: a service's id, in any case, with or without `_py`; `*` is every service with the method.
            action: the method's name.
            message: what msgpack can hold: None, bool, numbers, text, bytes, dates, lists and dicts of them.

        Raises:
            TypeError: for a payload of another type, naming it.
            ValueError: for a payload of more than 1 MiB.
        """
        runtime = self._attached("SubmitAction")
        await on_loop(runtime, _hand_over, runtime, self.id, destination, action, message)

    async def Request(self, destination: str, action: str, message: Any = None, timeout: float = 30) -> Any:
        """Call method `action` of the service `destination` and return what it returns.

        Example:
            target = await self.Request("heating_py", "get_target", None, timeout=5)

        Args:
            timeout: seconds to wait (default 30).

        Raises:
            TimeoutError: when no answer came in time.
            LookupError: when there is no such service or method.
            ServiceError: when the method raised.
            TypeError: for a payload that msgpack cannot hold.
        """
        runtime = self._attached("Request")
        return await on_loop(runtime, runtime.request, self.id, destination, action, message, timeout)

    async def Publish(self, topic: str, message: Any) -> None:
        """Publish an event to every service of this node that subscribed to its topic.

        Example:
            await self.Publish("room/kitchen/temperature", 21.5)

        Raises ValueError for an empty topic or one with `+` or `#` in it, TypeError as `SubmitAction`.
        """
        runtime = self._attached("Publish")
        check_topic(topic)
        await on_loop(runtime, runtime.publish, self.id, topic, message)

    def Subscribe(self, topic_filter: str, handler: Handler) -> Awaitable[None]:
        """Have `handler` called with a `QueueMessage` for every event whose topic matches.

        `.action` is the topic, `.source` the service that published. May be awaited, and need not be.

        Example:
            self.Subscribe("room/+/temperature", self.on_temperature)

        Args:
            topic_filter: an MQTT topic filter: `+` stands for one level, `#` at the end for all further ones.
            handler: a function or coroutine function with one argument.

        Raises ValueError for a filter that MQTT would refuse, TypeError for a handler that cannot be called.
        """
        runtime = self._attached("Subscribe")
        check_topic_filter(topic_filter)
        if not callable(handler):
            raise TypeError(f"The handler for {topic_filter!r} is a {type(handler).__name__}, not a function.")
        return _begin(runtime, runtime.subscribe, self.id, topic_filter, handler)

    async def StartCustomServices(self) -> None:
        """Start every custom service of the node that is stopped or failed."""
        await self.Request("orchestrator", "StartCustomServices", None)

    async def StopCustomServices(self) -> None:
        """Stop every custom service of the node but this one, until they are started again."""
        await self.Request("orchestrator", "StopCustomServices", None)

    async def StartService(self, service: BaseService) -> None:
        """Run a service object that the caller made, in the caller's process, under the object's own id."""
        runtime = self._attached("StartService")
        if not isinstance(service, BaseService):
            raise TypeError(f"StartService takes a service object, not a {type(service).__name__}.")
        await on_loop(runtime, runtime.start_service, service)

    # --- What the service is to know -------------------------------------------------------------------------------

    def get_settings(self) -> dict[str, Any]:
        """Return the settings of the node's last sign-in, a copy: `nodeName`, `tags`, `state`, `deviceState` and so on.

        No secret of the node is in it. Works without a network, with what the last sign-in brought.
        """
        return self._attached("get_settings").settings()

    async def get_configuration(self) -> Any:
        """Fetch the JSON document that `deviceState.desired.msbConfig.uri` of the settings names, or return None."""
        desired = (self.get_settings().get("deviceState") or {}).get("desired") or {}
        uri = (desired.get("msbConfig") or {}).get("uri")
        if not uri:
            return None
        try:
            return await asyncio.to_thread(_fetch_json, uri)
        except (OSError, ValueError) as error:
            await self.Warning(f"The configuration at {uri} could not be fetched: {error}")
            return None

    def AddPipPackage(self, package: str, module: str, name: str) -> Any:
        """Make sure that `module` can be imported, installing `package` for this service alone, and return its `name`.

        Synchronous; from any thread, also before `super().__init__`.

        Example:
            Client = self.AddPipPackage("paho-mqtt<3", "paho.mqtt.client", "Client")

        Args:
            package: any PEP 508 requirement.
            module: the module to import.
            name: what to return of it.

        Raises:
            Exception: `('InstallPackage', 'Failed to install …')`; the installer's last lines are in the log.
        """
        runtime = _runtimes.current()
        # Field code names modules of Python itself too; the package index knows nothing of them.
        if runtime is not None and module.partition(".")[0] not in sys.stdlib_module_names:
            try:
                runtime.ensure_packages([package])
            except PackagesUnavailableError as error:
                raise _install_error(package, error) from error
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise _install_error(package, error) from error
        return getattr(found, name)

    def _attached(self, method: str) -> Runtime:
        try:
            return self._runtime
        except AttributeError:
            raise NotRunningError(
                f"{type(self).__name__}.{method} needs a node, and this object has none around it. "
                "To try a service in a test, make it with agent.testing.ServiceHarness."
            ) from None


class CustomService(BaseService):
    """A service that a user writes and assigns to nodes.

    Args:
        id: the service's id, for instance `readgpio_py`.
        queue: the node's queue; see `ServiceQueue`.
        config: the properties' values; read them with `GetPropertyValue`. Older services do not pass it.
    """

    def __init__(self, id: str, queue: Any, config: dict[str, Any] | None = None) -> None:
        super().__init__(id, queue)
        if config is not None:
            self.config = config

    def GetPropertyValue(self, type: str, name: str) -> Any:
        """Return the value of a property, or the text `"undefined"` where there is none.

        Example:
            pin = self.GetPropertyValue("static", "gpio_pin")

        Args:
            type: `"general"`, `"static"` or `"security"`.
            name: the property's id.
        """
        for entry in getattr(self, "config", {}).get(f"{type}Config") or ():
            if entry["id"] == name:
                return entry.get("value", UNDEFINED)
        return UNDEFINED

    def GetState(self) -> Any:
        """Return whether the service is enabled: the general property `enabled`."""
        return self.GetPropertyValue("general", "enabled")


class ServiceQueue:
    """The node's queue, as services hold it: `self.queue.put(QueueMessage(...))` is the same as `SubmitAction`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def put(self, message: QueueMessage) -> Awaitable[None]:
        """Hand a message over. May be awaited, and need not be; from any thread.

        Raises TypeError for what is not a QueueMessage or has a payload that cannot be sent.
        """
        if not isinstance(message, QueueMessage):
            raise TypeError(f"The queue takes QueueMessage objects, not a {type(message).__name__}.")
        return _begin(
            self._runtime,
            _hand_over,
            self._runtime,
            message.source,
            message.destination,
            message.action,
            message.message[0],
        )

    put_nowait = put


class _Begun:
    """Something under way on the runtime's loop; awaited from any loop or not at all."""

    def __init__(self, future: asyncio.Future[None] | concurrent.futures.Future[None]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, None]:
        if isinstance(self._future, concurrent.futures.Future):
            return asyncio.wrap_future(self._future).__await__()
        return self._future.__await__()


_background: set[asyncio.Future[None]] = set()


def _begin(runtime: Runtime, method: Callable[..., Awaitable[None]], /, *arguments: Any) -> Awaitable[None]:
    """Do it now, in order with what came before; what is left to wait for goes on by itself."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is not runtime.loop:
        return _Begun(asyncio.run_coroutine_threadsafe(_await(method, arguments), runtime.loop))
    left = method(*arguments)
    if left is DONE:
        return DONE
    task = asyncio.ensure_future(left)
    _background.add(task)
    task.add_done_callback(_background.discard)
    return _Begun(task)


async def _await(method: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]) -> None:
    await method(*arguments)


class _BuiltInActions:
    """What field code puts on the queue for the built-in services by hand, instead of calling the method for it."""

    levels: ClassVar[dict[str, Literal["debug", "warning"]]] = {"_debug": "debug", "_warning": "warning"}

    @classmethod
    def hand_over(cls, runtime: Runtime, source: str, destination: str, action: str, message: Any) -> Awaitable[None]:
        if destination == "com":
            return runtime.submit(source, encode(message))
        if action in cls.levels:
            return runtime.log(source, cls.levels[action], text_of(message))
        if action == "_track":
            record = message if isinstance(message, dict) else {"message": message}
            return runtime.submit(source, encode(record), kind="tracking")
        return runtime.submit(source, encode(_fault(message, None, None)), kind="fault")


_BUILT_IN_ACTIONS = frozenset(
    [("com", "_sendEvent"), *(("logger", action) for action in ("_debug", "_warning", "_error", "_track"))]
)


def _hand_over(runtime: Runtime, source: str, destination: str, action: str, message: Any) -> Awaitable[None]:
    if (destination, action) in _BUILT_IN_ACTIONS:
        return _BuiltInActions.hand_over(runtime, source, destination, action, message)
    return runtime.send(source, destination, action, message)


def _fault(message: Any, code: str | int | None, description: Any) -> dict[str, Any]:
    if isinstance(message, dict):
        details = dict(message)
        code = details.pop("fault_code", None) if code is None else code
        description = details.pop("fault_description", None) if description is None else description
        text = details.pop("message", None) if set(details) == {"message"} else None
        text = text_of(text) if text is not None else json.dumps(details, default=text_of)
    else:
        text = text_of(message)
    code = None if code is None else text_of(code)
    if code is not None and code.isdecimal() and int(code) >= RESERVED_FAULT_CODE:
        raise ValueError(f"Fault code {code} is reserved: those from {RESERVED_FAULT_CODE} on are the agent's own.")
    return {
        "code": code or "",
        "text": text,
        "description": None if description is None else text_of(description),
    }


def _install_error(package: str, reason: Exception) -> Exception:
    # Field code catches Exception and reads its two arguments.
    return Exception("InstallPackage", f"Failed to install {package}: {reason}")


def _check_submission(priority: str, ttl: float | None, properties: Mapping[Any, Any] | None) -> None:
    if priority not in get_args(Priority):
        raise ValueError(f"priority is {priority!r}; it may be 'live' or 'bulk'.")
    if ttl is not None:
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
            raise TypeError(f"ttl is a {type(ttl).__name__}; it is a number of seconds.")
        if not ttl > 0:
            raise ValueError(f"ttl is {ttl}; it is a number of seconds above 0.")
    if properties is not None:
        for key, value in properties.items():
            if not (isinstance(key, str) and isinstance(value, str)):
                raise TypeError(f"The property {key!r} is not text to text: its value is a {type(value).__name__}.")
            if key.startswith("os-") or not key:
                raise ValueError(
                    f"The property {key!r} cannot be used: names that start with 'os-' are the agent's own."
                )


def _fetch_json(uri: str) -> Any:
    if not uri.startswith(("https://", "http://")):
        raise ValueError("only http and https addresses are fetched")
    # Imported here: it is a megabyte that most services never use.
    import urllib.request

    with urllib.request.urlopen(uri, timeout=CONFIGURATION_TIMEOUT_SECONDS) as response:  # noqa: S310 - checked above
        content = cast(bytes, response.read(CONFIGURATION_LIMIT_BYTES + 1))
    if len(content) > CONFIGURATION_LIMIT_BYTES:
        raise ValueError(f"it is larger than {CONFIGURATION_LIMIT_BYTES} bytes")
    return json.loads(content)
