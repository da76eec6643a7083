"""TLS with optional client certificates that are known by their thumbprints alone.

IoT Hub registers a self-signed device certificate by its thumbprint. OpenSSL wants to have the certificate itself as
a trust anchor before it lets a client prove that it holds the key, and `ssl` has no verification callback. So the
handshake is watched: when a client presents a certificate whose thumbprint is registered, that certificate becomes
a trust anchor of the context at that moment. OpenSSL then verifies its dates and the client's signature with its key;
any other certificate fails the handshake. The thumbprint is compared once more, with the device's own, at CONNECT.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from emulator.certificates import ServerCertificates

_CERTIFICATE_MESSAGE = 11
_HEADER_BYTES = 4


def server_context(certificates: ServerCertificates, knows: Callable[[bytes], bool] | None) -> ssl.SSLContext:
    """A server's context; `knows` says whether a client's certificate (DER) is registered, None asks for none.

    Blocks on the disk.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificates.certificate, certificates.key)
    # No resumption: each link proves its key anew.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    if knows is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _watch(context, knows)
    return context


def _watch(context: ssl.SSLContext, knows: Callable[[bytes], bool]) -> None:
    def on_message(
        connection: Any, direction: str, version: Any, content_type: Any, message_type: Any, data: bytes
    ) -> None:
        if direction != "read" or message_type != _CERTIFICATE_MESSAGE or content_type != _HANDSHAKE:
            return
        certificate = first_certificate(bytes(data), with_context=version == ssl.TLSVersion.TLSv1_3)
        if certificate is not None and knows(certificate):
            context.load_verify_locations(cadata=certificate)

    # The only hook that sees a client's certificate before it is judged; there in every CPython since 3.8.
    context._msg_callback = on_message  # type: ignore[attr-defined]


_HANDSHAKE = 22


def first_certificate(message: bytes, *, with_context: bool) -> bytes | None:
    """The first certificate (DER) in a TLS Certificate message (RFC 5246 7.4.2; `with_context`: RFC 8446 4.4.2)."""
    position = _HEADER_BYTES
    if with_context:
        position += 1 + (message[position] if len(message) > position else 0)
    position += 3
    size = int.from_bytes(message[position : position + 3], "big")
    certificate = message[position + 3 : position + 3 + size]
    return certificate if size and len(certificate) == size else None
