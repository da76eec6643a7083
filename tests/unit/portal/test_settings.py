from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError
from portal.settings import Settings


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"port": -1}, "--port"),
        ({"port": 65536}, "--port"),
        ({"host": ""}, "--host"),
        ({"retention_days": 0}, "--retention-days"),
        ({"retention_days": 36_501}, "--retention-days"),
        ({"certificate": Path("a.pem")}, "--certificate"),
        ({"key": Path("a.key")}, "--key"),
        ({"certificate": Path(__file__), "key": Path(__file__), "self_signed": True}, "--self-signed"),
        ({"database_url": "sqlite:///x"}, "--database-url"),
        ({"public_url": "portal.example"}, "--public-url"),
        ({"public_url": "ftp://portal.example"}, "--public-url"),
        ({"public_url": "https://portal.example/?a"}, "--public-url"),
    ],
)
def test_wrong_setting_is_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Settings(data=Path("data"), **changes)


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"self_signed": True, "port": 8443}, "https://127.0.0.1:8443"),
        ({"host": "0.0.0.0"}, "http://localhost:8080"),
        ({"host": "::1"}, "http://[::1]:8080"),
        ({"public_url": "https://portal.example/"}, "https://portal.example"),
    ],
)
def test_address_is_made_from_what_is_set(changes: dict[str, Any], url: str) -> None:
    assert Settings(data=Path("data"), **changes).url() == url


def test_database_password_is_not_in_the_representation() -> None:
    settings = Settings(data=Path("data"), database_url="postgresql+asyncpg://u:s3cret@h/d")
    assert "s3cret" not in repr(settings)
