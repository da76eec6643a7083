"""What the emulator does to devices on request."""

import asyncio

import pytest
from amqtt.mqtt.publish import PublishPacket

from emulator import codec
from emulator.errors import MessageInvalidError
from emulator.faults import FaultSettings

EVENTS = "devices/pi-1/messages/events/"


def publish(packet_id: int) -> bytes:
    return bytes(PublishPacket.build(EVENTS, b"%d" % packet_id, packet_id, False, 1, False).to_bytes())


@pytest.fixture
async def client(hub, raw):
    await hub.create_device("pi-1")
    return await raw(sign_in="pi-1")


async def test_acknowledgements_can_be_late(hub, client):
    hub.set_faults(delay_puback_ms=300)
    started = asyncio.get_running_loop().time()
    await client.send(publish(1))
    assert await client.receive() == (0x40, b"\x00\x01")
    assert asyncio.get_running_loop().time() - started >= 0.3
    assert hub.last_message_id == 1


async def test_acknowledgements_can_be_withheld(hub, client):
    hub.set_faults(drop_pubacks=True)
    await client.send(publish(1))
    await hub.wait_for(1)
    hub.clear_faults()
    await client.send(publish(2))
    assert await client.receive() == (0x40, b"\x00\x02")


async def test_a_link_can_be_cut_instead_of_an_acknowledgement(hub, client, raw):
    hub.set_faults(cut_after=3)
    for number in (1, 2, 3):
        await client.send(publish(number))
    await client.ended()
    assert [message.payload for message in await hub.messages()] == [b"1", b"2", b"3"]

    again = await raw(sign_in="pi-1")
    await again.send(publish(4))
    assert await again.receive() == (0x40, b"\x00\x04")


@pytest.mark.parametrize("code", [3, 5])
async def test_connections_can_be_refused(hub, client, raw, token, code):
    hub.set_faults(refuse_connections=code)
    assert (await (await raw()).connect("pi-1", host=hub.mqtt_host, password=token("pi-1")))[0] == code
    assert hub.is_connected("pi-1")
    hub.clear_faults()
    assert (await (await raw()).connect("pi-1", host=hub.mqtt_host, password=token("pi-1")))[0] == codec.ACCEPTED


async def test_connections_can_be_closed_before_tls(hub, raw):
    hub.set_faults(refuse_connections="tcp")
    with pytest.raises(ConnectionError):
        await raw()


async def test_a_frozen_hub_says_nothing_and_goes_on_when_thawed(hub, client, raw, token):
    hub.set_faults(frozen=True)
    await client.send(publish(1))
    opening = asyncio.create_task(raw())
    with pytest.raises(TimeoutError):
        await client.receive(timeout_seconds=0.5)
    assert not opening.done()
    assert hub.last_message_id == 0

    hub.clear_faults()

    assert await client.receive() == (0x40, b"\x00\x01")
    newer = await opening
    assert (await newer.connect("pi-1", host=hub.mqtt_host, password=token("pi-1")))[0] == codec.ACCEPTED


async def test_a_frozen_hub_can_be_stopped(hub, client):
    hub.set_faults(frozen=True)
    await client.send(publish(1))


async def test_faults_that_cannot_be_are_refused_and_change_nothing(hub):
    hub.set_faults(delay_puback_ms=5)
    for wrong in (
        {"delay_puback_ms": -1},
        {"refuse_connections": 9},
        {"refuse_connections": "udp"},
        {"cut_after": 0},
        {"frozen": "yes"},
        {"unknown": 1},
    ):
        with pytest.raises(MessageInvalidError):
            hub.set_faults(**wrong)
    assert hub.faults == FaultSettings(delay_puback_ms=5)
