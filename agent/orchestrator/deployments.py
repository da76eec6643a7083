"""Deployments: stage every script, check it, switch once, start from what is on disk.

`scripts/<sha256>/<File>.py` holds each script ever staged that a kept deployment names; `deployment.json` holds the
signed manifest that runs. A power cut at any point leaves the old deployment or the new one.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import logging
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agent.errors import HubProtocolError, OutstationError
from agent.files import write_atomically
from agent.hub.protocol import Manifest, ManifestService, SignedManifest
from agent.orchestrator.model import ServiceSpec
from agent.paths import Paths

log = logging.getLogger(__name__)

SCRIPT_LIMIT_BYTES = 1024 * 1024
_FILE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\.py")
_HASH = re.compile(r"[0-9a-f]{64}")

Fetch = Callable[[str], Awaitable[bytes]]


class DeploymentError(OutstationError):
    """A deployment that cannot run; what ran before goes on."""

    code = "deployment_refused"


class Deployments:
    """The deployment on this node.

    Args:
        manifest_key: the organisation's Ed25519 public key, raw in base64, as learnt at enrolment.
        node_id: whose deployments are taken: one that was signed for another node is refused.
    """

    def __init__(self, paths: Paths, *, manifest_key: str, node_id: str) -> None:
        self._paths = paths
        self._key = base64.b64decode(manifest_key)
        self._node_id = node_id

    def load(self) -> Manifest | None:
        """The deployment that ran last, or None. A damaged file is set aside and counts as none."""
        try:
            signed = msgspec.json.decode(self._paths.deployment.read_bytes(), type=SignedManifest)
            return self._open(signed)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, HubProtocolError) as error:
            aside = self._paths.deployment.with_name("deployment.json.damaged")
            self._paths.deployment.replace(aside)
            log.error("The stored deployment cannot be used and was set aside as %s: %s", aside, error)
            return None

    async def stage(self, signed: SignedManifest, fetch: Fetch) -> Manifest:
        """Bring everything that `signed` names onto the disk and check it, beside what runs.

        `fetch` downloads a path of the portal. Raises DeploymentError for a script that is not what the manifest says
        or cannot be a service, HubProtocolError for a manifest that is not this node's, HubUnreachableError when a
        download breaks off, OSError when the disk is full; nothing that runs is touched.
        """
        manifest = self._open(signed)
        for service in manifest.services:
            self._check_names(service)
        for service in await asyncio.to_thread(self._missing, manifest):
            content = await fetch(service.path)
            await asyncio.to_thread(self._store, service, content)
        return manifest

    def switch(self, signed: SignedManifest) -> None:
        """Make a staged deployment the one that starts from now on."""
        write_atomically(self._paths.deployment, msgspec.json.encode(signed))

    def specs(self, manifest: Manifest) -> list[ServiceSpec]:
        """What the orchestrator is to run of a staged manifest.

        A script that is missing or damaged on the disk is left out and logged: the others start.
        """
        specs = []
        for service in manifest.services:
            path = self.script_path(service)
            if not service.enabled:
                continue
            if not _is_script(path, service.sha256):
                log.error(
                    "%s %s is not on this node or is damaged; it starts once the portal is reached.",
                    service.file,
                    service.version,
                )
                continue
            specs.append(
                ServiceSpec(
                    id=service.id,
                    class_name=Path(service.file).stem,
                    file_name=service.file,
                    version=service.version,
                    script=path,
                    sha256=service.sha256,
                    config=service.config,
                )
            )
        return specs

    def collect(self, manifest: Manifest) -> None:
        """Remove scripts that the manifest no longer names; what cannot be removed stays until the next time."""
        keep = {service.sha256 for service in manifest.services}
        for folder in self._paths.scripts.glob("*"):
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def script_path(self, service: ManifestService) -> Path:
        """Where a service's script is kept."""
        return self._paths.scripts / service.sha256 / service.file

    def _open(self, signed: SignedManifest) -> Manifest:
        manifest = signed.open(public_key=self._key)
        if manifest.node_id != self._node_id:
            raise HubProtocolError("The deployment is another node's; this node keeps what it runs.")
        return manifest

    def _missing(self, manifest: Manifest) -> list[ManifestService]:
        return [each for each in manifest.services if not _is_script(self.script_path(each), each.sha256)]

    def _store(self, service: ManifestService, content: bytes) -> None:
        self._check_script(service, content)
        write_atomically(self.script_path(service), content)

    def _check_names(self, service: ManifestService) -> None:
        # Both become parts of a path.
        if not _FILE_NAME.fullmatch(service.file) or not _HASH.fullmatch(service.sha256):
            raise DeploymentError(
                f"The deployment names a script {service.file[:120]!r} with hash {service.sha256[:64]!r}, "
                "which cannot be stored: a script's name is a Python name and .py."
            )
        if service.id != service.file.lower().replace(".", "_"):
            raise DeploymentError(f"The deployment calls {service.file} {service.id[:120]!r}; ids follow file names.")
        # It is put behind the portal's address: anything else could name another host, which would get the token.
        if not service.path.startswith("/"):
            raise DeploymentError(f"The deployment names {service.path[:120]!r} for {service.file}, which is no path.")

    def _check_script(self, service: ManifestService, content: bytes) -> None:
        if len(content) > SCRIPT_LIMIT_BYTES:
            raise DeploymentError(f"{service.file} is larger than {SCRIPT_LIMIT_BYTES} bytes.")
        if hashlib.sha256(content).hexdigest() != service.sha256:
            raise DeploymentError(
                f"{service.file} {service.version} is not what the deployment says (its SHA-256 differs); "
                "the node keeps what it runs. Save the service again in the portal."
            )
        try:
            tree = ast.parse(content, service.file)
        except (SyntaxError, ValueError) as error:
            raise DeploymentError(f"{service.file} {service.version} is not valid Python: {error}.") from error
        name = Path(service.file).stem
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        if name not in classes:
            raise DeploymentError(
                f"{service.file} has no class {name}: the class must be named as the file "
                f"(it has {', '.join(classes) or 'no class at all'})."
            )


def _is_script(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False
