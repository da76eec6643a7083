from __future__ import annotations

import pytest

from portal.errors import TooManyError
from portal.people.throttle import FREE_ATTEMPTS, KEYS_LIMIT, LONGEST_WAIT_SECONDS, Throttle, network_of
from portal.testing import FakeClock


async def waits(clock: FakeClock, count: int) -> list[int]:
    throttle = Throttle(clock)
    found = []
    for _ in range(count):
        throttle.begin("k")
        try:
            throttle.check("k")
            found.append(0)
        except TooManyError as error:
            found.append(error.retry_after_seconds)
            await clock.advance(error.retry_after_seconds)
    return found


async def test_waiting_doubles_after_the_free_attempts_and_is_capped() -> None:
    found = await waits(FakeClock(), 18)
    assert found[: FREE_ATTEMPTS - 1] == [0] * (FREE_ATTEMPTS - 1)
    assert found[FREE_ATTEMPTS - 1 : FREE_ATTEMPTS + 3] == [1, 2, 4, 8]
    assert found[-1] == LONGEST_WAIT_SECONDS


async def test_many_attempts_at_once_get_no_more_tries() -> None:
    throttle = Throttle(FakeClock())
    for _ in range(FREE_ATTEMPTS):
        throttle.begin("k")
    with pytest.raises(TooManyError):
        throttle.begin("k")


async def test_failures_are_forgotten_after_an_hour() -> None:
    clock = FakeClock()
    throttle = Throttle(clock)
    for _ in range(FREE_ATTEMPTS - 1):
        throttle.failed("k")
    await clock.advance(3601)
    throttle.begin("k")
    throttle.check("k")


async def test_memory_is_bounded() -> None:
    throttle = Throttle(FakeClock())
    for number in range(KEYS_LIMIT + 10):
        throttle.failed(str(number))
    assert len(throttle._keys) == KEYS_LIMIT


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_host_count_as_one(address: str, network: str) -> None:
    assert network_of(address) == network
