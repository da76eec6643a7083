"""Requirements: what is valid, what is the same, what is there already."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from agent.runtime.packages import RequirementError, ScriptMetadataError, environment_key, pep723_dependencies
from agent.runtime.requirements import InstalledPackages, normalise, parse_requirements

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Write a package's metadata into `tmp_path`, as an installer does."""

    def write(name: str, version: str, *requires: str, url: str = "") -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), ""]))
        if url:
            (folder / "direct_url.json").write_text(json.dumps({"url": url}))

    return write


def satisfied(folder: Path, *requirements: str) -> bool:
    return InstalledPackages([str(folder)]).satisfy(Requirement(each) for each in requirements)


@pytest.mark.parametrize(
    "text", ["paho mqtt", "paho-mqtt==", "-r other.txt", "--index-url=https://example.org", "", "a; b"]
)
def test_what_is_not_a_requirement_is_named_in_the_error(text: str) -> None:
    with pytest.raises(RequirementError) as error:
        parse_requirements([text])

    assert repr(text) in str(error.value)


def test_a_password_in_a_wrong_requirement_is_not_repeated() -> None:
    with pytest.raises(RequirementError) as error:
        parse_requirements(["a @@ https://user:hunter2@example.org/a.whl"])

    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("paho-mqtt>=2,<3", "Paho_MQTT <3, >=2"),
        ("azure.iot-device[a,b]", "azure-iot-device[B,A]"),
        ("x>1; python_version>='3'", "x>1"),
    ],
)
def test_two_spellings_of_a_requirement_are_one(one: str, other: str) -> None:
    assert normalise(Requirement(one)) == normalise(Requirement(other))
    assert environment_key(parse_requirements([one])) == environment_key(parse_requirements([other, one]))


def test_requirements_for_other_machines_are_left_out() -> None:
    assert list(parse_requirements(["a; sys_platform=='win32'", "b; sys_platform=='linux'"])) == ["b"]


def test_different_requirements_have_different_folders() -> None:
    keys = {environment_key(parse_requirements(each)) for each in (["a"], ["a>1"], ["a[x]"], ["b"], ["a", "b"])}

    assert len(keys) == 5


def test_a_package_satisfies_by_its_version(install: Install, tmp_path: Path) -> None:
    install("some_package", "1.5rc1")

    assert satisfied(tmp_path, "Some.Package")
    assert satisfied(tmp_path, "some-package>=1.4,<2")
    assert not satisfied(tmp_path, "some-package>=2")
    assert not satisfied(tmp_path, "another-package")


def test_what_a_package_requires_must_be_there_too(install: Install, tmp_path: Path) -> None:
    install("a", "1", "b>=2", "c; sys_platform == 'win32'")
    assert not satisfied(tmp_path, "a")

    install("b", "2", "a")  # in a circle, as it happens

    assert satisfied(tmp_path, "a")


def test_an_extra_is_there_when_its_packages_are(install: Install, tmp_path: Path) -> None:
    install("a", "1", "b; extra == 'fast'")
    assert satisfied(tmp_path, "a")
    assert not satisfied(tmp_path, "a[fast]")

    install("b", "1")

    assert satisfied(tmp_path, "a", "a[fast]")


def test_a_package_from_an_address_is_there_when_it_came_from_it(install: Install, tmp_path: Path) -> None:
    install("a", "1", url="https://example.org/a-1.whl")
    install("b", "1")

    assert satisfied(tmp_path, "a @ https://example.org/a-1.whl", "a==1")
    assert not satisfied(tmp_path, "a @ https://example.org/a-2.whl")
    assert not satisfied(tmp_path, "b @ https://example.org/b-1.whl")


def test_the_first_folder_of_the_path_counts(install: Install, tmp_path: Path) -> None:
    install("a", "2")
    first = tmp_path / "first"
    (first / "a-1.dist-info").mkdir(parents=True)
    (first / "a-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: a\nVersion: 1\n")

    both = InstalledPackages([str(first), str(tmp_path)])

    assert both.satisfy([Requirement("a==1")])
    assert not both.satisfy([Requirement("a==2")])


# --- PEP 723 ----------------------------------------------------------------------------------------------------------


def test_the_header_of_a_script_names_its_packages() -> None:
    script = """#!/usr/bin/env python
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "paho-mqtt>=2",  # the client
#   "pyserial",
# ]
#
# [tool.other]
# x = 1
# ///
\"\"\"A service.\"\"\"
"""

    assert pep723_dependencies(script) == ["paho-mqtt>=2", "pyserial"]
    assert pep723_dependencies(script.replace("\n", "\r\n")) == ["paho-mqtt>=2", "pyserial"]


@pytest.mark.parametrize(
    "script",
    ["", "print(1)\n", "# /// other\n# dependencies = ['a']\n# ///\n", "# /// script\n# ///\n", "    # /// script\n"],
)
def test_a_script_without_a_header_asks_for_nothing(script: str) -> None:
    assert pep723_dependencies(script) == []


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("# dependencies = [\n# ///", "is not valid TOML"),
        ("# dependencies = 'a'\n# ///", "must be a list of texts"),
        ("# dependencies = [1]\n# ///", "must be a list of texts"),
        ("# dependencies = []\n", "has no end: close it with a line '# ///'"),
        ("# ///\nprint(1)\n# /// script\n# ///", "more than one"),
        ("# requires-python = 'three'\n# ///", "'requires-python' in the script's header is 'three'"),
        ("# requires-python = 3\n# ///", "'requires-python' in the script's header is 3"),
        ("# dependencies = ['a b']\n# ///", "The requirement 'a b' is not valid"),
    ],
)
def test_a_wrong_header_is_one_clear_sentence(header: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pep723_dependencies(f"# /// script\n{header}\n")


def test_a_script_for_another_python_is_refused_with_both_versions() -> None:
    with pytest.raises(ScriptMetadataError, match=rf"needs Python >=4 and this node has {platform.python_version()}"):
        pep723_dependencies("# /// script\n# requires-python = '>=4'\n# ///\n")
