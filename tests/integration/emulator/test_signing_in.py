"""Who may connect, and why not."""

import asyncio
import base64
import ssl

import pytest
from azure.iot.device import IoTHubDeviceClient, exceptions
from azure.iot.device.aio import IoTHubDeviceClient as AsyncDeviceClient

from emulator import codec
from emulator.errors import DeviceInvalidError, DeviceNotFoundError
from emulator.sas import make_token
from emulator.server import Emulator, free_loopback_address

# The SDK asks for paho's older callbacks.
pytestmark = pytest.mark.filterwarnings("ignore:Callback API version 1 is deprecated:DeprecationWarning")


async def test_a_device_connects_with_its_primary_key(hub, device):
    assert hub.is_connected("pi-1")
    assert hub.hub.refusals == type(hub.hub.refusals)([])


async def test_a_device_connects_with_its_secondary_key(hub, sdk_device):
    made = await hub.create_device("pi-1")
    connection_string = hub.connection_string("pi-1").replace(made.primary_key, made.secondary_key)
    await (await sdk_device(connection_string, hub.certificate_authority)).connect()
    assert hub.is_connected("pi-1")


async def test_the_synchronous_client_connects_and_sends(hub):
    await hub.create_device("pi-1")
    connection_string, authority = hub.connection_string("pi-1"), hub.certificate_authority

    def use() -> None:
        client = IoTHubDeviceClient.create_from_connection_string(
            connection_string, server_verification_cert=authority, connection_retry=False
        )
        try:
            client.connect()
            client.send_message("hello")
        finally:
            client.shutdown()

    async with asyncio.timeout(30):
        await asyncio.to_thread(use)
    assert (await hub.messages())[0].text == "hello"


async def test_a_wrong_key_is_refused(hub, sdk_device):
    made = await hub.create_device("pi-1")
    wrong = hub.connection_string("pi-1").replace(made.primary_key, base64.b64encode(b"x" * 32).decode())
    client = await sdk_device(wrong, hub.certificate_authority)

    with pytest.raises(exceptions.CredentialError):
        await client.connect()

    assert "signature does not match" in hub.hub.refusals[-1].reason
    assert not hub.is_connected("pi-1")


async def test_an_unknown_device_is_refused(hub, sdk_device):
    await hub.create_device("pi-1")
    other = hub.connection_string("pi-1").replace("DeviceId=pi-1", "DeviceId=pi-2")

    with pytest.raises(exceptions.CredentialError):
        await (await sdk_device(other, hub.certificate_authority)).connect()

    assert hub.hub.refusals[-1].device == "pi-2"
    assert "no device is named" in hub.hub.refusals[-1].reason


async def test_a_disabled_device_is_cut_and_refused(hub, device, raw, token):
    await hub.create_device("pi-1", enabled=False)

    await hub.wait_connected("pi-1", connected=False)
    code, _ = await (await raw()).connect("pi-1", host=hub.mqtt_host, password=token("pi-1"))
    assert code == codec.REFUSED_NOT_AUTHORISED
    assert "disabled" in hub.hub.refusals[-1].reason


async def test_a_deleted_device_is_cut(hub, device):
    await hub.delete_device("pi-1")
    await hub.wait_connected("pi-1", connected=False)
    with pytest.raises(DeviceNotFoundError):
        hub.device("pi-1")


async def test_a_new_key_ends_the_link_of_the_old_one(hub, device):
    await hub.create_device("pi-1", primary_key=base64.b64encode(b"n" * 32).decode())
    await hub.wait_connected("pi-1", connected=False)


async def test_creating_a_device_again_changes_nothing(hub, device):
    before = hub.connection_string("pi-1")
    await hub.create_device("pi-1")
    assert hub.connection_string("pi-1") == before
    assert hub.is_connected("pi-1")


async def test_a_device_that_does_not_trust_the_hub_does_not_connect(hub, sdk_device, tmp_path):
    await hub.create_device("pi-1")
    async with Emulator(data=tmp_path / "other", address=free_loopback_address()) as other:
        client = await sdk_device(hub.connection_string("pi-1"), other.certificate_authority)

    with pytest.raises(exceptions.ClientError) as caught:
        await client.connect()

    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], ssl.SSLCertVerificationError)


async def test_an_expired_token_is_refused(hub, raw, token):
    await hub.create_device("pi-1")
    code, _ = await (await raw()).connect("pi-1", host=hub.mqtt_host, password=token("pi-1", life_seconds=-60))
    assert code == codec.REFUSED_NOT_AUTHORISED
    assert "expired" in hub.hub.refusals[-1].reason


async def test_a_link_ends_when_its_token_expires(hub, raw, token):
    await hub.create_device("pi-1")
    client = await raw()
    assert (await client.connect("pi-1", host=hub.mqtt_host, password=token("pi-1", life_seconds=2)))[0] == 0

    await client.ended()

    assert not hub.is_connected("pi-1")


async def test_a_token_of_another_device_is_refused(hub, raw, token):
    await hub.create_device("pi-1")
    await hub.create_device("pi-2")
    code, _ = await (await raw()).connect("pi-1", host=hub.mqtt_host, password=token("pi-2"))
    assert code == codec.REFUSED_NOT_AUTHORISED


async def test_a_user_name_of_another_hub_or_device_is_refused(hub, raw, token):
    device = await hub.create_device("pi-1")
    foreign = make_token("elsewhere.example/devices/pi-1", device.primary_key, 4_000_000_000)
    assert (await (await raw()).connect("pi-1", host="elsewhere.example", password=foreign))[0] == 5
    assert "--hostname" in hub.hub.refusals[-1].reason
    assert (await (await raw()).connect("pi-1", host=hub.mqtt_host, username=f"{hub.mqtt_host}/pi-2/", password="x"))[
        0
    ] == codec.REFUSED_NOT_AUTHORISED
    assert (await (await raw()).connect("pi-1", host="", username="pi-1", password="x"))[0] == codec.REFUSED_CREDENTIALS
    assert (await (await raw()).connect("", host=hub.mqtt_host, password="x"))[0] == codec.REFUSED_CLIENT_ID


async def test_another_version_of_mqtt_is_refused(hub, raw):
    client = await raw()
    await client.send(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03dev")
    assert await client.receive() == (0x20, b"\x00\x01")


async def test_an_azure_host_name_works_through_the_gateway(tmp_path, sdk_device):
    address = free_loopback_address()
    async with Emulator(data=tmp_path, address=address, hostnames=["my-hub.azure-devices.net"]) as hub:
        await hub.create_device("pi-1")
        connection_string = hub.connection_string("pi-1", gateway=address)
        assert connection_string.startswith("HostName=my-hub.azure-devices.net;")

        client = await sdk_device(connection_string, hub.certificate_authority)
        await client.connect()
        await client.send("hello")

        assert (await hub.wait_for(1))[0].text == "hello"


async def test_the_newer_link_of_a_device_takes_over(hub, device, sdk_device):
    newer = await sdk_device(hub.connection_string("pi-1"), hub.certificate_authority)
    await newer.connect()

    await newer.send("from the newer one")

    assert [message.text for message in await hub.wait_for(1)] == ["from the newer one"]
    assert hub.hub.connections == 2
    assert hub.hub.connected_devices() == ["pi-1"]
    with pytest.raises((exceptions.ConnectionDroppedError, exceptions.NoConnectionError)):
        await device.send("from the older one")


async def test_a_silent_device_is_cut_after_one_and_a_half_keep_alives(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1", keep_alive_seconds=1)
    started = asyncio.get_running_loop().time()

    await client.ended()

    assert 1.4 < asyncio.get_running_loop().time() - started < 10


async def test_signs_of_life_keep_a_link(hub, raw):
    await hub.create_device("pi-1")
    client = await raw(sign_in="pi-1", keep_alive_seconds=1)
    for _ in range(3):
        await client.send(b"\xc0\x00")
        assert await client.receive() == (0xD0, b"")
    assert hub.is_connected("pi-1")


@pytest.mark.parametrize("thumbprint", ["sha256", "sha1"])
async def test_a_device_connects_with_its_certificate(hub, make_certificate, sdk_device, thumbprint):
    certificate = make_certificate("pi-1")
    await hub.create_device("pi-1", thumbprints=[getattr(certificate, thumbprint).upper()])
    assert hub.connection_string("pi-1").endswith("x509=true")

    def make() -> AsyncDeviceClient:
        return AsyncDeviceClient.create_from_x509_certificate(
            certificate.for_sdk(),
            hub.mqtt_host,
            "pi-1",
            server_verification_cert=hub.certificate_authority,
            connection_retry=False,
        )

    client = await asyncio.to_thread(type(await sdk_device(_any_connection_string(), hub.certificate_authority)), make)
    try:
        await client.connect()
        await client.send("hello")
        assert (await hub.wait_for(1))[0].device == "pi-1"
    finally:
        await client.close()


def _any_connection_string() -> str:
    return f"HostName=localhost;DeviceId=none;SharedAccessKey={base64.b64encode(b'x' * 32).decode()}"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_certificates_are_checked_in_both_versions_of_tls(hub, make_certificate, raw, version):
    mine, other = make_certificate("pi-1"), make_certificate("pi-2")
    await hub.create_device("pi-1", thumbprints=[mine.sha256])
    await hub.create_device("pi-2", thumbprints=[other.sha256])

    client = await raw(certificate=mine, version=version)
    assert (await client.connect("pi-1", host=hub.mqtt_host))[0] == codec.ACCEPTED
    client = await raw(certificate=other, version=version)
    assert (await client.connect("pi-1", host=hub.mqtt_host))[0] == codec.REFUSED_NOT_AUTHORISED
    assert "not pi-1's" in hub.hub.refusals[-1].reason
    client = await raw(version=version)
    assert (await client.connect("pi-1", host=hub.mqtt_host))[0] == codec.REFUSED_NOT_AUTHORISED
    assert "present its certificate" in hub.hub.refusals[-1].reason


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("kind", ["unregistered", "expired", "of a deleted device"])
async def test_another_certificate_fails_in_tls(hub, make_certificate, raw, version, kind):
    await hub.create_device("pi-1", thumbprints=[make_certificate("pi-1").sha256])
    certificate = make_certificate("pi-3", expired=kind == "expired")
    if kind != "unregistered":
        await hub.create_device("pi-3", thumbprints=[certificate.sha256])
    if kind == "of a deleted device":
        await hub.delete_device("pi-3")

    async def connect() -> None:
        client = await raw(certificate=certificate, version=version)
        await client.connect("pi-3", host=hub.mqtt_host)

    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await connect()

    assert not hub.is_connected("pi-3")
    assert "thumbprint is not registered" in hub.hub.refusals[-1].reason


async def test_a_key_does_not_open_a_certificates_device_nor_the_other_way_round(hub, make_certificate, raw):
    certificate = make_certificate("pi-1")
    await hub.create_device("pi-1", thumbprints=[certificate.sha256])
    await hub.create_device("pi-2")
    forged = make_token(f"{hub.mqtt_host}/devices/pi-1", base64.b64encode(b"\0" * 32).decode(), 4_000_000_000)
    assert (await (await raw()).connect("pi-1", host=hub.mqtt_host, password=forged))[0] == 5
    client = await raw(certificate=certificate)
    assert (await client.connect("pi-2", host=hub.mqtt_host))[0] == codec.REFUSED_NOT_AUTHORISED


@pytest.mark.parametrize("name", ["", "a/b", "a#", "a+b", "a;b", "ä", "x" * 129])
async def test_names_that_mqtt_or_a_connection_string_cannot_hold_are_refused(hub, name):
    with pytest.raises(DeviceInvalidError, match="device's name"):
        await hub.create_device(name)


async def test_keys_and_thumbprints_that_are_none_are_refused_and_change_nothing(hub):
    with pytest.raises(DeviceInvalidError, match="Base64"):
        await hub.create_device("pi-1", primary_key="secret!")
    with pytest.raises(DeviceInvalidError, match="thumbprint"):
        await hub.create_device("pi-1", thumbprints=["abc"])
    with pytest.raises(DeviceInvalidError, match="not with both"):
        await hub.create_device("pi-1", thumbprints=["a" * 64], primary_key=base64.b64encode(b"x" * 32).decode())
    assert hub.devices() == []


async def test_the_log_holds_no_secret(hub, sdk_device, raw, token, caplog):
    caplog.set_level("DEBUG", "emulator")
    made = await hub.create_device("pi-1")
    used = token("pi-1")
    client = await raw()
    await client.connect("pi-1", host=hub.mqtt_host, password=used)
    await (await raw()).connect("pi-1", host=hub.mqtt_host, password=token("pi-1", life_seconds=-5))
    assert made.primary_key not in caplog.text
    assert "sig=" not in caplog.text
    assert "pi-1 connected" in caplog.text
