"""The base classes, with a harness in the node's place."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from base_service import BaseService, CustomService, ServiceError
from queue_message import QueueMessage

from agent.testing import Sent, ServiceHarness

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "service-api.md"


class Heating(CustomService):
    async def Start(self):
        self.target = self.GetPropertyValue("static", "target")
        await self.Debug(f"Heating to {self.target} degrees")

    async def set_target(self, args):
        self.target = args.message[0]["celsius"]
        await self.SubmitMessage({"target": self.target})


async def test_author_tests_a_service_in_five_lines():
    async with ServiceHarness(Heating, static={"target": 21}) as heating:
        assert heating.logged == [("debug", "Heating to 21 degrees")]
        await heating.deliver("set_target", {"celsius": 22})
        assert heating.messages == [{"target": 22}]


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for cls in (BaseService, CustomService)
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ),
)
def test_every_method_is_documented(name):
    assert re.search(rf"`[^`]*\b{name}\(", REFERENCE.read_text()), f"{name} is missing in {REFERENCE}"
    assert (getattr(CustomService, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_message_is_a_one_element_tuple():
    message = QueueMessage("a", "b", "c", {"id": 42})
    assert message.message == ({"id": 42},)
    assert (message.source, message.destination, message.action) == ("a", "b", "c")
    assert "{'id': 42}" in repr(message)


async def test_service_without_a_node_explains_itself():
    service = Heating("heating_py", None, {"staticConfig": [{"id": "target", "value": 3}]})
    assert service.GetPropertyValue("static", "target") == 3
    assert not hasattr(service, "_runtime")
    with pytest.raises(ServiceError, match="Heating.Debug needs a node.*ServiceHarness"):
        await service.Debug("x")
    with pytest.raises(RuntimeError, match="get_settings"):
        service.get_settings()


def test_packages_without_a_node_are_those_that_are_there(capsys):
    service = Heating("heating_py", None, {})
    assert service.AddPipPackage("pytest", "pytest", "fixture") is pytest.fixture
    with pytest.raises(Exception, match="Failed to install nowhere") as caught:
        service.AddPipPackage("nowhere", "nowhere_module", "x")
    assert caught.value.args[0] == "InstallPackage"
    service.printf("hello")
    assert capsys.readouterr().out == "hello\n"


def test_the_sdk_imports_nothing_that_is_not_pythons_own():
    code = (
        "import sys, base_service, queue_message\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('msgspec', 'aiohttp', 'agent', 'urllib.request')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ({"staticConfig": [{"id": "pin", "value": 0}]}, 0),
        ({"staticConfig": [{"id": "pin", "value": None}]}, None),
        ({"staticConfig": [{"id": "pin"}]}, "undefined"),
        ({"staticConfig": None}, "undefined"),
        ({}, "undefined"),
    ],
)
def test_property_that_is_not_there_is_the_text_undefined(config, value):
    assert Heating("heating_py", None, config).GetPropertyValue("static", "pin") == value


async def test_any_type_can_be_shown_and_none_raises():
    class Hostile:
        def __str__(self):
            raise RuntimeError

    async with ServiceHarness(CustomService) as service:
        await service.service.Debug({"a": 1})
        await service.service.Warning(None)
        await service.service.Debug(Hostile())
        assert service.logged[0] == ("debug", "{'a': 1}")
        assert service.logged[1] == ("warning", "None")
        assert "cannot be shown: RuntimeError" in service.logged[2][1]


@pytest.mark.parametrize("code", [90000, "90000", 123456])
async def test_reserved_fault_codes_are_refused(code):
    async with ServiceHarness(CustomService) as harness:
        with pytest.raises(ValueError, match="reserved"):
            await harness.service.ThrowError("x", code)
        assert not harness.errors


async def test_fault_may_be_text_or_a_dict():
    async with ServiceHarness(CustomService) as harness:
        await harness.service.ThrowError({"pin": 17, "fault_code": "666"}, fault_description="in use")
        await harness.service.ThrowError("Unable", "not a number", None)
        assert harness.errors == [
            {"code": "666", "text": '{"pin": 17}', "description": "in use"},
            {"code": "not a number", "text": "Unable", "description": None},
        ]


@pytest.mark.parametrize(
    "topic_filter", ["", "a+", "#/a", "a/#/b", "a/b#", "a\0"], ids=["empty", "a+", "#/a", "a/#/b", "a/b#", "nul"]
)
async def test_topic_filter_that_mqtt_would_refuse_is_refused(topic_filter):
    async with ServiceHarness(CustomService) as harness:
        with pytest.raises(ValueError, match="topic filter"):
            harness.service.Subscribe(topic_filter, print)


@pytest.mark.parametrize("topic", ["", "a/+", "#"])
async def test_topic_with_wild_cards_cannot_be_published_to(topic):
    async with ServiceHarness(CustomService) as harness:
        with pytest.raises(ValueError, match="cannot be published to"):
            await harness.service.Publish(topic, 1)


async def test_wrong_types_are_named():
    async with ServiceHarness(CustomService) as harness:
        service: Any = harness.service
        with pytest.raises(TypeError, match="int"):
            await service.Publish(7, 1)
        with pytest.raises(TypeError, match="NoneType"):
            service.Subscribe("a", None)
        with pytest.raises(TypeError, match="dict"):
            service.queue.put({"destination": "x"})
        with pytest.raises(TypeError, match="str"):
            await service.StartService("x")
        with pytest.raises(TypeError, match="object cannot be sent to another service"):
            await service.SubmitAction("a", "b", object())


async def test_requests_are_answered_by_the_harness():
    answers = {("meter", "read"): lambda message: message["unit"] * 2, ("meter", "fail"): ValueError("no")}
    async with ServiceHarness(CustomService, answers=answers) as harness:
        assert await harness.service.Request("meter", "read", {"unit": "x"}) == "xx"
        with pytest.raises(ServiceError, match="ValueError: no"):
            await harness.service.Request("meter", "fail")
        with pytest.raises(LookupError):
            await harness.service.Request("meter", "unknown")
        assert harness.sent[0] == Sent("meter", "read", {"unit": "x"})


async def test_thread_with_a_loop_of_its_own_is_heard():
    async with ServiceHarness(CustomService) as harness:
        thread = threading.Thread(target=lambda: asyncio.run(harness.service.SubmitMessage({"pressed": True})))
        thread.start()
        await harness.until(lambda: harness.messages)
        await asyncio.to_thread(thread.join)
        assert harness.messages == [{"pressed": True}]


async def test_queue_may_be_put_to_with_and_without_await_and_from_a_thread():
    async with ServiceHarness(CustomService) as harness:
        queue = harness.service.queue
        queue.put(QueueMessage("x", "other_py", "take", 1))
        await queue.put(QueueMessage("x", "other_py", "take", 2))
        await asyncio.to_thread(queue.put, QueueMessage("x", "other_py", "take", 3))
        await harness.until(lambda: len(harness.sent) == 3)
        assert [sent.message for sent in harness.sent] == [1, 2, 3]


async def test_events_reach_handlers_whose_filter_matches():
    seen = []

    class Listener(CustomService):
        async def Start(self):
            self.Subscribe("room/+/temperature", lambda args: seen.append((args.action, args.message[0])))

    async with ServiceHarness(Listener) as harness:
        assert await harness.publish("room/kitchen/temperature", 21) == 1
        assert await harness.publish("room/kitchen/light", 1) == 0
        assert seen == [("room/kitchen/temperature", 21)]


async def test_what_start_raises_reaches_the_test():
    class Broken(CustomService):
        async def Start(self):
            raise OSError("no pin")

    with pytest.raises(OSError, match="no pin"):
        async with ServiceHarness(Broken):
            pass


async def test_configuration_is_none_without_an_address_and_a_warning_when_it_cannot_be_fetched():
    async with ServiceHarness(CustomService) as harness:
        assert await harness.service.get_configuration() is None
    desired = {"deviceState": {"desired": {"msbConfig": {"uri": "file:///etc/passwd"}}}}
    async with ServiceHarness(CustomService, settings=desired) as harness:
        assert await harness.service.get_configuration() is None
        assert harness.logged[0][0] == "warning"


async def test_settings_are_a_copy():
    async with ServiceHarness(CustomService, settings={"nodeName": "shed", "tags": ["a"]}) as harness:
        harness.service.get_settings()["tags"].append("b")
        assert harness.service.get_settings() == {"nodeName": "shed", "tags": ["a"]}
