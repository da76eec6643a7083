"""What can go wrong on a node, as one tree.

OutstationError
├── ConfigError (ValueError)          a setting, named, and what it may be
├── StorageError (OSError)            the state directory cannot be written or read
├── NotEnrolledError                  there is no identity on this node
├── AlreadyEnrolledError              there is one already
├── AlreadyRunningError               another agent holds the state directory
├── MissingExtraError (ImportError)   a part of the product that is not installed
└── HubError
    ├── HubUnreachableError (ConnectionError)   refused, timed out, 5xx: try again later
    ├── HubCertificateError                     TLS says the portal is not who it should be
    ├── InsecureUrlError (ValueError)           plain HTTP to somewhere that is not loopback
    ├── HubProtocolError                        the peer does not speak the node hub's protocol
    │   └── HubArgumentsError                   it understood the call and will never take what we said
    └── HubRefusedError                         the portal said no; carries its `errorMessage` code
        ├── CodeRefusedError
        └── NameTakenError
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

from agent.exitcodes import ExitCode

E = TypeVar("E", bound=Exception)


class OutstationError(Exception):
    """The root. Its text is one sentence: what, where, and what to do."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE


class ConfigError(OutstationError, ValueError):
    """A setting is not valid; the text names its key."""

    code = "config_invalid"
    exit_code = ExitCode.CONFIG_INVALID


class StorageError(OutstationError, OSError):
    """Something could not be stored; what was stored before is as it was."""

    code = "storage_failed"
    exit_code = ExitCode.STORAGE_FAILED


class NotEnrolledError(OutstationError):
    """This node has no identity yet."""

    code = "not_enrolled"
    exit_code = ExitCode.NOT_ENROLLED


class AlreadyEnrolledError(OutstationError):
    """This node has an identity, which enrolment never replaces by itself."""

    code = "already_enrolled"
    exit_code = ExitCode.ALREADY_ENROLLED


class AlreadyRunningError(OutstationError):
    """Another agent uses the same state directory."""

    code = "already_running"
    exit_code = ExitCode.ALREADY_RUNNING


class MissingExtraError(OutstationError, ImportError):
    """A part of the product is not installed; the text says how to install it."""

    code = "missing_extra"
    exit_code = ExitCode.MISSING_EXTRA


class HubError(OutstationError):
    """Talking to the portal failed."""


class HubUnreachableError(HubError, ConnectionError):
    """The portal did not answer, or answered 5xx: nothing changes on the node, try again later."""

    code = "portal_unreachable"
    exit_code = ExitCode.PORTAL_UNREACHABLE


class HubCertificateError(HubError):
    """The portal's certificate is not trusted, has expired, or is another than the pinned one."""

    code = "certificate_refused"
    exit_code = ExitCode.CERTIFICATE_REFUSED


class InsecureUrlError(HubError, ValueError):
    """Plain HTTP to an address that is not loopback."""

    code = "insecure_url"
    exit_code = ExitCode.INSECURE_URL


class HubProtocolError(HubError):
    """The peer does not speak the node hub's protocol."""

    code = "protocol_error"
    exit_code = ExitCode.PORTAL_REFUSED


class HubArgumentsError(HubProtocolError):
    """The portal understood the call and will never take these arguments: saying it again does not help."""

    code = "arguments_invalid"


class HubRefusedError(HubError):
    """The portal answered with `errorMessage`."""

    code = "portal_refused"
    exit_code = ExitCode.PORTAL_REFUSED

    def __init__(self, text: str, hub_code: int = 1) -> None:
        super().__init__(text)
        self.hub_code = hub_code


class CodeRefusedError(HubRefusedError):
    """The verification code is wrong, used or expired."""

    code = "code_refused"
    exit_code = ExitCode.CODE_REFUSED


class NameTakenError(HubRefusedError):
    """Another node of the organisation has this name."""

    code = "name_taken"
    exit_code = ExitCode.NAME_TAKEN


def out_of_group(group: BaseExceptionGroup, kind: type[E]) -> E:
    """The first error of `kind` in what a task group raised; raises the group itself when it holds anything else.

    For an ordinary `except BaseExceptionGroup`: what is raised inside `except*` comes out wrapped in a group again on
    Python 3.11.2, which is Debian 12's.
    """
    matching, others = group.split(kind)
    if matching is None or others is not None:
        raise group
    found: BaseException = matching
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, kind)
    return found
