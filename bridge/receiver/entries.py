"""The events of a body, each as the very bytes that came.

An event is cut out of its array, never parsed and printed again, so every digit of every number stays. The quick way
cuts where our own events begin, and is right whenever every piece is JSON by itself: pieces that are, joined by
commas in brackets, can only be that array. Everything else takes the careful way, which counts brackets without
recursion and lets through what JSON allows and fast parsers refuse (integers of 5,000 digits). What can not be judged
(nesting that no parser here survives) is a bad event of its own, not the end of the body.

Pure: bytes in, entries or a `Refusal` out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson

from bridge.receiver.body import Refusal

MEDIA_TYPES = (
    "application/cloudevents-batch+json",
    "application/cloudevents+json",
    "application/x-ndjson",
    "application/json",
)
PAYLOAD_ID_FIELDS = ("prediction_id", "event_id", "message_id")

_WHITESPACE = b" \t\n\r"
_HEAD = b'{"specversion":"1.0","id":"'
_TOKEN = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]')
_NAME = re.compile(rb'\{\s*"specversion"\s*:\s*"[^"\\]*"\s*,\s*"id"\s*:\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")')


class Event(NamedTuple):
    """One event to keep. `source` and `id` together say which one it is (CloudEvents 1.0); `data` is as it came."""

    source: str
    id: str
    data: bytes


class BadEvent(NamedTuple):
    """One event that can not be kept, named if its name could be read."""

    id: str | None
    error: str
    status_code: int = 400


Entry = Event | BadEvent


def read(media_type: str, body: bytes, nonce: str) -> Sequence[Entry] | Refusal:
    """Return the entries of a body in order. `nonce` names those bare payloads that bring no id of their own."""
    match media_type:
        case "application/cloudevents-batch+json":
            return _read_array(body)
        case "application/cloudevents+json":
            return _read_single(body)
        case "application/x-ndjson":
            return _read_lines(body)
        case "application/json":
            return _judge_array(body, lambda number, value, data: _payload(value, data, f"{nonce}/{number}"))
        case _:
            return Refusal(415, f"Content-Type {media_type!r} is not understood; use one of {', '.join(MEDIA_TYPES)}")


def _read_array(body: bytes) -> Sequence[Entry] | Refusal:
    inner = body.strip(_WHITESPACE)
    if inner[:1] == b"[" and inner[-1:] == b"]":
        first, *rest = inner[1:-1].split(b"," + _HEAD)
        pieces = [first, *[_HEAD + piece for piece in rest]]
        try:
            return [_judge_event(orjson.loads(piece), piece.strip(_WHITESPACE)) for piece in pieces]
        except orjson.JSONDecodeError:
            pass
    return _judge_array(body, lambda _number, value, data: _judge_event(value, data))


def _judge_array(body: bytes, judge: Callable[[int, Any, bytes], Entry]) -> Sequence[Entry] | Refusal:
    pieces = split_array(body)
    if pieces is None:
        return Refusal(400, "the body is not a JSON array")
    entries: list[Entry] = []
    for number, piece in enumerate(pieces):
        entry = _judge_carefully(piece, partial(judge, number))
        if entry is None:
            return Refusal(400, f"the body is not valid JSON: see element {number} of the array")
        entries.append(entry)
    return entries


def _read_lines(body: bytes) -> Sequence[Entry]:
    lines = [line.strip(_WHITESPACE) for line in body.split(b"\n")]
    return [_judge_line(line) for line in lines if line]


def _judge_line(line: bytes) -> Entry:
    """Lines stand alone: one that is not JSON spoils no other."""
    try:
        return _judge_event(orjson.loads(line), line)
    except orjson.JSONDecodeError:
        return _judge_carefully(line, _judge_event) or BadEvent(_name(line), "the line is not valid JSON")


def _read_single(body: bytes) -> Sequence[Entry] | Refusal:
    entry = _judge_carefully(body.strip(_WHITESPACE), _judge_event)
    return Refusal(400, "the body is not valid JSON") if entry is None else [entry]


def _payload(value: Any, data: bytes, name: str) -> Event:
    """Name a bare payload. It does not say where it is from, and two sources may use one id: its digest is its source.

    So a payload counts as stored before only if its id *and* its bytes are the same.
    """
    fields = PAYLOAD_ID_FIELDS if type(value) is dict else ()
    own = next((value[field] for field in fields if _is_name(value.get(field))), name)
    return Event("sha256:" + hashlib.sha256(data).hexdigest(), own, data)


def _judge_event(value: Any, data: bytes) -> Entry:
    """Hold an element against what CloudEvents 1.0 requires."""
    if type(value) is not dict:
        return BadEvent(None, "not a JSON object")
    if not _is_name(value.get("id")):
        return BadEvent(None, "id is missing or not a non-empty string")
    problem = _find_problem(value)
    return BadEvent(value["id"], problem) if problem else Event(value["source"], value["id"], data)


def _find_problem(event: dict[str, Any]) -> str | None:
    if event.get("specversion") != "1.0":
        return 'specversion is not "1.0"'
    for attribute in ("source", "type"):
        if not _is_name(event.get(attribute)):
            return f"{attribute} is missing or not a non-empty string"
    return "both data and data_base64 are given" if "data" in event and "data_base64" in event else None


def _is_name(value: object) -> bool:
    """Tell whether it is a string that can be a key: not empty, and Unicode (JSON can spell half a character)."""
    if type(value) is not str or not value:
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _judge_carefully(data: bytes, judge: Callable[[Any, bytes], Entry]) -> Entry | None:
    """Judge one element by the patient parser; None if it is not JSON."""
    try:
        value = _PATIENT.decode(data.decode())
    except RecursionError:
        return BadEvent(_name(data), "nested too deeply to be read")
    except ValueError:  # not JSON, or not UTF-8
        return None
    return judge(value, data)


def _not_a_name(_digits: str) -> None:
    """Numbers are not looked at: their digits stay in the event's bytes, however many they are."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_PATIENT = json.JSONDecoder(parse_int=_not_a_name, parse_float=_not_a_name, parse_constant=_refuse_constant)


def _name(data: bytes) -> str | None:
    """Return the id of an event that can not be parsed, if it stands where our own events have it."""
    found = _NAME.match(data)
    try:
        name = orjson.loads(found[1]) if found else None
    except orjson.JSONDecodeError:
        return None
    return name if _is_name(name) else None


def split_array(body: bytes) -> list[bytes] | None:
    """Cut a JSON array into its elements without reading them; None where brackets or quotes do not match up."""
    body = body.strip(_WHITESPACE)
    if body[:1] != b"[":
        return None
    pieces: list[bytes] = []
    start, depth = 1, 0
    for token in _TOKEN.finditer(body):
        letter = token[0]
        if letter in b"[{":
            depth += 1
        elif letter in b"]}":
            depth -= 1
        elif letter == b'"':
            return None
        if (letter == b"," and depth == 1) or depth == 0:
            pieces.append(body[start : token.start()].strip(_WHITESPACE))
            start = token.end()
        if depth == 0:
            break
    if depth or start != len(body) or body[-1:] != b"]":
        return None
    return [] if pieces == [b""] else pieces
