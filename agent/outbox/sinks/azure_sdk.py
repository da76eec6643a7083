"""Azure's SDK without the HTTP client that it brings for other purposes.

The SDK imports `requests` to upload files and to ask an IoT Edge daemon for credentials. This agent does neither, and
the 200 modules behind it are a fifth of the memory of the sink's process. They are replaced by an empty stand-in while
the SDK is imported, in a process that runs nothing else. An SDK that wants more than that gets the real one.
"""

from __future__ import annotations

import sys
import types

_NAMES = ("requests", "requests_unixsocket")


class _HTTPAdapter:
    """Each client makes one, and would use it for an upload."""


def _stand_in(name: str) -> types.ModuleType:
    module = types.ModuleType(name, "A stand-in: nothing here sends anything by HTTP.")
    if name == "requests":
        module.adapters = types.SimpleNamespace(HTTPAdapter=_HTTPAdapter)  # type: ignore[attr-defined]
    else:
        module.monkeypatch = lambda: None  # type: ignore[attr-defined]
    return module


def _forget_sdk() -> None:
    for name in [name for name in sys.modules if name in _NAMES or name.startswith("azure.iot.device")]:
        del sys.modules[name]


if not any(name in sys.modules for name in (*_NAMES, "azure.iot.device")):
    sys.modules.update({name: _stand_in(name) for name in _NAMES})
    try:
        import azure.iot.device.aio  # noqa: F401 - the imports below find it loaded
    except (AttributeError, ImportError):
        _forget_sdk()

from azure.iot.device import X509, Message, MethodRequest, MethodResponse  # noqa: E402 - after the stand-ins
from azure.iot.device.aio import IoTHubDeviceClient  # noqa: E402

__all__ = ["X509", "IoTHubDeviceClient", "Message", "MethodRequest", "MethodResponse"]
