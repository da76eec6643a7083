"""Telemetry, twins, direct methods and cloud-to-device messages, with Microsoft's SDK and by hand."""

import asyncio
import base64
import json
import time

import pytest
from amqtt.mqtt.publish import PublishPacket
from azure.iot.device import Message, MethodResponse, exceptions

from emulator import codec, topics
from emulator.errors import (
    DeviceNotFoundError,
    DeviceOfflineError,
    MessageInvalidError,
    MethodTimeoutError,
    QueueFullError,
)
from emulator.hub import decode_payload
from emulator.server import Emulator, free_loopback_address

# The SDK asks for paho's older callbacks.
pytestmark = pytest.mark.filterwarnings("ignore:Callback API version 1 is deprecated:DeprecationWarning")


def events(device: str = "pi-1", properties: str = "") -> str:
    return f"devices/{device}/messages/events/{properties}"


def publish(topic: str, payload: bytes = b"x", *, packet_id: int = 1, qos: int = 1, retain: bool = False) -> bytes:
    return bytes(PublishPacket.build(topic, payload, packet_id if qos else None, False, qos, retain).to_bytes())


async def test_telemetry_arrives_with_its_properties(hub, device):
    message = Message('{"wärme": 21.5}', message_id="m/1 +ü", content_type="application/json", content_encoding="utf-8")
    message.correlation_id = "c=1"
    message.custom_properties = {"Größe & Maß/+": "a&b=c d+e %41", "日本": "語🌡", "leer": "x"}
    before = time.time()

    await device.send(message)

    (telemetry,) = await hub.wait_for(1)
    assert telemetry.json() == {"wärme": 21.5}
    assert telemetry.system == {
        "message_id": "m/1 +ü",
        "correlation_id": "c=1",
        "content_type": "application/json",
        "content_encoding": "utf-8",
    }
    assert telemetry.properties == message.custom_properties
    assert (telemetry.id, telemetry.device) == (1, "pi-1")
    assert before <= telemetry.arrived <= time.time()


@pytest.mark.parametrize("payload", [b"", bytes(range(256)), "ü".encode() * 1000])
async def test_any_payload_arrives_as_it_was_sent(hub, device, payload):
    await device.send(Message(payload))
    assert (await hub.wait_for(1))[0].payload == payload


async def test_many_messages_at_once_all_arrive_and_are_accounted_for(hub, device):
    async def send_all(client) -> None:
        async def send(number: int) -> None:
            message = Message(json.dumps({"edge_time": time.time()}))
            message.custom_properties = {
                "os-node": "pi-1",
                "os-stream": "s",
                "os-service": "readgpio_py",
                "os-sequence": str(number),
            }
            await client.send_message(message)

        await asyncio.gather(*(send(number) for number in range(1, 301)))

    await device.run(send_all, timeout_seconds=60)

    report = await hub.report()
    assert (report.received, report.distinct, report.missing, report.duplicates) == (300, 300, 0, 0)
    assert report.latency.count == 300
    assert report.latency.p99_ms is not None
    assert 0 <= report.latency.p99_ms < 60_000


async def test_a_message_sent_again_is_a_duplicate(hub, device):
    message = Message("x")
    message.custom_properties = {"os-node": "n", "os-stream": "s", "os-service": "v", "os-sequence": "1"}
    await device.send(message)
    await device.send(message)

    assert [telemetry.duplicate for telemetry in await hub.wait_for(2)] == [False, True]
    assert (await hub.report()).duplicates == 1


async def test_a_message_is_acknowledged_after_it_is_stored(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.send(publish(events(), packet_id=77))
    assert await client.receive() == (0x40, b"\x00\x4d")
    assert hub.last_message_id == 1


async def test_a_message_at_qos_0_arrives_too(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.send(publish(events(), qos=0))
    assert (await hub.wait_for(1))[0].payload == b"x"


async def test_a_retained_message_is_marked_as_iot_hub_marks_it(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.send(publish(events(properties="a=b"), retain=True))
    assert (await hub.wait_for(1))[0].properties == {"a": "b", "mqtt-retain": "true"}


async def test_a_message_over_256_kib_cuts_the_link_and_is_not_stored(hub, device):
    message = Message("x" * 262_000)
    message.custom_properties = {"k" * 300: "v"}

    with pytest.raises(
        (exceptions.ConnectionDroppedError, exceptions.NoConnectionError, exceptions.OperationCancelled)
    ):
        await device.send(message)

    await hub.wait_connected("pi-1", connected=False)
    assert hub.last_message_id == 0


async def test_a_message_of_just_256_kib_arrives(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.send(publish(events(properties="a=b"), b"x" * (256 * 1024 - 3)))
    assert await client.receive() == (0x40, b"\x00\x01")
    await client.send(publish(events(properties="a=b"), b"x" * (256 * 1024 - 2)))
    await client.ended()
    assert hub.last_message_id == 1


@pytest.mark.parametrize(
    "packet",
    [
        publish("home/kitchen"),
        publish(events("pi-2")),
        publish(events(), qos=2),
        codec.connack(0),
        b"\x30\xff\xff\xff\x7f",
        b"\xff\xff\xff\xff\xff\xff",
    ],
    ids=["foreign topic", "another's topic", "QoS 2", "a server's packet", "too long", "rubbish"],
)
async def test_what_iot_hub_does_not_take_cuts_the_link(hub, raw, packet):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.send(packet)
    await client.ended()
    assert not hub.is_connected("pi-1")
    assert hub.last_message_id == 0


async def test_other_topics_cannot_be_subscribed_to(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    wanted = [(topics.METHODS_FILTER, 2), ("devices/pi-2/messages/devicebound/#", 1), ("#", 0)]
    assert await client.subscribe(*wanted) == [1, codec.SUBSCRIPTION_REFUSED, codec.SUBSCRIPTION_REFUSED]


async def test_the_twin_can_be_read_reported_to_and_kept(hub, device, tmp_path):
    await hub.patch_desired("pi-1", {"interval": 5, "deep": {"a": 1}})

    assert await device.run(lambda client: client.get_twin()) == {
        "desired": {"interval": 5, "deep": {"a": 1}, "$version": 2},
        "reported": {"$version": 1},
    }
    await device.run(lambda client: client.patch_twin_reported_properties({"state": "ok", "gone": 1}))
    await device.run(lambda client: client.patch_twin_reported_properties({"gone": None, "ü": [1, 2]}))
    assert hub.twin("pi-1")["reported"] == {"state": "ok", "ü": [1, 2], "$version": 3}


async def test_a_change_of_desired_properties_reaches_the_device(hub, device):
    await device.listen("on_twin_desired_properties_patch_received")
    await hub.patch_desired("pi-1", {"interval": 7, "old": None})
    assert await device.next() == {"interval": 7, "old": None, "$version": 2}


async def test_a_reported_patch_that_is_too_large_is_answered_with_an_error(hub, device):
    with pytest.raises(exceptions.ClientError) as caught:
        await device.run(lambda client: client.patch_twin_reported_properties({"a": "x" * 40_000}))
    assert isinstance(caught.value.__cause__, exceptions.ServiceError)
    assert hub.twin("pi-1")["reported"] == {"$version": 1}


@pytest.mark.parametrize("payload", [b"", b"[1]", b"{", b'{"a":' * 5000], ids=["empty", "array", "cut", "deep"])
async def test_a_malformed_report_is_answered_with_an_error(hub, raw, payload):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.subscribe((topics.TWIN_ANSWERS_FILTER, 1))
    await client.send(publish("$iothub/twin/PATCH/properties/reported/?$rid=9", payload))
    assert await client.receive() == (0x40, b"\x00\x01")
    kind, body = await client.receive()
    assert kind == 0x30
    assert b"$iothub/twin/res/400/?$rid=9" in body


async def test_desired_properties_that_cannot_be_are_refused(hub, device):
    with pytest.raises(MessageInvalidError):
        await hub.patch_desired("pi-1", {"a": "x" * 40_000})
    with pytest.raises(DeviceNotFoundError):
        await hub.patch_desired("pi-2", {})
    assert hub.twin("pi-1")["desired"] == {"$version": 1}


async def test_a_direct_method_is_answered(hub, device):
    async def answer(request) -> None:
        response = MethodResponse.create_from_method_request(
            request, 202, {"got": request.payload, "name": request.name}
        )
        await device.client.send_method_response(response)

    await device.listen("on_method_request_received", answer)

    result = await hub.invoke_method("pi-1", "set/Wärme", {"to": "21 °C"})

    assert (result.status, result.payload) == (202, {"got": {"to": "21 °C"}, "name": "set/Wärme"})


async def test_methods_at_the_same_time_get_their_own_answers(hub, device):
    async def answer(request) -> None:
        await device.client.send_method_response(
            MethodResponse.create_from_method_request(request, 200, request.payload * 2)
        )

    await device.listen("on_method_request_received", answer)

    results = await asyncio.gather(*(hub.invoke_method("pi-1", "double", number) for number in range(20)))

    assert [result.payload for result in results] == [number * 2 for number in range(20)]


async def test_a_method_of_a_device_that_is_away_is_refused(hub):
    await hub.create_device("pi-1")
    with pytest.raises(DeviceOfflineError, match="not connected"):
        await hub.invoke_method("pi-1", "do")
    with pytest.raises(DeviceNotFoundError):
        await hub.invoke_method("pi-2", "do")


async def test_a_method_can_wait_for_the_device_to_come(hub, raw):
    await hub.create_device("pi-1")
    call = asyncio.create_task(
        hub.invoke_method("pi-1", "do", connect_timeout_seconds=20, response_timeout_seconds=0.1)
    )
    await raw(sign_in="pi-1")
    with pytest.raises(DeviceOfflineError, match="does not listen"):
        await call


async def test_a_method_that_is_not_answered_times_out(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.subscribe((topics.METHODS_FILTER, 0))
    with pytest.raises(MethodTimeoutError, match=r"within 0\.1 s"):
        await hub.invoke_method("pi-1", "do", response_timeout_seconds=0.1)


async def test_a_method_of_a_device_that_leaves_ends_at_once(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.subscribe((topics.METHODS_FILTER, 0))
    call = asyncio.create_task(hub.invoke_method("pi-1", "do"))
    await client.receive()
    hub.cut("pi-1")
    with pytest.raises(DeviceOfflineError, match="went offline"):
        await call


async def test_a_cloud_message_arrives_with_its_properties(hub, device):
    await device.listen("on_message_received")
    message_id = await hub.send_message("pi-1", {"türe": "auf"}, properties={"k /+ü": "v & w"})
    received = await device.next()
    assert json.loads(received.data) == {"türe": "auf"}
    assert received.custom_properties == {"k /+ü": "v & w"}
    assert received.message_id == message_id


async def test_cloud_messages_wait_for_the_device(hub, sdk_device):
    await hub.create_device("pi-1")
    for text in ("one", "two"):
        await hub.send_message("pi-1", text)
    client = await sdk_device(hub.connection_string("pi-1"), hub.certificate_authority)
    await client.connect()
    await client.listen("on_message_received")
    assert {(await client.next()).data, (await client.next()).data} == {b"one", b"two"}


async def test_a_cloud_message_comes_again_until_it_is_acknowledged(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.subscribe((topics.C2D_FILTER.format(device="pi-1"), 1))
    await hub.send_message("pi-1", b"open", system={"message_id": "m1"})
    kind, first = await client.receive()
    assert (kind, first[-4:]) == (0x32, b"open")
    await client.close()
    await hub.wait_connected("pi-1", connected=False)

    # The persistent session remembers the subscription.
    client = await raw(sign_in="pi-1")
    kind, again = await client.receive()
    assert (kind, again[-4:]) == (0x32, b"open")
    topic_end = 2 + int.from_bytes(again[:2], "big")
    await client.send(codec.puback(int.from_bytes(again[topic_end : topic_end + 2], "big")))
    await client.send(b"\xc0\x00")
    assert await client.receive() == (0xD0, b"")

    assert await hub.hub.queued("pi-1") == []


async def test_a_clean_session_forgets_the_subscriptions(hub, raw, token):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.subscribe((topics.C2D_FILTER.format(device="pi-1"), 1))
    persistent = await raw()
    assert await persistent.connect("pi-1", host=hub.mqtt_host, password=token("pi-1")) == (0, True)
    clean = await raw()
    assert await clean.connect("pi-1", host=hub.mqtt_host, password=token("pi-1"), clean=True) == (0, False)
    after = await raw()
    assert await after.connect("pi-1", host=hub.mqtt_host, password=token("pi-1")) == (0, False)


async def test_a_cloud_message_whose_time_is_over_is_dropped(hub, raw):
    await hub.create_device("pi-1")
    await hub.send_message("pi-1", b"late", life_seconds=0)
    await hub.send_message("pi-1", b"good")
    client = await raw(sign_in="pi-1")
    await client.subscribe((topics.C2D_FILTER.format(device="pi-1"), 1))
    _, body = await client.receive()
    assert body.endswith(b"good")


async def test_a_cloud_message_at_qos_0_is_not_kept(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1")
    await client.subscribe((topics.C2D_FILTER.format(device="pi-1"), 0))
    await hub.send_message("pi-1", b"open")
    kind, _ = await client.receive()
    assert kind == 0x30
    assert await hub.hub.queued("pi-1") == []


async def test_cloud_messages_that_cannot_be_are_refused(hub):
    await hub.create_device("pi-1")
    with pytest.raises(MessageInvalidError, match="65536"):
        await hub.send_message("pi-1", b"x" * 70_000)
    with pytest.raises(DeviceNotFoundError):
        await hub.send_message("pi-2", b"x")
    for _ in range(50):
        await hub.send_message("pi-1", b"x")
    with pytest.raises(QueueFullError):
        await hub.send_message("pi-1", b"x")


async def test_everything_is_there_after_a_restart(tmp_path, sdk_device):
    address = free_loopback_address()
    message = Message("kept")
    message.custom_properties = {"os-node": "n", "os-stream": "s", "os-service": "v", "os-sequence": "1"}
    async with Emulator(data=tmp_path, address=address) as hub:
        await hub.create_device("pi-1")
        connection_string, authority = hub.connection_string("pi-1"), hub.certificate_authority
        client = await sdk_device(connection_string, authority)
        await client.connect()
        await client.send(message)
        await client.run(lambda client: client.patch_twin_reported_properties({"state": "ok"}))
        await hub.patch_desired("pi-1", {"interval": 5})
        await hub.send_message("pi-1", b"waiting")
        report, twin, messages = await hub.report(), hub.twin("pi-1"), await hub.messages()

    async with Emulator(data=tmp_path, address=address) as again:
        assert (await again.report(), again.twin("pi-1"), await again.messages()) == (report, twin, messages)
        assert (again.connection_string("pi-1"), again.certificate_authority) == (connection_string, authority)
        client = await sdk_device(connection_string, authority)
        await client.connect()
        await client.listen("on_message_received")
        assert (await client.next()).data == b"waiting"
        await client.send(message)
        assert (await again.report()).duplicates == 1


async def test_waiting_for_messages_that_do_not_come_says_how_many_did(hub, device):
    await device.send(Message("one"))
    with pytest.raises(TimeoutError, match="1 of 2 messages"):
        await hub.wait_for(2, timeout_seconds=0.2)


async def test_messages_can_be_asked_for_by_device_and_page(hub, raw):
    for name in ("pi-1", "pi-2"):
        await hub.create_device(name)
        client = await raw(sign_in=name)
        for number in range(3):
            await client.send(publish(events(name), b"%d" % number))
    await hub.wait_for(6)

    assert [message.payload for message in await hub.messages(device="pi-2")] == [b"0", b"1", b"2"]
    first = await hub.messages(limit=2)
    rest = await hub.messages(after=first[-1].id)
    assert [message.id for message in (*first, *rest)] == [1, 2, 3, 4, 5, 6]
    assert [message.payload for message in await hub.wait_for(3, device="pi-2")] == [b"0", b"1", b"2"]


async def test_a_payload_may_be_given_as_base64(hub):
    assert decode_payload({"payload_base64": base64.b64encode(b"\0\1").decode()}) == b"\0\1"
    assert decode_payload({"payload": "text"}) == b"text"
    assert decode_payload({"payload": [1]}) == b"[1]"
    with pytest.raises(MessageInvalidError):
        decode_payload({"payload_base64": "?"})
