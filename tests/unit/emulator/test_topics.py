import pytest
from azure.iot.device import Message
from azure.iot.device.iothub.pipeline import mqtt_topic_iothub as sdk
from hypothesis import given
from hypothesis import strategies as st

from emulator import topics

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(st.dictionaries(TEXT.filter(lambda name: not name.startswith("$.")), TEXT, max_size=5), TEXT)
def test_properties_come_out_as_the_azure_sdk_puts_them_in(properties, message_id):
    message = Message("x", message_id=message_id, content_type="application/json", content_encoding="utf-8")
    message.custom_properties.update(properties)
    topic = sdk.encode_message_properties_in_topic(message, sdk.get_telemetry_topic_for_publish("pi-1", None))

    parsed = topics.parse_topic(topic, "pi-1")

    assert parsed == topics.TelemetryTopic(
        {"message_id": message_id, "content_type": "application/json", "content_encoding": "utf-8"}, properties
    )


@given(st.dictionaries(TEXT.filter(lambda name: name != "iothub-ack" and not name.startswith("$.")), TEXT, max_size=5))
def test_the_azure_sdk_reads_the_properties_of_a_cloud_message(properties):
    topic = topics.c2d_topic("pi-1", {"message_id": "m/1", "to": "/devices/pi-1"}, properties)
    message = Message(b"x")

    sdk.extract_message_properties_from_topic(topic, message)

    assert sdk.is_c2d_topic(topic, "pi-1")
    assert message.message_id == "m/1"
    assert message.custom_properties == properties


def test_telemetry_may_have_no_properties():
    assert topics.parse_topic("devices/pi-1/messages/events/", "pi-1") == topics.TelemetryTopic({}, {})
    assert topics.parse_topic("devices/pi-1/messages/events", "pi-1") == topics.TelemetryTopic({}, {})


def test_a_plus_is_a_plus_and_a_name_may_have_no_value():
    assert topics.decode_properties("a=1+2&b&%24.x=y&=z") == ({"$.x": "y"}, {"a": "1+2", "b": ""})


def test_twin_and_method_topics_carry_their_request():
    assert topics.parse_topic("$iothub/twin/GET/?$rid=7%2F8", "d") == topics.TwinGet("7/8")
    assert topics.parse_topic("$iothub/twin/PATCH/properties/reported/?$rid=8", "d") == topics.TwinReport("8")
    assert topics.parse_topic("$iothub/methods/res/200/?$rid=a", "d") == topics.MethodAnswer("a", 200)
    assert topics.parse_topic("$iothub/methods/res/-1/?$rid=a", "d") == topics.MethodAnswer("a", -1)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "devices/pi-2/messages/events/",
        "devices/pi-1/messages/eventsx",
        "devices/pi-1/messages/devicebound/",
        "$iothub/twin/GET/",
        "$iothub/twin/PATCH/properties/desired/?$rid=1",
        "$iothub/methods/res/200/",
        "$iothub/methods/res/ok/?$rid=1",
        "home/kitchen",
    ],
)
def test_other_topics_are_not_iot_hubs(topic):
    assert topics.parse_topic(topic, "pi-1") is None


def test_the_azure_sdk_reads_twin_and_method_topics():
    answer = topics.twin_answer_topic(204, "r 1", 5)
    assert sdk.get_twin_request_id_from_topic(answer) == "r 1"
    assert sdk.get_twin_status_code_from_topic(answer) == "204"
    assert sdk.is_twin_desired_property_patch_topic(topics.desired_topic(3))
    call = topics.method_topic("do it/now", "2")
    assert sdk.get_method_name_from_topic(call) == "do it/now"
    assert sdk.get_method_request_id_from_topic(call) == "2"


def test_a_device_may_subscribe_to_what_the_azure_sdk_subscribes_to():
    assert topics.allowed_filters("pi-1") == {
        sdk.get_c2d_topic_for_subscribe("pi-1"),
        sdk.get_method_topic_for_subscribe(),
        sdk.get_twin_response_topic_for_subscribe(),
        sdk.get_twin_patch_topic_for_subscribe(),
    }
