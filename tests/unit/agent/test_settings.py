from pathlib import Path

import pytest

from agent.errors import HubProtocolError
from agent.paths import Paths
from agent.settings import load_settings, read_sign_in, store_settings

ANSWER = {
    "id": "1",
    "nodeName": "greenhouse",
    "organizationId": "o",
    "tags": ["north"],
    "sas": "secret-sas",
    "scriptToken": "secret-token",
    "iotHub": {"connectionString": "HostName=h;DeviceId=d;SharedAccessKey=secret-key"},
    "policies": {"disconnectPolicy": {"heartbeatTimeout": 20, "missedHearbeatLimit": 3, "offlineMode": False}},
    "deviceState": {"desired": {"msbConfig": None}},
}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path, runtime=tmp_path / "run")


def test_services_see_every_setting_but_no_secret() -> None:
    shown = read_sign_in(ANSWER).for_services()
    assert shown["nodeName"] == "greenhouse"
    assert shown["deviceState"] == {"desired": {"msbConfig": None}}
    assert "secret" not in repr(shown)


def test_stored_settings_come_back_without_what_is_good_for_one_connection(paths: Paths) -> None:
    store_settings(paths, read_sign_in(ANSWER))
    loaded = load_settings(paths)
    assert loaded is not None
    assert loaded.iot_hub is not None
    assert loaded.script_token == ""
    assert paths.settings.stat().st_mode & 0o777 == 0o600


def test_settings_do_not_show_secrets_in_their_text() -> None:
    settings = read_sign_in(ANSWER)
    assert "secret" not in repr(settings)
    assert "secret" not in repr(settings.iot_hub)


def test_damaged_settings_are_set_aside_and_not_reset(paths: Paths) -> None:
    paths.settings.write_text("{torn", "utf-8")
    assert load_settings(paths) is None
    assert (paths.state / "settings.json.damaged").read_text("utf-8") == "{torn"


def test_no_settings_before_the_first_sign_in(paths: Paths) -> None:
    assert load_settings(paths) is None


@pytest.mark.parametrize("answer", [None, [], {"nodeName": "x"}, {**ANSWER, "tags": "north"}])
def test_unusable_answer_is_refused(answer: object) -> None:
    with pytest.raises(HubProtocolError):
        read_sign_in(answer)


def test_update_replaces_only_what_it_names() -> None:
    settings = read_sign_in(ANSWER).updated({"state": "InActive"})
    assert not settings.active
    assert settings.tags == ["north"]
