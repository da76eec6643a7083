from __future__ import annotations

import pytest

from agent.hub.protocol import Close, RecordReader, encode
from portal.hub import wire


def test_close_without_a_word_on_reconnecting_means_no() -> None:
    assert list(RecordReader().feed('{"type":7}\x1e')) == [Close(allow_reconnect=False)]


@pytest.mark.parametrize("reconnect", [True, False])
def test_close_says_whether_the_node_may_come_back(reconnect: bool) -> None:
    text = wire.close("for a while", reconnect=reconnect)
    assert f'"allowReconnect":{str(reconnect).lower()}' in text
    assert list(RecordReader().feed(text)) == [Close(error="for a while", allow_reconnect=reconnect)]


@pytest.mark.parametrize("reconnect", [True, False])
def test_close_of_the_shared_record_is_read_as_it_was_written(reconnect: bool) -> None:
    record = Close(allow_reconnect=reconnect)
    assert list(RecordReader().feed(encode(record))) == [record]
