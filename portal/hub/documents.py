"""What nodes are sent, in both dialects: ours with a signed manifest, the original's with itineraries."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.hub.protocol import Manifest, ManifestService, Property, SignedManifest
from portal.flows.plan import Assignment
from portal.nodes.models import Node
from portal.nodes.service import IotHubSecret
from portal.organizations.models import Organization


def state_of(node: Node) -> str:
    """The protocol's word for enabled or not."""
    return "Active" if node.enabled else "InActive"


def manifest_services(organization_id: str, assignments: Sequence[Assignment]) -> list[ManifestService]:
    """The services of a manifest."""
    return [
        ManifestService(
            id=item.service_id,
            file=item.file,
            version=item.version,
            sha256=item.sha256,
            path=f"/api/Scripts/{organization_id}/{item.file}/{item.version}",
            flow=item.flow,
            enabled=item.enabled,
            requirements=list(item.requirements),
            config=item.config,
        )
        for item in assignments
    ]


def deployment_of(services: Sequence[ManifestService]) -> str:
    """The SHA-256 that names a deployment."""
    return hashlib.sha256(msgspec.json.encode(services)).hexdigest()


def sign_manifest(key: bytes, *, node_id: str, organization_id: str, services: list[ManifestService]) -> dict[str, str]:
    """A manifest as it travels, signed with the organisation's raw Ed25519 key."""
    document = msgspec.json.encode(
        Manifest(
            node_id=node_id,
            organization_id=organization_id,
            deployment=deployment_of(services),
            services=services,
        )
    )
    signature = Ed25519PrivateKey.from_private_bytes(key).sign(document)
    signed = SignedManifest(document=document.decode(), signature=base64.b64encode(signature).decode())
    return {"document": signed.document, "signature": signed.signature}


def iot_hub_document(secret: IotHubSecret | None) -> dict[str, str] | None:
    """How the node reaches its IoT Hub."""
    if secret is None:
        return None
    return {
        "connectionString": secret.connection_string,
        "certificateAuthority": secret.certificate_authority,
    }


def created_document(node: Node, organization: Organization, tags: list[str], *, sas: str | None) -> dict[str, Any]:
    """The argument of `nodeCreated`; `sas` is the secret of an original agent."""
    document: dict[str, Any] = {
        "id": node.id,
        "nodeName": node.name,
        "organizationId": organization.id,
        "organizationName": organization.name,
        "state": state_of(node),
        "debug": node.console,
        "tags": tags,
    }
    if sas is None:
        document["manifestKey"] = base64.b64encode(organization.public_key).decode()
    else:
        document |= {"sas": sas, "pythonVersion": "ignore"}
    return document


def settings_document(node: Node, organization: Organization, tags: list[str]) -> dict[str, Any]:
    """What both dialects hold of a sign-in answer."""
    return {
        "id": node.id,
        "nodeName": node.name,
        "organizationId": organization.id,
        "organizationName": organization.name,
        "tags": tags,
        "state": state_of(node),
        "debug": node.console,
        "enableTracking": node.tracking,
        "protocol": "NOIOTHUB",
        "pythonVersion": "ignore",
        "deviceState": {"desired": {"msbConfig": None}, "reported": {}},
        "policies": policies_document(organization),
    }


def policies_document(organization: Organization) -> dict[str, Any]:
    """How nodes find out that they are cut off, and what they do then."""
    return {
        "disconnectPolicy": {
            "heartbeatTimeout": organization.heartbeat_seconds,
            "missedHearbeatLimit": organization.missed_heartbeat_limit,
            "offlineMode": False,
            "reconnectedAction": "NOTHING",
            "disconnectedAction": "NOTHING",
        },
        "backgroundServicePolicy": {"backgroundService": None},
    }


def original_settings(
    node: Node, organization: Organization, tags: list[str], assignments: Sequence[Assignment], *, sas: str
) -> dict[str, Any]:
    """The argument of `signInMessage` for an original agent."""
    return {
        **settings_document(node, organization, tags),
        "sas": sas,
        # The original's tracking goes through a message bus of its maker; these say that there is none.
        "sbNamespace": "",
        "trackingHubName": "",
        "trackingToken": "",
        "receiveConnectionString": "",
        "itineraries": itineraries(node, assignments),
    }


def itineraries(node: Node, assignments: Sequence[Assignment]) -> list[dict[str, Any]]:
    """The assignments by flow, as the original's agents read them."""
    flows: dict[str, dict[str, Any]] = {}
    for item in assignments:
        flow = flows.setdefault(
            item.flow_id,
            {
                "itineraryId": item.flow_id,
                "integrationId": item.flow_id,
                "integrationName": item.flow,
                "enabled": True,
                "environment": node.name,
                "activities": [],
            },
        )
        flow["activities"].append(
            {
                "id": item.activity_id,
                "type": "draw2d.shape.node.Start",
                "userData": {
                    "baseType": "pythonfile",
                    "type": item.file.replace(".", "_"),
                    "isCustom": True,
                    "bindToVersion": item.pinned,
                    "version": item.version,
                    "isInboundREST": False,
                    "config": {
                        # The original agent matches the host itself; the portal has done so already.
                        "generalConfig": [
                            _property(item.flow, "name", "string", category="General"),
                            _property(node.name, "host", "string", category="General"),
                            _property(item.enabled, "enabled", "boolean", category="General"),
                        ],
                        "staticConfig": _properties(item.config.static_config),
                        "securityConfig": _properties(item.config.security_config),
                    },
                },
            }
        )
    return list(flows.values())


def _properties(properties: Sequence[Property]) -> list[dict[str, Any]]:
    return [_property(item.value, item.id, item.type) for item in properties]


def _property(value: Any, name: str, kind: str, **more: str) -> dict[str, Any]:
    return {"id": name, "value": value, "type": kind, **more}
