"""A service's first second, played through in the template process.

The interpreter rewrites code as it first runs (its inline caches), fills caches and imports late. What has happened
before the fork is shared by all children; what happens after it costs each of them its own copy of the pages.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import msgspec

from agent.runtime import frames, loading
from agent.runtime.client import NodeRuntime
from agent.runtime.deliveries import Deliveries
from agent.runtime.frames import Accepted, Begin, Committed, Deliver, FrameLink, encode_payload
from services.sdk import runtime as sdk_runtime
from services.sdk.base_service import BaseService, ServiceQueue

_NAME = "OutstationRehearsal"
_SOURCE = f'''
import json
from base_service import CustomService

class {_NAME}(CustomService):
    def __init__(self, id, queue, config):
        super().__init__(id, queue, config)

    async def Start(self):
        self.pin = self.GetPropertyValue("static", "pin")
        await self.Debug("Started")
        await self.SubmitMessage({{"pin": self.pin}})
        await self.SubmitAction("{_NAME}", "Process", json.dumps({{"pin": self.pin}}))

    async def Process(self, message):
        self.get_settings()
'''


def rehearse() -> None:
    """Load a service, start it, and pass messages both ways, over a socket that ends in this process."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_play(loop))
    finally:
        sdk_runtime.attach(None)
        sys.modules.pop(_NAME, None)
        asyncio.set_event_loop(None)
        loop.close()


async def _play(loop: asyncio.AbstractEventLoop) -> None:
    begin = Begin(
        service="rehearsal_py",
        class_name=_NAME,
        file_name=f"{_NAME}.py",
        version="1",
        script=f"{_NAME}.py",
        sha256="",
        config={"staticConfig": [{"id": "pin", "value": 17}]},
        environment={},
        settings=msgspec.Raw(msgspec.msgpack.encode({"nodeName": ""})),
        folder="",
        packages="",
        spill="",
    )
    agent_end, service_end = socket.socketpair()
    heard = asyncio.Event()

    def agent_hears(frame: frames.Frame) -> None:
        if isinstance(frame, frames.Submit):
            agent.write(Committed(frame.sequence))
        elif isinstance(frame, frames.Action):
            agent.write(Accepted(frame.destination, 1))
            agent.write(Deliver(begin.service, begin.service, frame.action, 0, frame.payload))
        elif isinstance(frame, frames.Finished):
            heard.set()

    def service_hears(frame: frames.Frame) -> None:
        if isinstance(frame, Deliver):
            deliveries.deliver(frame)
        elif isinstance(frame, Committed):
            runtime.committed(frame)
        elif isinstance(frame, Accepted):
            runtime.accepted(frame)

    async def adopt(_service: BaseService) -> None:
        """Not played."""

    _, agent = await loop.create_unix_connection(
        lambda: FrameLink(msgspec.msgpack.Decoder(frames.FromProcess), agent_hears, lambda _: None), sock=agent_end
    )
    _, link = await loop.create_unix_connection(
        lambda: FrameLink(msgspec.msgpack.Decoder(frames.FromAgent), service_hears, lambda _: None, eager=True),
        sock=service_end,
    )
    services: dict[str, BaseService] = {}
    runtime = NodeRuntime(loop, link, begin, producer="rehearsal", adopt=adopt)
    deliveries = Deliveries(link, runtime, services)
    sdk_runtime.attach(runtime)
    found = loading.find_class(begin, loading.compile_script(begin, _SOURCE.encode()))
    service = services[begin.service] = loading.construct(found, begin.service, ServiceQueue(runtime), begin.config)
    await service.Start()
    for number in range(10):
        agent.write(Deliver(begin.service, begin.service, "Process", 0, encode_payload(number)))
    await heard.wait()
    link.close()
    await agent.gone.wait()
    await link.gone.wait()
