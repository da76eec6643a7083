"""What the emulator refuses, as one tree.

OutstationError
├── EmulatorError
│   ├── DeviceNotFoundError (LookupError)      no device of that name is registered
│   ├── DeviceInvalidError (ValueError)        a device's name, key or thumbprint cannot be used
│   ├── DeviceOfflineError (ConnectionError)   the device has no link, so a direct method cannot reach it
│   ├── MethodTimeoutError (TimeoutError)      the device did not answer a direct method in time
│   ├── MessageInvalidError (ValueError)       a cloud-to-device message or a twin patch cannot be used
│   └── QueueFullError                         too many cloud-to-device messages wait for the device
└── (from the agent's tree) ConfigError, StorageError, AlreadyRunningError
"""

from __future__ import annotations

from typing import ClassVar

from agent.errors import OutstationError


class EmulatorError(OutstationError):
    """The emulator says no; `http_status` is what its HTTP API answers."""

    code = "emulator_error"
    http_status: ClassVar[int] = 400


class DeviceNotFoundError(EmulatorError, LookupError):
    """No device of that name is registered."""

    code = "device_not_found"
    http_status = 404


class DeviceInvalidError(EmulatorError, ValueError):
    """A device's name, key or thumbprint cannot be used; nothing was changed."""

    code = "device_invalid"


class DeviceOfflineError(EmulatorError, ConnectionError):
    """The device is not connected, or does not listen for direct methods."""

    code = "device_offline"
    http_status = 409


class MethodTimeoutError(EmulatorError, TimeoutError):
    """The device did not answer a direct method in time."""

    code = "method_timeout"
    http_status = 504


class MessageInvalidError(EmulatorError, ValueError):
    """A message or a twin patch cannot be used; nothing was changed."""

    code = "message_invalid"


class QueueFullError(EmulatorError):
    """Too many cloud-to-device messages wait for this device."""

    code = "queue_full"
    http_status = 429
