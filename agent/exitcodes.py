"""Exit statuses of the commands: stable, named, documented in `docs/reference/commands.md`."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CODE_REFUSED = 20
    NAME_TAKEN = 21
    PORTAL_UNREACHABLE = 22
    CERTIFICATE_REFUSED = 23
    STORAGE_FAILED = 24
    ALREADY_ENROLLED = 25
    NOT_ENROLLED = 26
    ALREADY_RUNNING = 27
    PORTAL_REFUSED = 28
    INSECURE_URL = 29
    MISSING_EXTRA = 30
    CONFIG_INVALID = 78
    """As sysexits.h's EX_CONFIG; the systemd unit does not restart on it."""
