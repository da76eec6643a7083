"""Peers for submitting: the MQTT client, the IoT Hub SDK and SQLite by themselves, each in a process of its own.

No services, no queue between them, and for the two clients no disk: what the libraries that the product is built on do
when nothing is asked of them but to send. Run as `python -m bench.bare_clients ROLE …` by `measure`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import threading
import time
from pathlib import Path

MESSAGE_BYTES = 200
_TOPIC = "outstation/bare/bench"


async def measure(role: str, *arguments: str | Path | int | float) -> float:
    """Messages a second of one run of `role`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "bench.bare_clients", role, *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 300)
    return float(json.loads(output))


def padding(document: dict[str, float]) -> str:
    """What fills a JSON document up to `MESSAGE_BYTES`."""
    return "x" * (MESSAGE_BYTES - len(json.dumps({**document, "text": ""})))


def mqtt(port: str, count: str, window: str, interval: str) -> float:
    """Publish with quality of service 1, `window` at once, until all are acknowledged.

    With an `interval` above 0 one is sent every so many seconds.
    """
    from paho.mqtt.client import Client, MQTTv5
    from paho.mqtt.enums import CallbackAPIVersion

    total, pause = int(count), float(interval)
    room = threading.Semaphore(int(window))
    left = total
    done = threading.Event()

    def published(*_: object) -> None:
        nonlocal left
        left -= 1
        room.release()
        if left == 0:
            done.set()

    connected = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.max_inflight_messages_set(int(window))
    client.on_connect = lambda *_: connected.set()
    client.on_publish = published
    client.connect("127.0.0.1", int(port))
    client.loop_start()
    connected.wait(10)
    filler = padding({"at": time.perf_counter(), "wall": time.time()})
    began = time.perf_counter()
    for _ in range(total):
        room.acquire()
        if pause:
            time.sleep(pause)
        document = {"at": time.perf_counter(), "wall": time.time(), "text": filler}
        client.publish(_TOPIC, json.dumps(document), qos=1)
    done.wait()
    elapsed = time.perf_counter() - began
    client.disconnect()
    client.loop_stop()
    return total / elapsed


def azure(file: str, count: str, window: str, interval: str) -> float:
    """Send with Azure's SDK, `window` at once, until all are acknowledged."""
    from azure.iot.device import Message
    from azure.iot.device.aio import IoTHubDeviceClient

    device = json.loads(Path(file).read_text("utf-8"))
    total, pause = int(count), float(interval)

    async def run() -> float:
        client = IoTHubDeviceClient.create_from_connection_string(
            device["connectionString"], server_verification_cert=device["certificateAuthority"]
        )
        await client.connect()
        filler = padding({"at": time.perf_counter(), "wall": time.time()})
        numbers = iter(range(total))

        async def worker() -> None:
            for _ in numbers:
                if pause:
                    await asyncio.sleep(pause)
                document = {"at": time.perf_counter(), "wall": time.time(), "text": filler}
                message = Message(json.dumps(document), None, "utf-8", "application/json")  # type: ignore[no-untyped-call]
                await client.send_message(message)

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(int(window))))
        elapsed = time.perf_counter() - began
        await client.shutdown()
        return total / elapsed

    return asyncio.run(run())


def sqlite(folder: str, count: str, batch: str, durability: str) -> float:
    """Append to a table in SQLite's write-ahead log, `batch` rows in a transaction."""
    total, size = int(count), int(batch)
    connection = sqlite3.connect(Path(folder) / f"bare-{durability}.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
    connection.execute("CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY, service TEXT, payload BLOB)")
    payload = b"x" * MESSAGE_BYTES
    began = time.perf_counter()
    for start in range(0, total, size):
        connection.execute("BEGIN")
        rows = (("bench_py", payload) for _ in range(min(size, total - start)))
        connection.executemany("INSERT INTO message (service, payload) VALUES (?, ?)", rows)
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - began
    connection.close()
    return total / elapsed


if __name__ == "__main__":
    print(json.dumps({"mqtt": mqtt, "azure": azure, "sqlite": sqlite}[sys.argv[1]](*sys.argv[2:])))
