import asyncio

import pytest

from agent.errors import HubError, HubUnreachableError, OutstationError, out_of_group


async def failing(*errors: Exception) -> None:
    async def fail(error: Exception) -> None:
        raise error

    try:
        async with asyncio.TaskGroup() as tasks:
            for error in errors:
                tasks.create_task(fail(error))
    except BaseExceptionGroup as group:
        raise out_of_group(group, HubError) from None


async def test_error_of_a_task_comes_out_as_itself() -> None:
    with pytest.raises(HubUnreachableError, match="gone"):
        await failing(HubUnreachableError("gone"))


async def test_what_was_not_expected_is_not_hidden_by_what_was() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await failing(HubUnreachableError("gone"), ZeroDivisionError("a bug"))
    assert caught.group_contains(ZeroDivisionError)


def test_nested_groups_are_looked_into() -> None:
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [HubUnreachableError("gone")])])
    assert str(out_of_group(group, OutstationError)) == "gone"
