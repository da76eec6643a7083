"""The 40-pin header of a Raspberry Pi, drawn: what each pin is, and which service uses it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

PinKind = Literal["3v3", "5v", "ground", "gpio", "id"]


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin of the header."""

    number: int
    """Its place on the board, 1 to 40; odd numbers are the left column."""
    kind: PinKind
    bcm: int | None = None
    """The number that gpiozero and the services use."""
    function: str = ""
    """What else it can be."""

    @property
    def name(self) -> str:
        """What is printed beside it."""
        if self.bcm is not None:
            return f"GPIO {self.bcm}"
        return {"3v3": "3.3 V", "5v": "5 V", "ground": "Ground"}[self.kind]


def _pins() -> tuple[Pin, ...]:
    # The header of every Pi with 40 pins; numbers as in the Raspberry Pi documentation's "GPIO and the 40-pin header".
    gpio = {
        3: (2, "SDA1"), 5: (3, "SCL1"), 7: (4, "GPCLK0"), 8: (14, "TXD0"), 10: (15, "RXD0"), 11: (17, ""),
        12: (18, "PCM CLK"), 13: (27, ""), 15: (22, ""), 16: (23, ""), 18: (24, ""), 19: (10, "MOSI"),
        21: (9, "MISO"), 22: (25, ""), 23: (11, "SCLK"), 24: (8, "CE0"), 26: (7, "CE1"), 29: (5, ""), 31: (6, ""),
        32: (12, "PWM0"), 33: (13, "PWM1"), 35: (19, "PCM FS"), 36: (16, ""), 37: (26, ""), 38: (20, "PCM DIN"),
        40: (21, "PCM DOUT"),
    }  # fmt: skip
    pins = []
    for number in range(1, 41):
        if number in gpio:
            bcm, function = gpio[number]
            pins.append(Pin(number, "gpio", bcm, function))
        elif number in (27, 28):
            pins.append(Pin(number, "id", number - 27, "ID EEPROM"))
        elif number in (1, 17):
            pins.append(Pin(number, "3v3"))
        elif number in (2, 4):
            pins.append(Pin(number, "5v"))
        else:
            pins.append(Pin(number, "ground"))
    return tuple(pins)


PINS = _pins()
GPIO_NUMBERS = frozenset(pin.bcm for pin in PINS if pin.bcm is not None)
LEGEND: tuple[tuple[str, str], ...] = (
    ("pin-used", "used by a service"),
    ("pin-gpio", "free GPIO"),
    ("pin-power", "5 V"),
    ("pin-power-low", "3.3 V"),
    ("pin-ground", "ground"),
    ("pin-id", "HAT identity"),
)
_FILL: dict[PinKind, str] = {
    "3v3": "pin-power-low",
    "5v": "pin-power",
    "ground": "pin-ground",
    "gpio": "pin-gpio",
    "id": "pin-id",
}
_PIN_PROPERTY = re.compile(r"(^|[_.-])(gpio|pins?|bcm)([_.-]|$)|[a-z]Pins?$|^gpio", re.IGNORECASE)
_ROW = 21
_WIDTH = 350
_MIDDLE = _WIDTH / 2


def pins_of(properties: Mapping[str, Any]) -> set[int]:
    """The BCM numbers that a service's static properties name.

    A property counts when its id says pin or gpio; its value may be a number, a text of numbers or a list.

    Example:
        >>> sorted(pins_of({"gpio_pins": "17, 27", "interval": 22}))
        [17, 27]
    """
    found: set[int] = set()
    for name, value in properties.items():
        if not _PIN_PROPERTY.search(name):
            continue
        values = value if isinstance(value, list) else [value]
        for each in values:
            found.update(int(number) for number in re.findall(r"\d+", str(each)))
    return found & GPIO_NUMBERS


def drawing(used: Mapping[int, str]) -> str:
    """Return the header as SVG; `used` says which service has a BCM number."""
    height = 20 * _ROW + 12
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(_summary(used), quote=True)}">',
        f'<rect x="{_MIDDLE - 27}" y="1" width="54" height="{height - 2}" rx="5" fill="var(--well)" '
        'stroke="var(--line)"/>',
    ]
    for pin in PINS:
        parts.append(_pin(pin, used))
    parts.append("</svg>")
    return "".join(parts)


def _summary(used: Mapping[int, str]) -> str:
    if not used:
        return "40-pin header; no pin is used by a service."
    pins = ", ".join(f"GPIO {bcm} by {service}" for bcm, service in sorted(used.items()))
    return f"40-pin header; used: {pins}."


def _pin(pin: Pin, used: Mapping[int, str]) -> str:
    left = pin.number % 2 == 1
    side = -1 if left else 1
    x = _MIDDLE + side * 12
    y = 6 + _ROW * ((pin.number - 1) // 2) + _ROW / 2
    user = used.get(pin.bcm) if pin.bcm is not None else None
    fill = "pin-used" if user else _FILL[pin.kind]
    anchor = "end" if left else "start"
    label = escape(_clip(user)) if user else escape(pin.name)
    note = escape(pin.name) if user else escape(pin.function)
    shape = (
        f'<rect x="{x - 7}" y="{y - 7}" width="14" height="14" rx="2"'
        if pin.number == 1
        else f'<circle cx="{x}" cy="{y}" r="7"'
    )
    title = f"Pin {pin.number}: {pin.name}" + (f" ({pin.function})" if pin.function else "")
    title += f", used by {user}" if user else ""
    parts = [
        f"<g><title>{escape(title)}</title>",
        f'{shape} fill="var(--{fill})" stroke="var(--{"ink" if user else "edge"})"/>',
        f'<text x="{_MIDDLE + side * 36}" y="{y + 3.5}" text-anchor="{anchor}" font-size="10" fill="var(--muted)">'
        f"{pin.number}</text>",
    ]
    if user:
        # The dot tells a used pin apart where colour does not.
        parts.append(f'<circle cx="{x}" cy="{y}" r="2.2" fill="var(--accent-ink)"/>')
        parts.append(
            f'<line x1="{_MIDDLE + side * 20}" x2="{_MIDDLE + side * 29}" y1="{y}" y2="{y}" stroke="var(--accent)"/>'
        )
    colour = "accent" if user else ("ink" if pin.kind == "gpio" else "muted")
    weight = ' font-weight="700"' if user else ""
    parts.append(
        f'<text x="{_MIDDLE + side * 56}" y="{y + 4}" text-anchor="{anchor}" font-size="11.5"{weight} '
        f'fill="var(--{colour})">{label}</text>'
    )
    if note:
        parts.append(
            f'<text x="{_MIDDLE + side * 171}" y="{y + 3.5}" text-anchor="{"start" if left else "end"}" '
            f'font-size="9.5" fill="var(--muted)">{note}</text>'
        )
    parts.append("</g>")
    return "".join(parts)


def _clip(text: str) -> str:
    return text if len(text) <= 10 else f"{text[:9]}…"
