"""The portal's drawings, as SVG text: stroked on a 20 by 20 grid, in the colour of the text beside them."""

from __future__ import annotations

from typing import Literal

BRAND = (
    '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" '
    'stroke-linejoin="round" aria-hidden="true"><path d="M4 21h16M7 21l5-13 5 13M9 16h6"/>'
    '<circle cx="12" cy="6" r="1.8" fill="var(--accent)" stroke="none"/>'
    '<path d="M8.4 9.2a4.8 4.8 0 0 1 0-6.4M15.6 9.2a4.8 4.8 0 0 0 0-6.4" stroke="var(--accent)"/></svg>'
)
"""A mast that sends."""

FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#0b5c55" stroke-width="2" '
    'stroke-linecap="round" stroke-linejoin="round"><rect width="24" height="24" rx="5" fill="#fbfcfb" stroke="none"/>'
    '<path d="M6 20h12M8 20l4-11 4 11"/><circle cx="12" cy="7" r="1.6" fill="#0b5c55" stroke="none"/>'
    '<path d="M8.8 9.8a4.2 4.2 0 0 1 0-5.6M15.2 9.8a4.2 4.2 0 0 0 0-5.6"/></svg>'
)

_PATHS: dict[str, str] = {
    "overview": '<path d="M3 10.5 10 4l7 6.5M5 9v7h10V9M8.5 16v-4h3v4"/>',
    "nodes": '<rect x="5" y="5" width="10" height="10" rx="1.5"/>'
    '<path d="M8 5V2.5M12 5V2.5M8 17.5V15M12 17.5V15M5 8H2.5M5 12H2.5M17.5 8H15M17.5 12H15"/>',
    "services": '<path d="M7 5 2.5 10 7 15M13 5l4.5 5-4.5 5M11.2 3.5 8.8 16.5"/>',
    "flows": '<circle cx="4.5" cy="10" r="2"/><circle cx="15.5" cy="4.5" r="2"/><circle cx="15.5" cy="15.5" r="2"/>'
    '<path d="M6.5 10H9c2 0 1.5-5.5 4.5-5.5M9 10c2 0 1.5 5.5 4.5 5.5"/>',
    "console": '<rect x="2.5" y="4" width="15" height="12" rx="1.5"/><path d="m5.5 8 2.5 2-2.5 2M10 12.5h4"/>',
    "book": '<path d="M10 5.5C8.5 4 6 3.5 3 3.5V15c3 0 5.5.5 7 2 1.5-1.5 4-2 7-2V3.5c-3 0-5.5.5-7 2z"/>'
    '<path d="M10 5.5V17"/>',
    "leave": '<path d="M8 3.5H4v13h4M12.5 6.5 16 10l-3.5 3.5M16 10H7.5"/>',
    "person": '<circle cx="10" cy="7" r="3"/><path d="M4 17c.5-3.5 3-5 6-5s5.5 1.5 6 5"/>',
    "plus": '<path d="M10 4v12M4 10h12"/>',
    "close": '<path d="m5 5 10 10M15 5 5 15"/>',
    "check": '<path d="m4 10.5 4 4 8-9"/>',
    "trash": '<path d="M3.5 5.5h13M8 5.5v-2h4v2M5 5.5l.8 11h8.4l.8-11M8.5 9v4.5M11.5 9v4.5"/>',
    "restart": '<path d="M16 10a6 6 0 1 1-2-4.5M16 2.5v3.5h-3.5"/>',
    "search": '<circle cx="9" cy="9" r="5"/><path d="m13 13 4 4"/>',
    "upload": '<path d="M10 13V3.5M6 7l4-3.5L14 7M3.5 13v3.5h13V13"/>',
    "next": '<path d="m8 4.5 5.5 5.5L8 15.5"/>',
}

_MARKS: dict[str, str] = {
    "good": '<circle cx="6" cy="6" r="5" fill="currentColor"/>',
    "idle": '<circle cx="6" cy="6" r="4.25" fill="none" stroke="currentColor" stroke-width="1.5"/>',
    "busy": '<circle cx="6" cy="6" r="4.25" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    '<path d="M6 1.75a4.25 4.25 0 0 1 0 8.5z" fill="currentColor"/>',
    "warn": '<path d="M6 .8 11.6 11H.4z" fill="currentColor"/>',
    "fault": '<path d="M6 0 12 6 6 12 0 6z" fill="currentColor"/>',
    "off": '<rect x="1.25" y="1.25" width="9.5" height="9.5" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    '<path d="M3.5 6h5" stroke="currentColor" stroke-width="1.5"/>',
}

MarkKind = Literal["good", "idle", "busy", "warn", "fault", "off"]


def icon(name: str) -> str:
    """Return the SVG of a drawing; it says nothing to a screen reader, so a word stands beside it or labels it."""
    return f'<svg viewBox="0 0 20 20" aria-hidden="true">{_PATHS[name]}</svg>'


def mark(kind: MarkKind) -> str:
    """Return the SVG of a status mark: its shape alone tells the kinds apart."""
    return f'<svg viewBox="0 0 12 12" aria-hidden="true">{_MARKS[kind]}</svg>'
