"""Topics of events, by the rules of MQTT."""

from __future__ import annotations


def check_topic(topic: str) -> None:
    """Raise TypeError or ValueError for a topic that cannot be published to."""
    if not isinstance(topic, str):
        raise TypeError(f"The topic is a {type(topic).__name__}; it is text.")
    if not topic or "+" in topic or "#" in topic or "\0" in topic:
        raise ValueError(f"The topic {topic!r} cannot be published to: it must not be empty or contain + or #.")


def check_topic_filter(topic_filter: str) -> None:
    """Raise TypeError or ValueError for a filter that MQTT would refuse."""
    if not isinstance(topic_filter, str):
        raise TypeError(f"The topic filter is a {type(topic_filter).__name__}; it is text.")
    levels = topic_filter.split("/")
    wrong = any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]
    if not topic_filter or "\0" in topic_filter or wrong:
        raise ValueError(
            f"The topic filter {topic_filter!r} is not one of MQTT's: + stands alone in a level, # alone in the last."
        )


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT topic filter matches a topic."""
    wanted = topic_filter.split("/")
    levels = topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)
