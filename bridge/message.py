"""One message: what came from the broker, and the CloudEvent that it is stored and uploaded as.

A `Publish` is encoded once, here, into the bytes of a CloudEvents 1.0 JSON object. These bytes are the row of the
disk queue and, unchanged, an element of the upload: nothing is parsed and printed a second time, so every number
keeps its digits. The members stand in a fixed order, data last:

    {"specversion":"1.0","id":…,"source":…,"type":…,"subject":…,"time":…,"datacontenttype":"application/json","data":…}
    {… ,"datacontenttype":"application/octet-stream","data_base64":"…"}

What came before the clock was set says so: behind `time` stands `"clockunset":"BOOT/SECONDS"`, the id of that boot of
the machine and the seconds since it began, so that the time can be put right later.

Because quotes inside a JSON string are always escaped, the byte string `,"datacontenttype":` cannot occur inside
the members before it: its first occurrence divides every stored event into head (whose) and tail (what).

Pure: no clock, no randomness; the caller brings id and time.
"""

from __future__ import annotations

import binascii
import re
import sys
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import orjson

CLOCK_SET_SINCE = 1_704_067_200  # 2024-01-01: a clock that shows less was never set
EVENT_TYPE = "edge.prediction.v1"
JSON_DEPTH_MAX = 500  # deeper payloads travel as data_base64: common JSON parsers at the cloud stop near 1,000 levels

_TAIL = b',"datacontenttype":'
_JSON_TAIL = b',"datacontenttype":"application/json","data":'
_UNSET = re.compile(rb'"time":"[^"]*","clockunset":"([^"/]+)/([0-9]+\.[0-9]+)"')
_HEAD = b'{"specversion":"1.0","id":"'
_PLAIN_HEAD = re.compile(
    _HEAD + rb'([^"\\]+)","source":"[^"\\]*","type":"[^"\\]*","subject":"([^"\\]*)","time":'
)  # of almost every event: no string in it is escaped
_MEMBERS = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype")


class Request(NamedTuple):
    """MQTT 5 request/response: where an answer is wanted, and by which mark it is told from others."""

    response_topic: str  # "" in an answer
    correlation: bytes
    until_delivered: bool = False  # user property `receipt` = `delivered`


class Publish(NamedTuple):
    """One publication as the broker sent it (a NamedTuple because it is made once a message at full speed)."""

    topic: str
    payload: bytes
    packet_id: int  # 0: QoS 0, nothing to confirm
    dup: bool
    user_id: str | None = None  # MQTT 5 user property `id`
    content_type: str | None = None  # MQTT 5 property Content Type
    expiry_seconds: int | None = None  # MQTT 5 property Message Expiry Interval, less what it waited at the broker
    request: Request | None = None


# `Publish(...)` of all its values in order, in half the time: there is one a message at full speed. So below.
new_publish = partial(tuple.__new__, Publish)


class Row(NamedTuple):
    """A message with its place in the disk queue; `data` is the stored event, byte for byte what is uploaded."""

    row_id: int
    data: bytes


new_row = partial(tuple.__new__, Row)


class DeadRow(NamedTuple):
    """A row refused for good, and why."""

    row_id: int
    reason: str
    status_code: int | None = None
    attempts: int = 0
    excerpt: str = ""


def parse_json(payload: bytes) -> tuple[bool, Any]:
    """Tell whether the payload is JSON (RFC 8259, UTF-8, at most `JSON_DEPTH_MAX` deep), and what it says."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return False, None
    if len(payload) > 2 * JSON_DEPTH_MAX and _may_be_deep(payload) and _depth(value) > JSON_DEPTH_MAX:
        return False, None
    return True, value


def are_plain_json(payloads: Sequence[bytes], id_names: frozenset[str]) -> bool:
    """Tell whether all are JSON as `parse_json` says, without line breaks, and none has a member of these names.

    A quick look at many: where it says no, look at each.
    """
    whole = b"".join(payloads)
    if b"\n" in whole or b"\r" in whole:
        return False
    if max(map(len, payloads)) > 2 * JSON_DEPTH_MAX and any(map(_may_be_deep, payloads)):
        return False
    try:
        return all(map(id_names.isdisjoint, map(orjson.loads, payloads)))
    except (orjson.JSONDecodeError, TypeError):  # TypeError: a number, or a list of what has no hash
        return False


def _may_be_deep(payload: bytes) -> bool:
    return payload.count(b"[") + payload.count(b"{") > JSON_DEPTH_MAX


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


_ID_MEMBER = re.compile(
    r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}|[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}"
)  # a UUID (RFC 9562) or a ULID (Crockford's base 32)
ID_CHARACTERS_MAX = 512  # longer ones are no ids; the message gets one of ours


def producer_id(value: Any, id_fields: tuple[str, ...]) -> str | None:
    """Return the producer's own id of a JSON payload: the first of `id_fields`, else an `id` that is a UUID or ULID.

    Many payloads carry a camera's or a model's id as `id`; taking that for the message's would lose messages.
    """
    if not isinstance(value, dict):
        return None
    for field in id_fields:
        if field not in value:  # most have none
            continue
        found = value[field]
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if isinstance(found, str) and 0 < len(found) <= ID_CHARACTERS_MAX:
            return found
    found = value.get("id")
    return found if isinstance(found, str) and _ID_MEMBER.fullmatch(found) else None


def time_text(wall_seconds: float) -> str:
    """Return the `time` of an event: RFC 3339 in UTC."""
    return datetime.fromtimestamp(wall_seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def unset_time_text(wall_seconds: float, boot: str, boot_seconds: float) -> str:
    """Return the `time` of an event that came before the clock was set, and with it the mark that says so."""
    return f'{time_text(wall_seconds)}","clockunset":"{boot}/{boot_seconds:.6f}'


def redated(stored: bytes, boot: str, boot_began_at: float) -> tuple[bytes, float] | None:
    """Return a stored event with the time it should have had and without the mark, and that time.

    None if it has no mark, or is of another boot than the one that began at `boot_began_at`.
    """
    start, what = split(stored)
    mark = _UNSET.search(start)
    if mark is None or mark.end() != len(start) or mark[1] != boot.encode():
        return None
    received_at = boot_began_at + float(mark[2])
    return b'%b"time":"%b"%b' % (start[: mark.start()], time_text(received_at).encode(), what), received_at


def head_middle(source: str, subject: str, event_type: str = EVENT_TYPE) -> bytes:
    """Return the part of the head between the id and the time; the same for every message of a topic."""
    return b'","source":%b,"type":%b,"subject":%b,"time":"' % (
        orjson.dumps(source),
        orjson.dumps(event_type),
        orjson.dumps(subject),
    )


def head(event_id: str, middle: bytes, time: str) -> bytes:
    """Return everything before `,"datacontenttype":`; `time` is what `time_text` or `unset_time_text` says."""
    return event(event_id, head_end(middle, time), b"")


def head_end(middle: bytes, time: str) -> bytes:
    """Return the part of the head behind the id; the same for all messages of a topic that came together."""
    return b'%b%b"' % (middle, time.encode())


def event(event_id: str, end: bytes, tail: bytes) -> bytes:
    """Return an event: its id, the `head_end` and the tail in their places."""
    return b"".join((_HEAD, orjson.dumps(event_id)[1:-1], end, tail))


def json_event(event_id: bytes, end: bytes, payload: bytes) -> bytes:
    """Return the event of a JSON payload without line breaks; `event_id` has nothing in it to escape."""
    return b"".join((_HEAD, event_id, end, _JSON_TAIL, payload, b"}"))


def with_id(data: bytes, event_id: str) -> bytes:
    """Return a stored event of ours under another id."""
    return event(event_id, data[data.index(b'","source":', len(_HEAD)) :], b"")


def tail(payload: bytes, *, is_json: bool, content_type: str | None = None) -> bytes:
    """Return `,"datacontenttype":…}` for the payload; equal tails mean equal payloads."""
    if is_json:
        if b"\n" in payload or b"\r" in payload:
            # Raw line breaks are not allowed inside JSON strings, so each one stands between tokens.
            payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
        return b"%b%b}" % (_JSON_TAIL, payload)
    return b'%b%b,"data_base64":"%b"}' % (
        _TAIL,
        orjson.dumps(content_type or "application/octet-stream"),
        binascii.b2a_base64(payload, newline=False),
    )


def split(data: bytes) -> tuple[bytes, bytes]:
    """Divide a stored event into head and tail; the tail is empty if the bytes are not in our layout."""
    at = data.find(_TAIL) if data.startswith(_HEAD) else -1
    return (data[:at], data[at:]) if at >= 0 else (data, b"")


def reads_as_ours(data: bytes) -> bool:
    """Tell at a glance whether the bytes are in the layout that `event_id` and `payload_json` read without parsing."""
    has_payload = _JSON_TAIL in data or b',"data_base64":"' in data
    return has_payload and data.startswith(_HEAD) and b'","source":' in data and data.endswith(b"}")


def event_id(data: bytes) -> str:
    """Return the id of a stored event."""
    if not data.startswith(_HEAD):
        return str(orjson.loads(data)["id"])
    start = len(_HEAD)
    raw = data[start : data.index(b'","source":', start)]
    return raw.decode() if b"\\" not in raw else str(orjson.loads(b'"%b"' % raw))


def event_subject(data: bytes) -> str | None:
    """Return the subject of a stored event: the topic it came on."""
    head_bytes, _ = split(data)
    start = head_bytes.find(b',"subject":"') + 11
    if start < 11 or not data.startswith(_HEAD):  # noqa: PLR2004 - the length of what was looked for
        subject = orjson.loads(data).get("subject")
        return subject if isinstance(subject, str) else None
    return str(orjson.loads(head_bytes[start : head_bytes.index(b',"time":', start)]))


def event_id_and_subject(data: bytes) -> tuple[str, str | None]:
    """Return both at once, which is quicker."""
    if plain := _PLAIN_HEAD.match(data):
        return plain[1].decode(), plain[2].decode()
    return event_id(data), event_subject(data)


def event_ids_and_subjects(events: Sequence[bytes]) -> tuple[list[str], list[str]] | None:
    """Return those of many events, quicker still; None unless all of them are plain ones in UTF-8."""
    found = [plain.group(1, 2) for plain in map(_PLAIN_HEAD.match, events) if plain]
    if not found or len(found) != len(events):
        return None
    ids, subjects = zip(*found, strict=True)
    try:
        return b'"'.join(ids).decode().split('"'), b'"'.join(subjects).decode().split('"')  # no quote is in them
    except UnicodeDecodeError:
        return None


def payload_json(data: bytes) -> bytes:
    """Return the bare payload of a stored event as JSON: the payload itself, or `{"data_base64":"…"}`."""
    _, what = split(data)
    if what.startswith(_JSON_TAIL):
        return what[len(_JSON_TAIL) : -1]
    if what:
        return b"{" + what[what.index(b',"data_base64":') + 1 :]
    event = orjson.loads(data)  # a CloudEvent that another program put into the queue
    return orjson.dumps(event["data"] if "data" in event else {"data_base64": event.get("data_base64", "")})


def uuid7(unix_ms: int, random_74_bits: int) -> str:
    """Return a UUID version 7 (RFC 9562, section 5.7): 48 bits of time, 74 of randomness."""
    a, b, c = random_74_bits >> 62, (random_74_bits >> 48) & 0x3FFF, random_74_bits & 0xFFFF_FFFF_FFFF
    return f"{unix_ms >> 16 & 0xFFFF_FFFF:08x}-{unix_ms & 0xFFFF:04x}-7{a & 0xFFF:03x}-{0x8000 | b:04x}-{c:012x}"


def uuid7s(unix_ms: int, random_74_bits: int, count: int) -> list[bytes]:
    """Return so many UUIDs of this time, counted on from the first, in ASCII."""
    low = random_74_bits & 0xFFFF_FFFF_FFFF
    if low + count > 1 << 48:  # once in ten billion groups
        return [uuid7(unix_ms, random_74_bits + i & (1 << 74) - 1).encode() for i in range(count)]
    same = uuid7(unix_ms, random_74_bits)[:-12].encode()
    numbers = array("Q", range(low, low + count))
    if sys.byteorder == "little":
        numbers.byteswap()
    digits = binascii.hexlify(numbers)  # 16 for each number, and the first four are zeros
    return [same + digits[at : at + 12] for at in range(4, 16 * count, 16)]


def adopt(stored: bytes, received_at: float, source: str, random_74_bits: int) -> bytes | None:
    """Turn what the stock library stored into a stored event: a CloudEvent keeps its id, other JSON gets one of ours.

    None if the bytes are not JSON (a pickle is never loaded).
    """
    is_json, value = parse_json(stored)
    if not is_json:
        return None
    if is_event(value):
        return in_one_line(stored, value)
    time = time_text(received_at or 0.0)
    event_id = uuid7(int((received_at or 0.0) * 1000), random_74_bits)
    return head(event_id, head_middle(source, "imported"), time) + tail(stored, is_json=True)


def is_event(value: Any) -> bool:
    """Tell whether a parsed JSON value is a CloudEvent with an id."""
    return isinstance(value, dict) and value.get("specversion") == "1.0" and isinstance(value.get("id"), str)


def in_one_line(stored: bytes, event: dict[str, Any]) -> bytes:
    """Return the bytes of a CloudEvent (`event` is what they say) as they are stored: unchanged if they are ours."""
    line = stored.replace(b"\n", b" ").replace(b"\r", b" ").strip()
    # The space keeps what only resembles our layout from being read by it; it is parsed instead.
    return line if _is_ours(line, event) else b"{ " + line[1:].lstrip()


def _is_ours(line: bytes, event: dict[str, Any]) -> bool:
    """Tell whether a CloudEvent is in the one layout that is read without parsing."""
    *members, last = event
    mark = f'","clockunset":"{event["clockunset"]}' if "clockunset" in event else ""
    if tuple(name for name in members if name != "clockunset") != _MEMBERS or not isinstance(event["time"], str):
        return False
    what = b"%b%b" % (_TAIL, orjson.dumps(event["datacontenttype"]))
    expected = _JSON_TAIL if last == "data" else what + b',"data_base64":"'
    middle = head_middle(event["source"], event["subject"], event["type"])
    return line.startswith(head(event["id"], middle, event["time"] + mark) + expected)
