"""The look, as data: colour tokens of both themes, and the style sheet that they go into.

Every colour on a page is one of these names, so that a test can compute the contrast of each pair that is used.
"""

from __future__ import annotations

from pathlib import Path

LIGHT: dict[str, str] = {
    "ground": "#e8ebe8",
    "panel": "#fbfcfb",
    "well": "#f1f4f1",
    "line": "#d2d8d3",
    "edge": "#7b847f",
    "ink": "#1a1f1d",
    "muted": "#545d59",
    "accent": "#0b5c55",
    "accent-ink": "#ffffff",
    "accent-wash": "#dceae6",
    "good": "#17664a",
    "good-wash": "#dcebe1",
    "warn": "#774d00",
    "warn-wash": "#f6e8c4",
    "fault": "#a12d17",
    "fault-wash": "#f8dfd7",
    "idle": "#666c68",
    "pin-power": "#a12d17",
    "pin-power-low": "#9a5a12",
    "pin-ground": "#2b2f2d",
    "pin-gpio": "#e3e7e0",
    "pin-gpio-ink": "#1a1f1d",
    "pin-used": "#0b5c55",
    "pin-id": "#6b5a86",
}
"""Enamel, ink and one petrol accent."""

DARK: dict[str, str] = {
    "ground": "#0f1312",
    "panel": "#171c1a",
    "well": "#0b0e0d",
    "line": "#2b3330",
    "edge": "#75807b",
    "ink": "#e5e9e5",
    "muted": "#9ca7a1",
    "accent": "#6fcabd",
    "accent-ink": "#06201c",
    "accent-wash": "#17322e",
    "good": "#70cc9b",
    "good-wash": "#15301f",
    "warn": "#eaba52",
    "warn-wash": "#35290d",
    "fault": "#ff937c",
    "fault-wash": "#3d1c14",
    "idle": "#8f9a95",
    "pin-power": "#b8412a",
    "pin-power-low": "#9a5a12",
    "pin-ground": "#000000",
    "pin-gpio": "#39423e",
    "pin-gpio-ink": "#e5e9e5",
    "pin-used": "#6fcabd",
    "pin-id": "#77659a",
}
"""The same panel with the lights out."""

TEXT_PAIRS: tuple[tuple[str, str], ...] = (
    *((ink, ground) for ink in ("ink", "muted", "accent", "fault") for ground in ("ground", "panel", "well")),
    *((ink, ground) for ink in ("good", "warn", "idle") for ground in ("panel", "well")),
    ("ink", "accent-wash"),
    ("accent", "accent-wash"),
    ("accent-ink", "accent"),
    ("good", "good-wash"),
    ("warn", "warn-wash"),
    ("fault", "fault-wash"),
    ("ink", "warn-wash"),
    ("ink", "fault-wash"),
    ("pin-gpio-ink", "pin-gpio"),
)
"""Text on ground, as the style sheet pairs them: at least 4.5 to 1."""

SHAPE_PAIRS: tuple[tuple[str, str], ...] = (
    ("edge", "panel"),
    ("edge", "ground"),
    ("good", "ground"),
    ("warn", "ground"),
    ("idle", "ground"),
    ("accent", "ground"),
)
"""Edges of controls and status marks: at least 3 to 1."""

STYLE_SHEET = Path(__file__).with_name("style.css")

THEME_SCRIPT = Path(__file__).with_name("theme.js")


def style_sheet() -> str:
    """Return the tokens of both themes, followed by the rules that use them."""
    return (
        f":root {{ {_declarations(LIGHT)} color-scheme: light; }}\n"
        f":root[data-theme=dark] {{ {_declarations(DARK)} color-scheme: dark; }}\n"
        + STYLE_SHEET.read_text(encoding="utf-8")
    )


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two `#rrggbb` colours, from 1 to 21, as WCAG 2 defines it."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _declarations(tokens: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in tokens.items())


def _luminance(colour: str) -> float:
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
