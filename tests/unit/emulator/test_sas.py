import base64

import pytest
from azure.iot.device.common.auth.sastoken import RenewableSasToken
from azure.iot.device.common.auth.signing_mechanism import SymmetricKeySigningMechanism

from emulator.sas import SasError, check_token, decode_key, make_token

KEY = base64.b64encode(b"k" * 32).decode()
OTHER = base64.b64encode(b"o" * 32).decode()
RESOURCE = "hub.example/devices/pi-1"


def check(token: str, *, keys: tuple[str, ...] = (KEY, OTHER), now: float = 1000.0, resource: str = RESOURCE) -> float:
    return check_token(token, resource=resource, keys=keys, now=now)


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_token_of_either_key_is_good_until_it_expires(key):
    assert check(make_token(RESOURCE, key, 2000)) == 2000.0


def test_the_token_is_the_one_that_the_azure_sdk_makes():
    made = str(RenewableSasToken(RESOURCE, SymmetricKeySigningMechanism(KEY), ttl=3600))
    expiry = int(made.rpartition("=")[2])
    assert made == make_token(RESOURCE, KEY, expiry)


def test_the_resource_is_compared_without_regard_to_case():
    assert check(make_token(RESOURCE.upper(), KEY, 2000)) == 2000.0


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (make_token(RESOURCE, base64.b64encode(b"x" * 32).decode(), 2000), "does not match"),
        (make_token("hub.example/devices/pi-2", KEY, 2000), "pi-2"),
        (make_token(RESOURCE, KEY, 1000), "expired"),
        (make_token(RESOURCE, KEY, 2000).replace("se=2000", "se=9000"), "does not match"),
        (make_token(RESOURCE, KEY, 2000) + "&skn=iothubowner", "hub policy"),
        (make_token(RESOURCE, KEY, 2000) + "&se=3000", "malformed"),
        (make_token(RESOURCE, KEY, 2000).replace("se=2000", "se=soon"), "not a number"),
        (make_token(RESOURCE, KEY, 2000).replace("se=2000", "se=²"), "not a number"),
        ("SharedAccessSignature sr=a&sig=b", "lacks"),
        ("SharedAccessSignature ", "malformed"),
        ("password", "not a shared access signature"),
    ],
)
def test_a_wrong_token_is_refused_with_its_reason(token, reason):
    with pytest.raises(SasError, match=reason):
        check(token)


def test_a_refusal_does_not_repeat_the_signature():
    token = make_token(RESOURCE, KEY, 900)
    with pytest.raises(SasError) as caught:
        check(token)
    assert token.split("sig=")[1].split("&")[0] not in str(caught.value)


@pytest.mark.parametrize("key", ["", "not base64!", base64.b64encode(b"short").decode(), KEY * 3])
def test_a_key_that_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match="device key"):
        decode_key(key)
