"""From a script on the disk to a service object."""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

from agent.runtime.frames import Begin
from services.sdk.base_service import BaseService, CustomService, ServiceQueue


class LoadError(Exception):
    """The script is not a service, and will not be one however often it is tried."""


def read_script(begin: Begin) -> bytes:
    """The script's bytes, which are those that the deployment names.

    Raises LoadError when it is missing or another than it should be.
    """
    path = Path(begin.script)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{begin.file_name} cannot be read at {path}: {error.strerror}.") from error
    if begin.sha256 and hashlib.sha256(source).hexdigest() != begin.sha256:
        raise LoadError(
            f"{begin.file_name} {begin.version} is not what the deployment says: its SHA-256 differs. "
            "Restart the node to have it downloaded again."
        )
    return source


def compile_script(begin: Begin, source: bytes) -> types.CodeType:
    """Compile, with the script's own path in its tracebacks. Raises LoadError for what is not Python."""
    try:
        return compile(source, begin.script, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise LoadError(f"{begin.file_name} is not valid Python: {error}.") from error


def find_class(begin: Begin, code: types.CodeType) -> type[BaseService]:
    """Run the script as a module and return the class that is named as the file.

    Raises LoadError, naming both, when there is none; what the script itself raises comes through.
    """
    module = types.ModuleType(begin.class_name)
    module.__file__ = begin.script
    # Pickle and dataclasses look the module up by name; a module that Python itself has loaded is left in its place.
    sys.modules.setdefault(begin.class_name, module)
    exec(code, module.__dict__)  # noqa: S102 - running the author's script is what this process is for
    found = module.__dict__.get(begin.class_name)
    if isinstance(found, type) and issubclass(found, BaseService):
        return found
    if isinstance(found, type):
        raise LoadError(
            f"{begin.file_name}: the class {begin.class_name} is not a service. "
            f"Write: class {begin.class_name}(CustomService)."
        )
    services = [
        name
        for name, value in module.__dict__.items()
        if isinstance(value, type) and issubclass(value, BaseService) and value.__module__ == begin.class_name
    ]
    raise LoadError(
        f"{begin.file_name} has no class {begin.class_name}; the class must be named as the file. "
        + (f"It has {', '.join(services)}." if services else "It has no service class at all.")
    )


def construct(found: type[BaseService], service: str, queue: ServiceQueue, config: dict[str, Any]) -> BaseService:
    """Call the constructor with what it accepts: `(id, queue, config)`, or `(id, queue)` as older services do.

    Raises TypeError when it accepts neither; what the constructor raises comes through.
    """
    signature = inspect.signature(found.__init__)
    for arguments in ((service, queue, config), (service, queue)):
        try:
            signature.bind(None, *arguments)
        except TypeError:
            continue
        made: BaseService = found(*arguments)
        if not hasattr(made, "config"):
            made.config = config
        return made
    raise TypeError(f"The constructor of {found.__name__} takes {signature}; it must take (self, id, queue, config).")


# What the SDK has for itself; a service that overrides one of them offers it as an action.
_NAMES = {name: value for cls in reversed(CustomService.__mro__) for name, value in vars(cls).items()}
_OFFERED_BY_ALL = frozenset(("Process", "StateUpdate", "msb_signed_in"))


def find_action(service: BaseService, name: str) -> Any | None:
    """The method that messages with this action go to, or None."""
    if name.startswith("__"):
        return None
    method = getattr(service, name, None)
    if not callable(method):
        return None
    if name in _OFFERED_BY_ALL or name not in _NAMES:
        return method
    function = getattr(method, "__func__", method)
    return None if function is _NAMES[name] else method
