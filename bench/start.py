"""From the start of a node to its first message at the far end, with everything deployed before."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from bench import bare_agent
from bench.arrivals import Arrivals
from bench.harness import Aim, Figure, Options, progress
from bench.memory import idle_services
from bench.node import Broker, IotHub, Node, enrolled_node

TITLE = "start: from exec to the first message"


async def run(options: Options, folder: Path) -> list[Figure]:
    """Start a node again and again: its service submits one message as soon as it runs."""
    mqtt, azure, bare = [], [], []
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(folder / "broker"))
        hub = await stack.enter_async_context(IotHub(folder / "iothub"))
        arrivals = await stack.enter_async_context(Arrivals(broker.port))
        with_mqtt = await stack.enter_async_context(
            enrolled_node(folder / "mqtt", idle_services(1), config=broker.sink)
        )
        settings: dict[str, Any] = {"iotHub": await hub.device("bench")}
        with_azure = await stack.enter_async_context(
            enrolled_node(folder / "azure", idle_services(1), settings=settings)
        )
        for node in (with_mqtt, with_azure):
            # The first start downloads and stores the deployment; the others are measured.
            await node.start()
            await node.services_running(1)
            await node.sink_connected("mqtt" if node is with_mqtt else "azure")
            await node.stop()
        await arrivals.wait(1)
        for number in range(options.runs):
            bare.append(await _bare(broker, arrivals))
            began = await with_mqtt.start()
            ((_, arrived),) = await arrivals.wait(1)
            mqtt.append(arrived - began)
            await with_mqtt.stop()
            azure.append(await _azure(with_azure, hub))
            progress(
                f"  run {number + 1}: MQTT {mqtt[-1] * 1000:.0f} ms, IoT Hub {azure[-1] * 1000:.0f} ms, "
                f"bare agent {bare[-1] * 1000:.0f} ms"
            )
    aim = Aim("figure", "most", 0.5)
    return [
        Figure("first message at the MQTT broker", "s", mqtt, "bare agent", bare, aim),
        Figure("first message at the IoT Hub emulator", "s", azure, "bare agent, MQTT", bare),
    ]


async def _bare(broker: Broker, arrivals: Arrivals) -> float:
    began = time.perf_counter()
    process = await bare_agent.start(broker.port)
    ((_, arrived),) = await arrivals.wait(1)
    await bare_agent.stop(process)
    return arrived - began


async def _azure(node: Node, hub: IotHub) -> float:
    before = await hub.last_message_id()
    began = time.time()
    await node.start()
    (message,) = await hub.messages(after=before, count=1)
    await node.stop()
    arrived: float = message["arrived"]
    return arrived - began
