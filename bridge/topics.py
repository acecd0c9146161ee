"""The grammar of MQTT topic names and filters, from the standard (MQTT 5.0, section 4.7 and 4.8.2).

Before any message travels: the configuration asks here whether a filter is legal and whether two of them can meet
in one topic, so that the bridge never subscribes to its own status; intake asks the same of the topic of a message.
Pure; it never talks to a broker.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
TOPIC_BYTES_MAX = 65535  # a UTF-8 string of MQTT carries its length in two bytes
RECEIPTS_TOPIC = "edge/buffer/receipts"  # the only branch that receipts go to
_SHARE_PARTS = 3  # $share, the group, the filter


def filter_fault(topic_filter: str) -> str | None:
    """Say what is wrong with a subscription filter, `$share/GROUP/FILTER` included; None if it is legal."""
    if topic_filter == "$share" or topic_filter.startswith("$share/"):
        return _share_fault(topic_filter)
    if fault := _text_fault(topic_filter):
        return fault
    levels = topic_filter.split("/")
    if any("#" in level and level != "#" for level in levels) or "#" in levels[:-1]:
        return "'#' must be a level of its own, and the last one"
    if any("+" in level and level != "+" for level in levels):
        return "'+' must be a level of its own"
    return None


def name_fault(topic: str) -> str | None:
    """Say what is wrong with a topic to publish to; None if it is legal."""
    if any(wildcard in topic for wildcard in "#+"):
        return "a topic to publish to has no '#' and no '+'"
    return _text_fault(topic)


def unshared(topic_filter: str) -> str:
    """Return the filter that decides which topics come: what stands behind `$share/GROUP/`, if anything does."""
    return topic_filter.split("/", 2)[2] if topic_filter.startswith("$share/") else topic_filter


def own_trees(status_topic: str) -> tuple[str, str]:
    """Return the filters of all that the bridge publishes itself."""
    return f"{status_topic}/#", f"{RECEIPTS_TOPIC}/#"


def overlap(one: str, other: str) -> bool:
    """Tell whether some topic matches both legal, unshared filters. A topic name is a filter that matches itself."""
    mine, theirs = one.split("/"), other.split("/")
    if _is_hidden(mine[0], theirs[0]) or _is_hidden(theirs[0], mine[0]):
        return False
    return _levels_overlap(mine, theirs)


def _is_hidden(first: str, first_of_other: str) -> bool:
    """Topics that begin with `$` are never matched by a wildcard in the first level [MQTT-4.7.2-1]."""
    return first in {"#", "+"} and first_of_other.startswith("$")


def _levels_overlap(mine: list[str], theirs: list[str]) -> bool:
    for here, there in zip(mine, theirs, strict=False):
        if "#" in {here, there}:
            return True
        if here != there and "+" not in {here, there}:
            return False
    # One has ended: the other may go on only by a '#', which also stands for its parent level (a/# matches a).
    longer = max(mine, theirs, key=len)
    return len(mine) == len(theirs) or longer[min(len(mine), len(theirs))] == "#"


def _share_fault(topic_filter: str) -> str | None:
    parts = topic_filter.split("/", 2)
    if len(parts) < _SHARE_PARTS or not parts[1] or "+" in parts[1] or "#" in parts[1]:
        return "a shared subscription is $share/GROUP/FILTER, with a group that has no '#' and no '+'"
    return filter_fault(parts[2])


def _text_fault(text: str) -> str | None:
    if not text:
        return "it is empty"
    if _CONTROL.search(text):
        return "it has a control character in it"
    if _SURROGATE.search(text):
        return "it is not valid UTF-8"
    if len(text.encode()) > TOPIC_BYTES_MAX:
        return f"it is longer than {TOPIC_BYTES_MAX} bytes"
    return None
