"""A secret shows only where it is asked for."""

from __future__ import annotations

import json
import logging
import pickle

import pytest

from agent.secret import Secret


def test_secret_shows_in_no_text(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("hunter2")
    logging.getLogger("test").warning("%s %r %s", secret, secret, {"password": secret})
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}{caplog.text}"
    assert secret.reveal() == "hunter2"


def test_secret_is_not_serialised_by_accident() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret("hunter2"))
    with pytest.raises(TypeError):
        json.dumps(Secret("hunter2"))


def test_secrets_compare_by_content() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert {Secret("a"): 1}[Secret("a")] == 1
    assert Secret("a") != "a"
    assert not Secret("")
