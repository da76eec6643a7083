from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.errors import InvalidError
from portal.services import script
from portal.services.library import load_library


@pytest.mark.parametrize(
    ("source", "static"),
    [
        ("class A: pass", []),
        ("PROPERTIES = [{'id': 'pin'}]\nclass A: pass", ["pin"]),
        ("PROPERTIES: list = [{'id': 'pin'}]\nclass A: pass", ["pin"]),
        ("class A:\n    PROPERTIES = {'static': [{'id': 'pin'}], 'security': []}", ["pin"]),
        ("class B:\n    PROPERTIES = [{'id': 'pin'}]\nclass A: pass", []),
    ],
)
def test_properties_are_read_without_running_the_script(source: str, static: list[str]) -> None:
    assert [item.id for item in script.properties("A.py", source).static] == static


@pytest.mark.parametrize("value", ["open('x')", "7", "[{'name': 'pin'}]", "[{'id': 'two words'}]"])
def test_properties_that_are_no_literal_or_not_of_the_form_are_refused(value: str) -> None:
    with pytest.raises(InvalidError) as refused:
        script.properties("A.py", f"PROPERTIES = {value}\nclass A: pass")
    assert refused.value.problem_code == "properties_invalid"


def test_class_is_renamed_where_it_is_a_name_only() -> None:
    source = (
        'class Old:\n    """Old one."""\n    def __init__(self):\n        super(Old, self).__init__()\nOlder = "Old"\n'
    )
    renamed = script.rename_class(source, "Old", "New")
    assert renamed == source.replace("class Old", "class New").replace("super(Old,", "super(New,")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("# /// script\n# dependencies = ['a']\n# ///", ["a"]),
        ("# /// script\n# dependencies = [\n#   'a',\n#   'b>1',\n# ]\n# ///", ["a", "b>1"]),
        ("# /// script\n#\n# dependencies = ['a']\n# ///\n", ["a"]),
        ("# /// script\n# dependencies = ['a']\n", []),
        ("#/// script\n# dependencies = ['a']\n# ///", []),
        ("x = 1", []),
    ],
)
def test_requirements_are_those_of_the_header(header: str, expected: list[str]) -> None:
    assert script.requirements("A.py", header) == expected


def refusal(file: str, source: str) -> InvalidError | None:
    try:
        script.check_source(file, source)
    except InvalidError as error:
        return error
    return None


@given(st.text(max_size=300))
def test_any_text_is_either_a_script_or_refused_with_a_line(source: str) -> None:
    refused = refusal("A.py", source)
    assert refused is None or {"line", "column", "text"} <= refused.extra.keys()


def test_template_is_a_script() -> None:
    assert script.check_source("Heating.py", script.TEMPLATE.format(name="Heating")) == []


def test_library_is_read_whole() -> None:
    library = load_library()
    assert {"ReadGPIO", "SystemMetrics"} <= library.keys()
    for entry in library.values():
        script.check_file(entry.file)
        script.check_source(entry.file, entry.source)
        assert entry.summary, entry.file
        assert entry.category, entry.file


def test_form_feed_does_not_shift_what_is_renamed() -> None:
    source = 'import os\n\x0c\nTEXT = "a\u2028b"\n\n\nclass Old:\n    pass\n'
    assert script.rename_class(source, "Old", "New") == source.replace("class Old", "class New")
