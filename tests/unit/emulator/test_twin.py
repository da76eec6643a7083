import pytest

from emulator.errors import MessageInvalidError
from emulator.twin import DOCUMENT_LIMIT_BYTES, TwinSection


def test_a_patch_merges_objects_removes_nulls_and_replaces_the_rest():
    twin = TwinSection({"a": {"x": 1, "y": 2}, "b": [1], "c": 3}, 4)

    merged = twin.merged({"a": {"y": None, "z": 3}, "b": [2], "c": {"d": 1}, "e": None})

    assert merged.document() == {"a": {"x": 1, "z": 3}, "b": [2], "c": {"d": 1}, "$version": 5}
    assert twin.document() == {"a": {"x": 1, "y": 2}, "b": [1], "c": 3, "$version": 4}


def test_nulls_in_a_new_object_leave_no_trace():
    assert TwinSection().merged({"a": {"b": None}}).properties == {"a": {}}


def test_the_version_is_the_hubs_alone():
    assert TwinSection({}, 1).merged({"$version": 99}).document() == {"$version": 2}


@pytest.mark.parametrize("patch", [None, [], "text", 1])
def test_a_patch_must_be_an_object(patch):
    with pytest.raises(MessageInvalidError, match="JSON object"):
        TwinSection().merged(patch)


def test_a_twin_that_grows_too_large_is_refused():
    with pytest.raises(MessageInvalidError, match=str(DOCUMENT_LIMIT_BYTES)):
        TwinSection({"a": "x" * 30_000}).merged({"b": "x" * 4_000})


def test_a_twin_that_is_too_deep_is_refused():
    deep: dict = {}
    for _ in range(12):
        deep = {"a": [deep]}
    with pytest.raises(MessageInvalidError, match="levels"):
        TwinSection().merged(deep)
