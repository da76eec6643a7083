"""Shared access signatures: what a device signs in with.

`SharedAccessSignature sr={resource}&sig={signature}&se={expiry}`, where the signature is the Base64 of
HMAC-SHA256 over `{resource}\\n{expiry}` with the device's Base64-decoded key, and the resource is URL-encoded
(Microsoft, "Control access to IoT Hub by using shared access signatures").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import quote, unquote

_PREFIX = "SharedAccessSignature "


class SasError(ValueError):
    """A token is refused; the text says why and holds nothing of the token's signature."""


def make_token(resource: str, key: str, expiry: int) -> str:
    """Sign `resource` until `expiry` (Unix seconds) with `key` (Base64)."""
    encoded = quote(resource, safe="")
    signature = _sign(encoded, str(expiry), key)
    return f"{_PREFIX}sr={encoded}&sig={quote(signature, safe='')}&se={expiry}"


def check_token(token: str, *, resource: str, keys: Sequence[str], now: float) -> float:
    """Verify `token` for `resource` against any of `keys` at the time `now`; return when it expires (Unix seconds).

    Raises SasError for a token that is malformed, of another resource, wrongly signed or expired. Signatures are
    compared in constant time.
    """
    if not token.startswith(_PREFIX):
        raise SasError("the password is not a shared access signature")
    fields: dict[str, str] = {}
    for part in token[len(_PREFIX) :].split("&"):
        name, separator, value = part.partition("=")
        if not separator or name in fields:
            raise SasError("the shared access signature is malformed")
        fields[name] = value
    if not {"sr", "sig", "se"} <= fields.keys():
        raise SasError("the shared access signature lacks one of sr, sig and se")
    if "skn" in fields:
        raise SasError("the shared access signature names a hub policy; only a device's own key is known here")
    if not (fields["se"].isascii() and fields["se"].isdecimal() and len(fields["se"]) <= 15):
        raise SasError("the shared access signature's expiry is not a number of seconds")
    presented = unquote(fields["sig"]).encode()
    genuine = False
    for key in keys:
        genuine |= hmac.compare_digest(presented, _sign(fields["sr"], fields["se"], key).encode())
    if not genuine:
        raise SasError("the signature does not match the device's keys")
    if unquote(fields["sr"]).lower() != resource.lower():
        raise SasError(f"the shared access signature is for {unquote(fields['sr'])!r}, not for {resource!r}")
    expiry = int(fields["se"])
    if expiry <= now:
        raise SasError(f"the shared access signature expired {now - expiry:.0f} s ago (is the device's clock right?)")
    return float(expiry)


def decode_key(key: str) -> bytes:
    """A device key as bytes. Raises ValueError unless it is Base64 of 16 to 64 bytes."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("a device key must be Base64") from error
    if not 16 <= len(raw) <= 64:
        raise ValueError(f"a device key must be 16 to 64 bytes, not {len(raw)}")
    return raw


def _sign(encoded_resource: str, expiry: str, key: str) -> str:
    message = f"{encoded_resource}\n{expiry}".encode()
    return base64.b64encode(hmac.digest(decode_key(key), message, hashlib.sha256)).decode()
