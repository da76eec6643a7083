"""The template process: as many children as are asked for, and a plain error when there can be no more."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest

from agent.runtime.forking import ForkedProcess, TemplateError, TemplateProcess


@pytest.fixture
async def template() -> AsyncIterator[TemplateProcess]:
    template = TemplateProcess()
    yield template
    await template.close()


def let_go(child: ForkedProcess) -> None:
    child.link.close()
    os.close(child.output)


async def test_more_children_at_once_than_its_socket_takes(template: TemplateProcess) -> None:
    async with asyncio.timeout(60):
        children = await asyncio.gather(*(template.fork() for _ in range(300)))
    assert len({child.pid for child in children}) == 300
    for child in children:
        let_go(child)
    async with asyncio.timeout(30):
        await asyncio.gather(*(child.exited for child in children))


async def test_machine_that_has_no_descriptors_left_is_an_error_of_one_service(
    template: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    await template.start()
    for module, name in ((socket, "socketpair"), (os, "pipe")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, none_left)
            with pytest.raises(TemplateError, match="Too many open files"):
                await template.fork()
    child = await template.fork()
    let_go(child)
    await child.exited
