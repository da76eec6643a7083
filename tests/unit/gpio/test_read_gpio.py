"""ReadGPIO's reading of properties and times."""

import importlib
import time
from typing import Any

import pytest

library: Any = importlib.import_module("services.library.ReadGPIO")


class Node:
    """A service with the given static properties and no node."""

    def __new__(cls, **properties: Any) -> Any:
        config = {"staticConfig": [{"id": id, "value": value} for id, value in properties.items()]}
        service = library.ReadGPIO.__new__(library.ReadGPIO)
        library.ReadGPIO.__init__(service, "readgpio_py", None, config)
        return service


@pytest.mark.parametrize(
    ("value", "pins"),
    [
        ("17", [17]),
        ("17,27", [17, 27]),
        (" 17 ; 27 ", [17, 27]),
        (17, [17]),
        ([17, "27"], [17, 27]),
        ("GPIO4,bcm5", [4, 5]),
    ],
)
def test_pins_are_read_however_they_are_written(value: Any, pins: list[int]) -> None:
    assert library.parse_pins(value) == pins


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("", "is empty; give BCM numbers separated by commas, for example 17,27"),
        ("28", "names '28'; a pin is a BCM number from 0 to 27"),
        ("-1", "names '-1'; a pin is a BCM number from 0 to 27"),
        ("seventeen", "names 'seventeen'; a pin is a BCM number"),
        ("17,4,17", "names pin 17 twice"),
    ],
)
def test_wrong_pins_are_one_clear_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        library.parse_pins(value)


def test_defaults_are_those_that_the_portal_shows() -> None:
    shown = {each["id"]: each["default"] for each in library.PROPERTIES}

    settings = Node(pins=shown["pins"]).read_settings()

    assert settings == library.Settings(
        pins=[17], edge=shown["edge"], pull=shown["pull"],
        debounce=shown["debounce"], interval=shown["interval"], heartbeat=shown["heartbeat"],
    )  # fmt: skip


def test_the_old_property_gpio_pin_still_works() -> None:
    assert Node(gpio_pin="22").read_settings().pins == [22]
    assert Node(gpio_pin="22", pins="").read_settings().pins == [22]


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"edge": "up"}, "The property 'edge' is 'up'; it can be both, rising, falling."),
        ({"pull": "left"}, "The property 'pull' is 'left'; it can be up, down, none."),
        ({"debounce": "fast"}, "The property 'debounce' is 'fast'; it must be a number of seconds."),
        ({"debounce": -1}, "The property 'debounce' is -1 s; it must be between 0 and 10 s."),
        ({"interval": "nan"}, "The property 'interval' is nan s; it must be between 0 and 86400 s."),
        ({"heartbeat": 1e9}, "The property 'heartbeat' is 1e+09 s; it must be between 0 and 86400 s."),
    ],
)
def test_wrong_values_are_one_clear_sentence(properties: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        Node(pins="17", **properties).read_settings()

    assert str(error.value) == sentence


def test_ticks_of_both_kinds_of_kernel_become_the_time_of_the_edge() -> None:
    now, since_boot = time.time(), time.monotonic()

    assert library.wall_time(since_boot - 2) == pytest.approx(now - 2, abs=0.1)
    assert library.wall_time(now - 2) == pytest.approx(now - 2, abs=0.001)
    assert library.wall_time(12345.0 + 1e12) == pytest.approx(now, abs=0.1)
