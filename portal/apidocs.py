"""A page that shows the API: rendered from the OpenAPI document, with nothing loaded from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --get: #1769aa; --post: #2e7d32; --put: #b26a00;
  --patch: #6a4fb3; --delete: #c62828 }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem }
code, pre { font-family: ui-monospace, monospace; font-size: .875rem }
pre { background: var(--soft); border-radius: 6px; overflow: auto; padding: .75rem }
h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; text-transform: capitalize }
details { border: 1px solid var(--line); border-radius: 8px; margin: .5rem 0; padding: .25rem .75rem }
summary { cursor: pointer; padding: .25rem 0 } summary code { overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
td, th { border-top: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top }
.m { border-radius: 4px; color: #fff; display: inline-block; font-weight: 600; margin-right: .5rem; min-width: 4rem;
  padding: 0 .4rem; text-align: center }
.get { background: var(--get) } .post { background: var(--post) } .put { background: var(--put) }
.patch { background: var(--patch) } .delete { background: var(--delete) }
"""
_DEPTH = 6


@router.get("/api/docs")
async def show_docs(request: Request) -> HTMLResponse:
    """Show the API."""
    page = render(request.app.openapi())
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})


def render(document: dict[str, Any]) -> str:
    """The OpenAPI document as a page."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(document, path, method, operation))
    links = " · ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in groups)
    parts = [f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(items)}' for tag, items in groups.items()]
    info = document["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(info['title'])}: API</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])}: API</h1><p>{_text(info.get('description', ''))}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI). Version {escape(info["version"])}.</p>'
        f"<nav>{links}</nav>{''.join(parts)}</html>"
    )


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{_text(operation.get('description', ''))}</p>"]
    if parameters := operation.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{escape(item['name'])}</code><td>{escape(item['in'])}"
            f"{' (required)' if item.get('required') else ''}<td>{_text(_about(document, item))}"
            for item in parameters
        )
        parts.append(f"<table><tr><th>Parameter<th>Where<th>What{rows}</table>")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append(f"<h4>Send</h4>{_fields(document, body)}<pre>{_sample(document, body)}</pre>")
    for status, answer in operation.get("responses", {}).items():
        if not status.startswith("2"):
            continue
        schema = answer.get("content", {}).get("application/json", {}).get("schema")
        shown = (
            f"<pre>{_sample(document, schema)}</pre>" if schema else f"<p>{_text(answer.get('description', ''))}</p>"
        )
        parts.append(f"<h4>Answer {escape(status)}</h4>{shown}")
    summary = _text((operation.get("description") or operation.get("summary", "")).split("\n\n")[0].split(". ")[0])
    return (
        f'<details><summary><span class="m {method}">{method.upper()}</span><code>{escape(path)}</code> '
        f"{summary}</summary>{''.join(parts)}</details>"
    )


def _about(document: dict[str, Any], parameter: dict[str, Any]) -> str:
    schema = _resolve(document, parameter.get("schema", {}))
    about = [parameter.get("description", "")]
    if "enum" in schema:
        about.append("One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".")
    if schema.get("default") not in (None, ""):
        about.append(f"Default `{schema['default']}`.")
    return " ".join(part for part in about if part)


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> str:
    resolved = _resolve(document, schema)
    required = set(resolved.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{'required' if name in required else ''}<td>{_text(about)}"
        for name, item in resolved.get("properties", {}).items()
        if (about := item.get("description") or _resolve(document, item).get("description", "")) or name in required
    )
    return f"<table><tr><th>Field<th><th>What{rows}</table>" if rows else ""


def _sample(document: dict[str, Any], schema: dict[str, Any]) -> str:
    return escape(json.dumps(_example(document, schema, 0), indent=2, ensure_ascii=False))


def _example(document: dict[str, Any], schema: dict[str, Any], depth: int) -> Any:
    """A value that fits a schema: its own example where it has one."""
    if schema.get("examples"):
        return schema["examples"][0]
    resolved = _resolve(document, schema)
    if resolved is not schema and resolved.get("examples"):
        return resolved["examples"][0]
    if depth > _DEPTH:
        return "…"
    for key in ("default", "const"):
        if resolved.get(key) is not None:
            return resolved[key]
    if options := resolved.get("anyOf"):
        return _example(document, options[0], depth + 1)
    if "enum" in resolved:
        return resolved["enum"][0]
    match resolved.get("type"):
        case "object":
            fields = resolved.get("properties", {})
            return {name: _example(document, item, depth + 1) for name, item in fields.items()}
        case "array":
            return [_example(document, resolved.get("items", {}), depth + 1)]
        case "integer" | "number":
            return resolved.get("minimum", 0)
        case "boolean":
            return True
        case "string":
            return "2026-01-01T12:00:00Z" if resolved.get("format") == "date-time" else "…"
        case _:
            return None


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _text(text: str) -> str:
    """Escape, and set what stands in backquotes as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
