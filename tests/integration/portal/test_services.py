from __future__ import annotations

from typing import Any

import pytest

from portal.testing import PortalClient, RunningPortal

GOOD = "from base_service import CustomService\n\n\nclass {name}(CustomService):\n    pass\n"


async def make(owner: PortalClient, **form: Any) -> dict[str, Any]:
    made: dict[str, Any] = await owner.done("POST", "/api/services", form)
    return made


async def source_of(owner: PortalClient, service_id: str, version: str = "latest") -> dict[str, Any]:
    found: dict[str, Any] = await owner.done("GET", f"/api/services/{service_id}/versions/{version}/source")
    return found


async def test_new_service_begins_as_version_0_1_of_the_template(owner: PortalClient) -> None:
    made = await make(owner, name="Heating", file="HeatingControl.py", description="Keeps it warm")
    text = await source_of(owner, made["id"])
    assert (made["id"], made["latest"], made["class_name"]) == ("heatingcontrol_py", "0.1", "HeatingControl")
    assert made["history"][0]["saved_by"] == "alice"
    assert "class HeatingControl(CustomService):" in text["source"]
    compile(text["source"], text["file"], "exec")


async def test_library_service_comes_with_its_properties(running: RunningPortal, owner: PortalClient) -> None:
    entries = {entry["name"]: entry for entry in await owner.done("GET", "/api/library")}
    made = await make(owner, **{"from": "library:ReadGPIO"})
    again = {entry["name"]: entry for entry in await owner.done("GET", "/api/library")}
    assert entries["ReadGPIO"]["documentation"].startswith(entries["ReadGPIO"]["summary"][:20])
    assert made["properties"] == entries["ReadGPIO"]["properties"]
    assert made["properties"]["static"]
    assert (entries["ReadGPIO"]["installed"], again["ReadGPIO"]["installed"]) == (False, True)


async def test_every_library_service_can_be_made(running: RunningPortal, owner: PortalClient) -> None:
    for entry in await owner.done("GET", "/api/library"):
        made = await make(owner, **{"from": f"library:{entry['name']}"})
        assert (await source_of(owner, made["id"]))["source"] == entry["source"]


async def test_library_service_under_another_file_name_has_another_class(owner: PortalClient) -> None:
    made = await make(owner, file="DoorContact.py", **{"from": "library:ReadGPIO"})
    text = (await source_of(owner, made["id"]))["source"]
    assert "class DoorContact(CustomService)" in text
    assert "class ReadGPIO" not in text


async def test_copy_is_a_service_of_its_own(owner: PortalClient) -> None:
    source = GOOD.format(name="First") + "\nx = First\ny = 'First'\n"
    await make(owner, file="First.py", source=source, **{"from": "import"})
    made = await make(owner, file="Second.py", **{"from": "copy:first_py"})
    assert (await source_of(owner, made["id"]))["source"] == source.replace("class First", "class Second").replace(
        "x = First", "x = Second"
    )
    assert (await source_of(owner, "first_py"))["source"] == source


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({"file": "reader"}, 422, "file_name_invalid"),
        ({"file": "../Reader.py"}, 422, "file_name_invalid"),
        ({"file": "Rea der.py"}, 422, "file_name_invalid"),
        ({"file": ""}, 422, "file_name_invalid"),
        ({"file": "A.py", "from": "import"}, 422, "source_missing"),
        ({"file": "A.py", "from": "import", "source": "class B: pass"}, 422, "class_name_mismatch"),
        ({"file": "A.py", "from": "import", "source": ""}, 422, "class_name_mismatch"),
        ({"file": "A.py", "from": "import", "source": "class A:\n  def f(:\n"}, 422, "syntax_error"),
        ({"file": "A.py", "from": "import", "source": "class A: pass\x00"}, 422, "syntax_error"),
        ({"file": "A.py", "from": "import", "source": "(" * 5000}, 422, "syntax_error"),
        ({"file": "A.py", "from": "library:None"}, 404, "library_entry_not_found"),
        ({"file": "A.py", "from": "copy:none_py"}, 404, "service_not_found"),
        ({"file": "A.py", "from": "nowhere"}, 422, "origin_invalid"),
    ],
)
async def test_wrong_service_is_refused_and_not_stored(
    owner: PortalClient, form: dict[str, Any], status: int, code: str
) -> None:
    answer = await owner.call("POST", "/api/services", form)
    assert (answer.status, answer.code) == (status, code), answer.text
    assert (await owner.done("GET", "/api/services"))["items"] == []


async def test_syntax_error_names_line_and_text(owner: PortalClient) -> None:
    source = "class A:\n    def f(self)\n        pass\n"
    answer = await owner.call("POST", "/api/services", {"file": "A.py", "from": "import", "source": source})
    assert (answer.body["line"], answer.body["text"].strip()) == (2, "def f(self)")
    assert "line 2" in answer.body["detail"]


async def test_class_name_error_names_both(owner: PortalClient) -> None:
    source = GOOD.format(name="Other")
    answer = await owner.call("POST", "/api/services", {"file": "Reader.py", "from": "import", "source": source})
    assert "Reader" in answer.body["detail"]
    assert "Other" in answer.body["detail"]
    assert answer.body["line"] == 4


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("# /// script\n# dependencies = ['requests>=2']\n# ///\n", None),
        ("# /// script\n# dependencies = ['not a requirement!']\n# ///\n", "requirements_invalid"),
        ("# /// script\n# dependencies = 7\n# ///\n", "requirements_invalid"),
        ("# /// script\n# dependencies = [\n# ///\n", "requirements_invalid"),
        ("# /// script\n# without an end\n", None),
    ],
)
async def test_requirements_of_the_header_are_read_and_checked(
    owner: PortalClient, header: str, code: str | None
) -> None:
    form = {"file": "A.py", "source": header + GOOD.format(name="A")}
    checked = await owner.done("POST", "/api/services/check", form)
    assert checked["code"] == code
    assert checked["requirements"] == (["requests>=2"] if "requests" in header else [])


async def test_second_service_with_the_same_file_is_refused_whatever_its_case(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    answer = await owner.call("POST", "/api/services", {"file": "READER.py"})
    assert (answer.status, answer.code) == (409, "service_exists")


async def test_newest_version_is_edited_and_older_ones_stay_as_they_were(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    first = await source_of(owner, "reader_py")
    made = await owner.done("POST", "/api/services/reader_py/versions", {"bump": "minor"})
    assert made["latest"] == "0.2"
    changed = GOOD.format(name="Reader")
    saved = await owner.done("PUT", "/api/services/reader_py/versions/0.2/source", {"source": changed})
    frozen = await owner.call("PUT", "/api/services/reader_py/versions/0.1/source", {"source": changed})
    major = await owner.done("POST", "/api/services/reader_py/versions", {"bump": "major"})
    assert saved["source"] == changed
    assert (frozen.status, frozen.code) == (409, "version_frozen")
    assert (await source_of(owner, "reader_py", "0.1"))["source"] == first["source"]
    assert [(item["version"], item["editable"]) for item in major["history"]] == [
        ("1.0", True),
        ("0.2", False),
        ("0.1", False),
    ]


async def test_versions_count_beyond_nine(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    for _ in range(10):
        made = await owner.done("POST", "/api/services/reader_py/versions", {"bump": "minor"})
    assert made["latest"] == "0.11"
    assert [item["latest"] for item in (await owner.done("GET", "/api/services"))["items"]] == ["0.11"]


async def test_wrong_text_is_not_saved(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    before = await source_of(owner, "reader_py")
    answer = await owner.call("PUT", "/api/services/reader_py/versions/0.1/source", {"source": "class Reader(:"})
    assert (answer.status, answer.code) == (422, "syntax_error")
    assert await source_of(owner, "reader_py") == before


async def test_text_that_somebody_else_saved_in_between_is_not_overwritten(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    before = await source_of(owner, "reader_py")
    path = "/api/services/reader_py/versions/latest/source"
    form = {"source": GOOD.format(name="Reader"), "expected_sha256": before["sha256"]}
    await owner.done("PUT", path, form)
    answer = await owner.call("PUT", path, form)
    assert (answer.status, answer.code, answer.body["saved_by"]) == (409, "source_changed", "alice")


async def test_whitespace_of_a_text_is_kept(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    text = "\n\n" + GOOD.format(name="Reader") + "\n\n\t\n"
    await owner.done("PUT", "/api/services/reader_py/versions/latest/source", {"source": text})
    assert (await source_of(owner, "reader_py"))["source"] == text


async def test_service_in_use_is_not_deleted(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    flow = await owner.done(
        "POST", "/api/flows", {"name": "Pumps", "activities": [{"service_id": "reader_py", "host": "x"}]}
    )
    refused = await owner.call("DELETE", "/api/services/reader_py")
    shown = await owner.done("GET", "/api/services/reader_py")
    await owner.done("DELETE", f"/api/flows/{flow['id']}")
    await owner.done("DELETE", "/api/services/reader_py")
    assert (refused.status, refused.code) == (409, "service_in_use")
    assert "Pumps" in refused.body["detail"]
    assert [usage["flow"] for usage in shown["used_by"]] == ["Pumps"]
    assert (await owner.done("GET", "/api/services"))["items"] == []


async def test_property_twice_is_refused(owner: PortalClient) -> None:
    await make(owner, file="Reader.py")
    definitions = {"static": [{"id": "pin"}, {"id": "pin"}]}
    answer = await owner.call("PATCH", "/api/services/reader_py", {"properties": definitions})
    assert (answer.status, answer.code) == (422, "property_repeated")


async def test_secret_has_no_default_that_everybody_could_read(owner: PortalClient) -> None:
    definitions = {"security": [{"id": "token", "default": "s3cret-of-everybody"}]}
    await owner.done("POST", "/api/services", {"file": "Mine.py"})
    changed = await owner.call("PATCH", "/api/services/mine_py", {"properties": definitions})
    source = f"PROPERTIES = {definitions}\n\n\nclass Other:\n    pass\n"
    imported = await owner.call("POST", "/api/services", {"from": "import", "file": "Other.py", "source": source})
    for answer in (changed, imported):
        assert (answer.status, answer.code) == (422, "security_default")
        assert "s3cret" not in answer.text
    assert (await owner.done("GET", "/api/services/mine_py"))["properties"]["security"] == []
    assert (await owner.call("GET", "/api/services/other_py")).status == 404
