import asyncio

import pytest
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.pingreq import PingReqPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator import codec

TOPICS = st.text(st.characters(codec="utf-8", exclude_characters="+#\0"), min_size=1, max_size=60)


def read(data: bytes, *, limit_bytes: int = codec.PACKET_LIMIT_BYTES) -> list[codec.Packet]:
    """Every packet in `data`, which the peer then closes."""

    async def read_all() -> list[codec.Packet]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        packets = []
        while (packet := await codec.read_packet(reader, limit_bytes=limit_bytes)) is not None:
            packets.append(packet)
        return packets

    return asyncio.run(read_all())


def connect(username: str | None = "hub/dev/?api-version=2019-10-01", password: str | None = "secret") -> bytes:
    header = ConnectVariableHeader(keep_alive=60)
    header.username_flag = username is not None
    header.password_flag = password is not None
    payload = ConnectPayload(client_id="dev", username=username, password=password)
    return bytes(ConnectPacket(variable_header=header, payload=payload).to_bytes())


def test_connect_carries_who_and_how():
    assert read(connect()) == [
        codec.Connect(
            client_id="dev",
            clean_session=False,
            username="hub/dev/?api-version=2019-10-01",
            password="secret",
            keep_alive_seconds=60,
        )
    ]


def test_connect_without_password_has_none():
    (packet,) = read(connect(password=None))
    assert isinstance(packet, codec.Connect)
    assert packet.password is None


def test_connect_with_password_and_no_user_is_refused():
    with pytest.raises(codec.ProtocolError, match="no user name"):
        read(connect(username=None))


def test_other_protocol_versions_are_told_apart_before_they_are_read():
    body = b"\0\4MQTT\5\2\0\x3c\0\0\3dev"
    assert read(bytes([0x10, len(body)]) + body) == [codec.UnsupportedConnect("MQTT", 5)]


@given(TOPICS, st.binary(max_size=300), st.booleans(), st.booleans(), st.sampled_from([0, 1]))
@settings(max_examples=100, deadline=None)
def test_publish_comes_out_as_it_was_built(topic, payload, duplicate, retain, qos):
    data = PublishPacket.build(topic, payload, 7 if qos else None, duplicate, qos, retain).to_bytes()
    assert read(data) == [codec.Publish(topic, payload, qos, 7 if qos else 0, duplicate, retain)]


def test_subscriptions_and_signs_of_life_come_out_as_they_were_built():
    data = (
        SubscribePacket.build([("a/#", 1), ("b", 0)], 3).to_bytes()
        + UnsubscribePacket.build(["a/#"], 4).to_bytes()
        + PingReqPacket().to_bytes()
        + codec.puback(9)
        + DisconnectPacket().to_bytes()
    )
    assert read(data) == [
        codec.Subscribe(3, [("a/#", 1), ("b", 0)]),
        codec.Unsubscribe(4, ["a/#"]),
        codec.Ping(),
        codec.Puback(9),
        codec.Disconnect(),
    ]


def test_packets_to_the_client_are_mqtt():
    assert codec.connack(5) == b"\x20\x02\x00\x05"
    assert codec.connack(0, session_present=True) == b"\x20\x02\x01\x00"
    assert codec.puback(258) == b"\x40\x02\x01\x02"
    assert codec.suback(1, [1, 0x80]) == b"\x90\x04\x00\x01\x01\x80"
    assert codec.unsuback(1) == b"\xb0\x02\x00\x01"
    assert codec.pingresp() == b"\xd0\x00"
    assert codec.publish("a", b"x") == b"\x30\x04\x00\x01ax"
    assert codec.publish("a", b"x", packet_id=1, duplicate=True) == b"\x3a\x06\x00\x01a\x00\x01x"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xc0\xff\xff\xff\xff\x7f", "length field"),
        (b"\xc1\x00", "flags"),
        (b"\xc0\x01x", "too many"),
        (b"\x20\x02\x00\x00", "not a client's"),
        (b"\x00\x00", "not a client's"),
        (b"\xf0\x00", "not a client's"),
        (b"\x62\x02\x00\x01", "not a client's"),
        (b"\x40\x02\x00\x00", "zero"),
        (b"\x40\x01\x00", "cannot be read"),
        (b"\x40\x03\x00\x01x", "not well formed"),
        (b"\x82\x02\x00\x01", "at least one"),
        (b"\x82\x06\x00\x01\x00\x01a\x03", "at least one"),
        (b"\x82\x06\x00\x01\x00\x01\xff\x01", "not well formed"),
        (b"\xa2\x02\x00\x01", "at least one"),
        (b"\x34\x06\x00\x01a\x00\x01x", "QoS 2"),
        (b"\x36\x06\x00\x01a\x00\x01x", "QoS 3"),
        (b"\x32\x05\x00\x01a\x00\x00", "zero"),
        (b"\x32\x03\x00\x01a", "cannot be read"),
        (b"\x30\x02\x00\x00", "no topic"),
        (b"\x30\x03\x00\x01#", "wildcard"),
        (b"\x30\x03\x00\x01\xff", "not UTF-8"),
        (b"\x10\x02\x00\x04", "ends within"),
        (b"\x10\x0a\x00\x04MQTT\x04\x02\x00\x3c", "not well formed"),
    ],
)
def test_malformed_packets_are_named(data, reason):
    with pytest.raises(codec.ProtocolError, match=reason):
        read(data)


def test_a_packet_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(codec.ProtocolError, match="over the limit of 100 bytes"):
        read(b"\x30\x65", limit_bytes=100)


def test_a_peer_that_closes_within_a_packet_is_noticed():
    with pytest.raises(asyncio.IncompleteReadError):
        read(b"\x30\x05\x00")


@given(st.binary(max_size=200))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_packets_or_a_protocol_error(data):
    try:
        read(data)
    except (codec.ProtocolError, asyncio.IncompleteReadError):
        pass


@given(st.sampled_from([0x10, 0x30, 0x32, 0x40, 0x82, 0xA2, 0xC0, 0xE0]), st.binary(max_size=100))
@settings(max_examples=400, deadline=None)
def test_any_body_is_a_packet_or_a_protocol_error(first, body):
    try:
        asyncio.run(codec.decode(first, body))
    except codec.ProtocolError:
        pass


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_connect_is_a_packet_or_a_protocol_error(data):
    whole = bytearray(connect())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    try:
        read(bytes(whole))
    except (codec.ProtocolError, asyncio.IncompleteReadError):
        pass
