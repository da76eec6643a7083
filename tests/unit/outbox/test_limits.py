"""How large a message may be, and how much the outbox may keep."""

from __future__ import annotations

import pytest

from agent.outbox.limits import IOT_HUB_LIMIT_BYTES, RESERVED_BYTES, check_size
from agent.outbox.message import Submission

MOST = IOT_HUB_LIMIT_BYTES - RESERVED_BYTES


def message(size: int, **properties: str) -> Submission:
    return Submission(service="readgpio_py", payload=b"x" * size, properties=properties)


def test_largest_message_passes() -> None:
    check_size(message(MOST))


def test_message_one_byte_larger_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=f"readgpio_py is too large: {MOST + 1} bytes.*may be {MOST}"):
        check_size(message(MOST + 1))


def test_properties_count() -> None:
    with pytest.raises(ValueError, match="too large"):
        check_size(message(MOST - 10, a="b"))


def test_properties_that_do_not_fit_a_topic_are_refused() -> None:
    with pytest.raises(ValueError, match="percent-encoded"):
        check_size(message(1, text="ä" * 10_001))


def test_property_in_the_nodes_own_name_is_refused() -> None:
    with pytest.raises(ValueError, match="os-sequence of a message of readgpio_py is not its own"):
        check_size(message(1, **{"os-sequence": "7"}))
