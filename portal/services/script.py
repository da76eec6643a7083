"""What can be said about a script without running it: its class, its syntax, its requirements, its properties."""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
import tomllib
import warnings

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import ValidationError

from portal.errors import InvalidError
from portal.services.views import FILE_PATTERN, SOURCE_LIMIT_CHARACTERS, PropertyDefinitions

_HEADER_BEGIN = "# /// script"
_HEADER_END = "# ///"

TEMPLATE = '''from base_service import CustomService


class {name}(CustomService):
    """Say here what this service does."""

    def __init__(self, id, queue, config):
        super().__init__(id, queue, config)

    async def Start(self):
        await self.Debug("Started")

    async def Stop(self):
        await self.Debug("Stopped")

    async def Process(self, message):
        await self.Debug(f"Received {{message.message[0]}}")
'''


def service_id(file: str) -> str:
    """`ReadGPIO.py` → `readgpio_py`."""
    return file.lower().replace(".", "_")


def class_name(file: str) -> str:
    """`ReadGPIO.py` → `ReadGPIO`."""
    return file.removesuffix(".py")


def sha256(source: str) -> str:
    """Of the bytes that nodes download."""
    return hashlib.sha256(source.encode()).hexdigest()


def check_file(file: str) -> None:
    """Raise InvalidError (`file_name_invalid`) for what cannot be a service's file."""
    if not re.fullmatch(FILE_PATTERN, file):
        raise InvalidError(
            f"{file[:80]!r} cannot be a service's file: it must be a class name and .py, such as ReadGPIO.py.",
            code="file_name_invalid",
            field="file",
        )


def check_source(file: str, source: str) -> list[str]:
    """Check a script and return its requirements.

    Raises InvalidError with code `syntax_error` (and `line`, `column`, `text`), `class_name_mismatch`,
    `requirements_invalid` or `source_too_large`.
    """
    if len(source) > SOURCE_LIMIT_CHARACTERS:
        raise InvalidError(
            f"{file} has {len(source)} characters; at most {SOURCE_LIMIT_CHARACTERS} are possible.",
            code="source_too_large",
            field="source",
        )
    tree = _parse(file, source)
    name = class_name(file)
    classes = [(node.name, node.lineno) for node in tree.body if isinstance(node, ast.ClassDef)]
    if name not in [found for found, _ in classes]:
        found = f"it has {', '.join(found for found, _ in classes)}" if classes else "it has no class"
        raise InvalidError(
            f"{file} must contain the class {name}, but {found}. Rename the class or the file.",
            code="class_name_mismatch",
            field="source",
            extra={"line": classes[0][1] if classes else 1, "column": 1, "text": ""},
        )
    return requirements(file, source)


def _parse(file: str, source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            # Python's own remarks about a user's script are not the portal's.
            warnings.simplefilter("ignore")
            return ast.parse(source, file)
    except SyntaxError as error:
        text = (error.text or "").rstrip("\n")[:200]
        raise InvalidError(
            f"{file}, line {error.lineno}: {error.msg}.",
            code="syntax_error",
            field="source",
            extra={"line": error.lineno, "column": error.offset, "text": text},
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidError(
            f"{file} cannot be read as Python: {str(error) or 'it is nested too deeply'}.",
            code="syntax_error",
            field="source",
            extra={"line": 1, "column": 1, "text": ""},
        ) from error


def requirements(file: str, source: str) -> list[str]:
    """The requirements of a script's PEP 723 header. Raises InvalidError (`requirements_invalid`)."""
    header = _header(source)
    if header is None:
        return []
    try:
        listed = tomllib.loads(header).get("dependencies", [])
    except tomllib.TOMLDecodeError as error:
        raise _requirements_error(f"the `# /// script` header of {file} is not TOML: {error}") from error
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise _requirements_error(f"`dependencies` in the header of {file} must be a list of strings")
    for item in listed:
        try:
            Requirement(item)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            raise _requirements_error(f"the requirement {item!r} of {file} is not valid: {reason}") from error
    return listed


def _requirements_error(what: str) -> InvalidError:
    return InvalidError(
        f"{what[0].upper()}{what[1:].rstrip('.')}. See PEP 723 for the form.",
        code="requirements_invalid",
        field="source",
        extra={"line": 1, "column": 1, "text": _HEADER_BEGIN},
    )


def _header(source: str) -> str | None:
    """The text between the header's first and last line, without its comment signs."""
    lines = iter(source.splitlines())
    if not any(line.rstrip() == _HEADER_BEGIN for line in lines):
        return None
    content: list[str] = []
    end: int | None = None
    for line in lines:
        if line.rstrip() == _HEADER_END:
            end = len(content)
        if line != "#" and not line.startswith("# "):
            break
        content.append(line[2:])
    return None if end is None else "\n".join(content[:end])


def rename_class(source: str, old: str, new: str) -> str:
    """Call the class `old` of a script `new`, wherever the name stands as a name."""
    if old == new:
        return source
    # The tokenizer's lines end at newlines alone, those of `splitlines` also at form feeds and the like.
    lines = io.StringIO(source).readlines()
    try:
        tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    except (tokenize.TokenError, SyntaxError):
        return source  # the check that follows says what is wrong with it
    for token in reversed(tokens):
        if token.type == tokenize.NAME and token.string == old:
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + new + line[column + len(old) :]
    return "".join(lines)


def documentation(file: str, source: str) -> str:
    """The docstring of the module, else of the service's class."""
    tree = _parse(file, source)
    text = ast.get_docstring(tree)
    if text:
        return text
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name(file):
            return ast.get_docstring(node) or ""
    return ""


def properties(file: str, source: str) -> PropertyDefinitions:
    """The properties that a script declares as `PROPERTIES = {"static": […], "security": […]}`; none if it does not.

    The constant may stand in the module or in the service's class; it is read, not run. Raises InvalidError
    (`properties_invalid`).
    """
    value = _constant(_parse(file, source), class_name(file), "PROPERTIES")
    if value is None:
        return PropertyDefinitions()
    try:
        found = ast.literal_eval(value)
        return PropertyDefinitions.model_validate({"static": found} if isinstance(found, list) else found)
    except (ValueError, TypeError, ValidationError) as error:
        raise InvalidError(
            f"PROPERTIES of {file} cannot be used: {str(error).splitlines()[0]}. It must be a literal such as "
            '{"static": [{"id": "gpio_pin", "type": "number", "default": 17}], "security": []}.',
            code="properties_invalid",
            field="source",
        ) from error


def category(file: str, source: str) -> str:
    """What a script declares as `CATEGORY = "…"`; empty if it does not."""
    value = _constant(_parse(file, source), class_name(file), "CATEGORY")
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def _constant(tree: ast.Module, class_of_service: str, name: str) -> ast.expr | None:
    bodies = [tree.body]
    bodies += [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_of_service]
    for body in bodies:
        for node in body:
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            else:
                continue
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value
    return None
