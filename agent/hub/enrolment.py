"""Become a node of a portal: a verification code against an identity."""

from __future__ import annotations

import asyncio
import platform
import socket
from typing import Any

import msgspec

from agent import __version__
from agent.errors import (
    CodeRefusedError,
    HubProtocolError,
    HubRefusedError,
    HubUnreachableError,
    InsecureUrlError,
    NameTakenError,
)
from agent.hub import protocol
from agent.hub.connection import HubConnection, check_portal_url, make_tls
from agent.identity import Identity, IdentityReservation, new_private_key
from agent.paths import Paths

ANSWER_TIMEOUT_SECONDS = 30.0


class CreatedNode(msgspec.Struct, rename="camel"):
    """What a portal answers to a good code."""

    id: str
    node_name: str
    organization_id: str
    manifest_key: str


async def enroll(
    paths: Paths,
    url: str,
    *,
    code: str,
    name: str = "",
    fingerprint: str = "",
    certificate_authority: str = "",
    insecure_http: bool = False,
) -> Identity:
    """Exchange a verification code for an identity and store it.

    Args:
        name: the node's name; empty lets the portal make one from the host's name.
        fingerprint: SHA-256 of the portal's certificate, to pin it.
        certificate_authority: PEM text of a private authority.

    Raises CodeRefusedError, NameTakenError, HubUnreachableError, HubCertificateError, InsecureUrlError, StorageError
    or AlreadyEnrolledError; in each case the node is as it was before.
    """
    address = check_portal_url(url, insecure_http=insecure_http)
    if fingerprint and not address.startswith("https://"):
        raise InsecureUrlError(
            f"{address} is plain HTTP, which has no certificate for --fingerprint to pin; use https:// or leave it out."
        )
    tls = make_tls(fingerprint=fingerprint, certificate_authority=certificate_authority)
    with IdentityReservation(paths) as reservation:
        private_key, public_key = new_private_key()
        async with HubConnection(address, tls=tls) as connection:
            created = await _create_node(connection, code.strip(), name.strip(), public_key)
        identity = Identity(
            portal_url=address,
            node_id=created.id,
            node_name=created.node_name,
            organization_id=created.organization_id,
            private_key=private_key,
            manifest_key=created.manifest_key,
            fingerprint=fingerprint,
            certificate_authority=certificate_authority,
            insecure_http=insecure_http,
        )
        reservation.store(identity)
    return identity


async def _create_node(connection: HubConnection, code: str, name: str, public_key: str) -> CreatedNode:
    if not connection.nonce:
        # Asked before the code is used up: that portal would make a node of its own dialect, which knows no manifest.
        raise HubProtocolError(
            f"{connection.url} speaks only the protocol of the original product, which this agent cannot sign in with; "
            "enrol the node at an Outstation portal."
        )
    host = socket.gethostname()
    facts = {
        "publicKey": public_key,
        "machineName": host,
        "agentVersion": __version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    await connection.send("createNode", code, host, name, facts)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
            async for call in connection.invocations():
                match call.target:
                    case "nodeCreated":
                        return _created(connection.url, call.arguments)
                    case "errorMessage":
                        raise _refusal(call.arguments, code, name)
    except TimeoutError as error:
        raise HubUnreachableError(
            f"{connection.url} did not answer the enrolment in {ANSWER_TIMEOUT_SECONDS:.0f} s."
        ) from error
    raise HubUnreachableError(f"{connection.url} closed the connection during the enrolment.")


def _created(url: str, arguments: list[Any]) -> CreatedNode:
    try:
        return msgspec.convert(arguments[0], CreatedNode)
    except (IndexError, msgspec.ValidationError) as error:
        raise HubProtocolError(f"{url} answered the enrolment with something unreadable: {error}.") from error


def _refusal(arguments: list[Any], code: str, name: str) -> HubRefusedError:
    text = str(arguments[0])[:300] if arguments else "no reason given"
    number = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], int) else protocol.ERROR_INVALID_REQUEST
    reason = arguments[2] if len(arguments) > 2 else ""
    if number == protocol.ERROR_INVALID_CODE:
        return CodeRefusedError(
            f"The portal refused the code {code}: {text} Get a new one in the portal under Nodes.", number
        )
    if reason == protocol.NAME_TAKEN_REASON:
        return NameTakenError(
            f"There is a node named {name} already: {text} Choose another with --name; the code is still good.", number
        )
    return HubRefusedError(f"The portal refused the enrolment: {text}", number)
