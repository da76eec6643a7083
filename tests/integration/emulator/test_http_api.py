"""The HTTP API."""

import asyncio
import base64
import io
import json

import aiohttp
import pytest
from amqtt.mqtt.publish import PublishPacket

from agent.errors import ConfigError
from emulator import codec, topics
from emulator.server import Emulator, free_loopback_address

EVENTS = "devices/pi-1/messages/events/"


@pytest.fixture
async def api(hub):
    async with aiohttp.ClientSession(hub.http_url) as session:
        yield session


async def call(api, method: str, path: str, body=None, *, status: int = 200):
    async with api.request(method, path, json=body) as response:
        text = await response.text()
        assert response.status == status, text
        return json.loads(text) if text else None


@pytest.fixture
async def client(hub, raw):
    await hub.create_device("pi-1")
    return await raw(sign_in="pi-1")


async def send(client, payload: bytes, properties: str = "") -> None:
    await client.send(PublishPacket.build(EVENTS + properties, payload, 1, False, 1, False).to_bytes())
    await client.receive()


async def test_the_status_says_where_and_who(hub, api, client):
    status = await call(api, "GET", "/")
    assert status["mqtt_host"] == hub.mqtt_host
    assert (status["mqtt_port"], status["devices"], status["connected"]) == (8883, 1, ["pi-1"])
    assert status["last_message_id"] == 0


async def test_a_device_is_created_with_all_that_it_needs_to_connect(hub, api, sdk_device):
    made = await call(api, "PUT", "/devices/pi-1", status=201)
    again = await call(api, "PUT", "/devices/pi-1", {}, status=200)
    assert made["connection_string"] == again["connection_string"] == hub.connection_string("pi-1")
    assert made["certificate_authority"] == hub.certificate_authority


async def test_a_device_can_be_created_with_a_certificate_or_its_thumbprint(hub, api, make_certificate):
    certificate = make_certificate("pi-1")
    by_pem = await call(api, "PUT", "/devices/pi-1", {"certificate": certificate.pem}, status=201)
    by_thumbprint = await call(
        api, "PUT", "/devices/pi-2", {"thumbprint": certificate.sha1, "secondary_thumbprint": "b" * 64}, status=201
    )
    assert by_pem["thumbprints"] == [certificate.sha256]
    assert by_pem["connection_string"] == f"HostName={hub.mqtt_host};DeviceId=pi-1;x509=true"
    assert by_thumbprint["thumbprints"] == [certificate.sha1, "b" * 64]


async def test_lists_of_devices_hold_no_secret(hub, api):
    device = await hub.create_device("pi-1")
    async with api.get("/devices") as response:
        text = await response.text()
    assert json.loads(text)["devices"] == [
        {"id": "pi-1", "authentication": "sas", "thumbprints": [], "enabled": True, "connected": False}
    ]
    assert device.primary_key not in text
    assert "connection_string" not in await call(api, "GET", "/devices/pi-1")


async def test_a_device_is_deleted_and_cut(hub, api, client):
    await call(api, "POST", "/devices/pi-1/cut")
    await client.ended()
    await call(api, "DELETE", "/devices/pi-1", status=204)
    assert (await call(api, "GET", "/devices/pi-1", status=404))["code"] == "device_not_found"


async def test_messages_are_shown_with_their_bodies(api, client):
    await send(client, '{"wärme": 1}'.encode(), "%24.mid=m1&a=b")
    await send(client, b"plain text")
    await send(client, b"\xff\x00")
    shown = (await call(api, "GET", "/messages"))["messages"]
    assert [message.get("body") for message in shown] == [{"wärme": 1}, "plain text", None]
    assert shown[2]["body_base64"] == base64.b64encode(b"\xff\x00").decode()
    assert (shown[0]["system"], shown[0]["properties"]) == ({"message_id": "m1"}, {"a": "b"})
    assert len((await call(api, "GET", "/messages?after=1&limit=1"))["messages"]) == 1
    assert (await call(api, "GET", "/messages?device=pi-2"))["messages"] == []


async def read_events(response, count: int) -> list[dict]:
    found = []
    async with asyncio.timeout(15):
        while len(found) < count:
            line = await response.content.readline()
            if line.startswith(b"data:"):
                found.append(json.loads(line[5:]))
    return found


async def test_the_stream_resumes_and_follows(api, client):
    for number in range(3):
        await send(client, b"%d" % number)
    async with api.get("/messages/stream?after=1") as response:
        assert response.content_type == "text/event-stream"
        assert [event["id"] for event in await read_events(response, 2)] == [2, 3]
        await send(client, b"new")
        assert [event["body"] for event in await read_events(response, 1)] == ["new"]
    async with api.get("/messages/stream", headers={"Last-Event-ID": "3"}) as response:
        assert [event["body"] for event in await read_events(response, 1)] == ["new"]


async def test_the_stream_starts_with_what_is_new(api, client):
    await send(client, b"old")
    async with api.get("/messages/stream?device=pi-1") as response:
        await send(client, b"new")
        assert [event["body"] for event in await read_events(response, 1)] == ["new"]


async def test_the_report_counts_what_arrived(api, client):
    for number in (1, 3, 3):
        await send(client, b"{}", f"os-node=n&os-stream=s&os-service=v&os-sequence={number}")
    report = await call(api, "GET", "/report")
    assert (report["received"], report["distinct"], report["duplicates"], report["missing"]) == (3, 2, 1, 1)
    assert report["services"][0]["gaps"] == [[2, 2]]
    assert report["latency"] == {"count": 0, "p50_ms": None, "p99_ms": None, "most_ms": None}


async def test_the_twin_is_shown_and_patched(api, client):
    await client.subscribe((topics.TWIN_DESIRED_FILTER, 1))
    patched = await call(api, "PATCH", "/devices/pi-1/twin/desired", {"interval": 5})
    assert patched == {"desired": {"interval": 5, "$version": 2}, "reported": {"$version": 1}}
    assert await call(api, "GET", "/devices/pi-1/twin") == patched
    _, body = await client.receive()
    assert body.endswith(b'{"interval":5,"$version":2}')


async def test_a_method_is_called_and_answered(api, client):
    await client.subscribe((topics.METHODS_FILTER, 1))
    request = asyncio.create_task(call(api, "POST", "/devices/pi-1/methods/blink", {"payload": {"times": 2}}))
    _, body = await client.receive()
    assert body.endswith(b'{"times":2}')
    await client.send(codec.publish("$iothub/methods/res/207/?$rid=1", b'{"done":true}'))
    assert await request == {"status": 207, "payload": {"done": True}}


async def test_a_method_that_is_not_answered_is_a_gateway_timeout(api, client):
    await client.subscribe((topics.METHODS_FILTER, 1))
    body = {"response_timeout_seconds": 0.1}
    assert (await call(api, "POST", "/devices/pi-1/methods/x", body, status=504))["code"] == "method_timeout"


async def test_a_cloud_message_is_sent(hub, api, client):
    await client.subscribe((topics.C2D_FILTER.format(device="pi-1"), 1))
    sent = await call(
        api,
        "POST",
        "/devices/pi-1/messages",
        {"payload": {"open": True}, "properties": {"k": "v"}, "message_id": "m1", "content_type": "application/json"},
        status=202,
    )
    assert sent == {"message_id": "m1"}
    _, body = await client.receive()
    assert b"%24.mid=m1" in body
    assert b"k=v" in body
    assert body.endswith(b'{"open":true}')
    await call(api, "POST", "/devices/pi-1/messages", {"payload_base64": "AAE="}, status=202)
    _, body = await client.receive()
    assert body.endswith(b"\0\1")


async def test_faults_are_set_and_shown(hub, api):
    assert (await call(api, "POST", "/faults", {"delay_puback_ms": 5}))["delay_puback_ms"] == 5
    assert (await call(api, "GET", "/faults"))["delay_puback_ms"] == 5
    assert hub.faults.delay_puback_ms == 5


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/devices/a+b", {}, 400, "device_invalid"),
        ("PUT", "/devices/a", {"unknown": 1}, 400, "message_invalid"),
        ("PUT", "/devices/a", {"primary_key": "?"}, 400, "device_invalid"),
        ("PUT", "/devices/a", {"certificate": "rubbish"}, 400, "device_invalid"),
        ("PUT", "/devices/a", [], 400, "message_invalid"),
        ("DELETE", "/devices/a", None, 404, "device_not_found"),
        ("GET", "/devices/a/twin", None, 404, "device_not_found"),
        ("PATCH", "/devices/a/twin/desired", {}, 404, "device_not_found"),
        ("PATCH", "/devices/a/twin/desired", [1], 400, "message_invalid"),
        ("POST", "/devices/a/methods/x", {}, 404, "device_not_found"),
        ("POST", "/devices/a/methods/x", {"response_timeout_seconds": 1e9}, 400, "message_invalid"),
        ("POST", "/devices/a/messages", {}, 404, "device_not_found"),
        ("GET", "/messages?after=x", None, 400, "message_invalid"),
        ("POST", "/faults", {"unknown": 1}, 400, "message_invalid"),
        ("GET", "/nothing", None, 404, "http_error"),
        ("POST", "/report", None, 405, "http_error"),
    ],
)
async def test_bad_requests_get_a_code_and_a_sentence(hub, api, method, path, body, status, code):
    answer = await call(api, method, path, body, status=status)
    assert answer["code"] == code
    assert answer["error"].endswith((".", "-sha256"))
    assert hub.devices() == []


async def test_a_body_that_is_too_large_is_refused(api):
    async with api.put("/devices/a", data=io.BytesIO(b"x" * 2_000_000)) as response:
        assert response.status == 413
        assert (await response.json())["code"] == "http_error"


async def test_a_body_that_is_no_json_is_refused(api):
    async with api.put("/devices/a", data=b"[" * 100_000) as response:
        assert response.status == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "[bad"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1"}, 200),
    ],
)
async def test_web_pages_and_foreign_names_are_refused(api, headers, status):
    async with api.get("/devices", headers=headers) as response:
        assert response.status in ({status} if headers.get("Host") != "[bad" else {400, 403})


async def test_a_token_is_needed_where_one_is_set(tmp_path):
    async with (
        Emulator(data=tmp_path, address=free_loopback_address(), api_token="s3cret") as hub,
        aiohttp.ClientSession(hub.http_url) as session,
    ):
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer s3cret", "Host": "hub.example"}, 200),
        ):
            async with session.get("/devices", headers=headers) as response:
                assert response.status == status


def test_an_api_for_others_needs_a_token(tmp_path):
    with pytest.raises(ConfigError, match="--api-token"):
        Emulator(data=tmp_path, http_host="0.0.0.0")


async def test_an_emulator_can_do_without_the_api(tmp_path):
    async with Emulator(data=tmp_path, address=free_loopback_address(), http_port=None) as hub:
        assert hub.http_url == ""


async def test_a_taken_http_port_is_named_and_leaves_nothing_behind(tmp_path, hub):
    port = int(hub.http_url.rpartition(":")[2])
    taken = Emulator(data=tmp_path / "second", address=free_loopback_address(), http_host=hub.mqtt_host, http_port=port)
    with pytest.raises(ConfigError, match="--http-port"):
        await taken.__aenter__()
    async with Emulator(data=tmp_path / "second", address=free_loopback_address()):
        pass


async def test_open_streams_do_not_hold_up_the_end(tmp_path):
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(10):
            async with Emulator(data=tmp_path, address=free_loopback_address()) as hub:
                response = await session.get(f"{hub.http_url}/messages/stream")
        response.close()
