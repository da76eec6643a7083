"""Who this node is: made once, at enrolment, and never changed by an answer of a portal."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from agent.errors import AlreadyEnrolledError, NotEnrolledError, StorageError
from agent.files import sync_directory
from agent.paths import Paths

RESERVED_BYTES = 64 * 1024
"""Written before the portal is asked, so that a full disk is noticed while the code is still good."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What enrolment leaves on the node (`identity.json`, mode 0600)."""

    portal_url: str
    node_id: str
    node_name: str
    organization_id: str
    private_key: str
    """Ed25519, raw, base64: never leaves the node."""
    manifest_key: str
    """The organisation's Ed25519 public key, raw, base64: what deployments are signed with."""
    fingerprint: str = ""
    """SHA-256 of the portal's certificate, where it is pinned."""
    certificate_authority: str = ""
    """PEM text of a private certificate authority."""
    insecure_http: bool = False

    def __repr__(self) -> str:
        return f"Identity(node_name={self.node_name!r}, portal_url={self.portal_url!r})"

    def sign(self, data: bytes) -> bytes:
        """Prove to be this node."""
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(self.private_key)).sign(data)


def new_private_key() -> tuple[str, str]:
    """A new key pair as (private, public), each raw in base64."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(private).decode(), base64.b64encode(public).decode()


def load_identity(paths: Paths) -> Identity:
    """Read who this node is.

    Raises NotEnrolledError where there is no identity, StorageError where it cannot be read (it is left as it is).
    """
    try:
        return msgspec.json.decode(paths.identity.read_bytes(), type=Identity)
    except FileNotFoundError as error:
        raise NotEnrolledError(
            f"This node is not enrolled: there is no {paths.identity}. "
            "Get a code in the portal under Nodes, then run `outstation enroll URL --code CODE`."
        ) from error
    except PermissionError as error:
        raise _of_another_user(paths) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(
            f"The node's identity {paths.identity} cannot be read: {error}. Bring it back from a copy; without one, "
            "delete the node in the portal, move the file away and enrol anew."
        ) from error


def _of_another_user(paths: Paths) -> StorageError:
    return StorageError(
        f"The state directory {paths.state} belongs to another user: run this as the user who enrolled the node, "
        "or as root, or give another with --state-dir."
    )


class IdentityReservation:
    """Room for an identity on the disk, taken before the portal is asked for it.

    Use as a context manager: leaving it without `store` gives the room back and leaves no trace.
    Raises AlreadyEnrolledError or StorageError on entering.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._file = paths.state / f".{paths.identity.name}.reserved"
        self._made: list[Path] = []

    def __enter__(self) -> IdentityReservation:
        try:
            is_enrolled = self._paths.identity.exists()
        except PermissionError as error:
            raise _of_another_user(self._paths) from error
        if is_enrolled:
            known = load_identity(self._paths)
            raise AlreadyEnrolledError(
                f"This node is enrolled already, as {known.node_name} at {known.portal_url}. "
                f"To enrol it anew, delete it in the portal and remove {self._paths.identity}."
            )
        try:
            self._make_directory(self._paths.state)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"\0" * RESERVED_BYTES)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._give_back()
            raise StorageError(
                f"There is no room for the node's identity in {self._paths.state}: {error.strerror}. "
                "Free some space or fix its permissions, then enrol again; the code has not been used."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def store(self, identity: Identity) -> None:
        """Make `identity` this node's own. Raises StorageError with nothing changed."""
        try:
            # In place: the blocks are there already, so that a disk that filled up meanwhile does not matter.
            with self._file.open("r+b") as file:
                file.write(msgspec.json.format(msgspec.json.encode(identity), indent=2))
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            self._file.replace(self._paths.identity)
            self._made.clear()
            sync_directory(self._paths.state)
        except OSError as error:
            raise StorageError(
                f"The node's identity could not be stored in {self._paths.state}: {error.strerror}. "
                f"Delete node {identity.node_name} in the portal, fix the disk, and enrol with a new code."
            ) from error

    def _make_directory(self, path: Path) -> None:
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(mode=0o700)
            self._made.append(parent)

    def _give_back(self) -> None:
        self._file.unlink(missing_ok=True)
        while self._made:
            self._made.pop().rmdir()
