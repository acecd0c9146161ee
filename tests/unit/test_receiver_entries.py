"""The receiver cuts events out of a body as the very bytes that came, and judges each for itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.receiver.body import Refusal
from bridge.receiver.entries import BadEvent, Entry, Event, read, split_array

BATCH = "application/cloudevents-batch+json"
NAMELESS = BadEvent(None, "id is missing or not a non-empty string")
HEAD = b'{"specversion":"1.0","id":"'


def ours(event_id: str, data: bytes = b'{"label":"cat"}') -> bytes:
    """An event as the bridge writes it."""
    return b'%b%b","source":"edge/a","type":"edge.prediction.v1","data":%b}' % (HEAD, event_id.encode(), data)


def entries(media_type: str, body: bytes, nonce: str = "nonce") -> list[Entry]:
    found = read(media_type, body, nonce)
    assert not isinstance(found, Refusal), found
    return list(found)


def refusal(media_type: str, body: bytes) -> Refusal:
    found = read(media_type, body, "nonce")
    assert isinstance(found, Refusal), found
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def foreign_events(draw: st.DrawFn) -> bytes:
    """A CloudEvent as anybody may write it: members in any order, any spacing, escaped or not."""
    members: dict[str, Any] = {"specversion": "1.0", "id": draw(st.text(min_size=1)), "source": "s", "type": "t"}
    members["data"] = draw(json_values)
    order = draw(st.permutations(list(members)))
    text = json.dumps(
        {name: members[name] for name in order},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": ")])),
    )
    return text.encode("utf-8", "surrogatepass")


our_events = st.builds(
    lambda number, inner: ours(f"id-{number}", b"[%b]" % b",".join(inner)),
    st.integers(0, 99),
    st.lists(st.sampled_from([ours("nested"), b"17", b'"],{["']), max_size=3),
)


@given(st.lists(our_events | foreign_events(), max_size=6), st.sampled_from([b",", b" ,\n", b", "]))
def test_every_valid_array_comes_apart_into_exactly_the_bytes_of_its_elements(
    events: list[bytes], comma: bytes
) -> None:
    found = entries(BATCH, b" [" + comma.join(events) + b"]\n")
    assert [one.data for one in found if isinstance(one, Event)] == events
    assert [one.id for one in found] == [json.loads(event)["id"] for event in events]


@given(st.lists(foreign_events().map(lambda event: b" ".join(event.split(b"\n"))), max_size=5))
def test_every_line_of_ndjson_is_one_event(events: list[bytes]) -> None:
    found = entries("application/x-ndjson", b"".join(event + b"\r\n\n" for event in events))
    assert [one.data for one in found if isinstance(one, Event)] == events


@given(st.lists(json_values, max_size=5))
def test_every_array_of_payloads_comes_apart_into_exactly_the_bytes_of_its_elements(values: list[Any]) -> None:
    pieces = [json.dumps(value).encode() for value in values]
    found = entries("application/json", b"[%b]" % b" , ".join(pieces))
    assert [one.data for one in found if isinstance(one, Event)] == pieces


@given(st.binary(max_size=60) | st.text('[]{}",:\\ 1a').map(str.encode))
def test_no_body_at_all_makes_it_raise(body: bytes) -> None:
    for media_type in (BATCH, "application/cloudevents+json", "application/x-ndjson", "application/json"):
        read(media_type, b"[%b]" % body, "nonce")
        read(media_type, body, "nonce")


@pytest.mark.parametrize(
    "number",
    ["1.10", "1e400", "-0.0", "12345678901234567890123", "9" * 5000],
    ids=["1.10", "1e400", "-0", "23", "5000"],
)
def test_numbers_keep_every_digit(number: str) -> None:
    event = ours("a", b'{"n":%b}' % number.encode())
    assert entries(BATCH, b"[%b,%b]" % (event, ours("b"))) == [
        Event("edge/a", "a", event),
        Event("edge/a", "b", ours("b")),
    ]


def test_nesting_too_deep_to_judge_spoils_only_its_own_event_and_is_named() -> None:
    deep = ours("deep", b"[" * 100_000 + b"]" * 100_000)
    first, bad, last = entries(BATCH, b"[%b,%b,%b]" % (ours("a"), deep, ours("b")))
    assert (first.id, bad.id, last.id) == ("a", "deep", "b")
    assert isinstance(bad, BadEvent)
    assert isinstance(last, Event)


def test_half_a_character_in_the_data_is_kept_and_in_the_id_refused() -> None:
    kept, refused = entries(BATCH, rb"[%b,%b]" % (ours("a", rb'"\ud800"'), ours(r"\ud800")))
    assert isinstance(kept, Event)
    assert refused == NAMELESS


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b"17", BadEvent(None, "not a JSON object")),
        (b"[]", BadEvent(None, "not a JSON object")),
        (b"{}", NAMELESS),
        (b'{"specversion":"1.0","id":7,"source":"s","type":"t"}', NAMELESS),
        (b'{"specversion":"1.0","id":"","source":"s","type":"t"}', NAMELESS),
        (b'{"specversion":"0.3","id":"a","source":"s","type":"t"}', BadEvent("a", 'specversion is not "1.0"')),
        (b'{"specversion":1.0,"id":"a","source":"s","type":"t"}', BadEvent("a", 'specversion is not "1.0"')),
        (b'{"specversion":"1.0","id":"a","type":"t"}', BadEvent("a", "source is missing or not a non-empty string")),
        (b'{"specversion":"1.0","id":"a","source":"s"}', BadEvent("a", "type is missing or not a non-empty string")),
        (
            b'{"specversion":"1.0","id":"a","source":"s","type":"t","data":1,"data_base64":""}',
            BadEvent("a", "both data and data_base64 are given"),
        ),
    ],
)
def test_an_event_that_is_not_one_is_bad_alone(event: bytes, expected: BadEvent) -> None:
    good = Event("edge/a", "good", ours("good"))
    assert entries(BATCH, b"[%b,%b]" % (event, good.data)) == [expected, good]
    assert entries("application/x-ndjson", b"%b\n%b" % (event, good.data)) == [expected, good]
    assert entries("application/cloudevents+json", event) == [expected]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[", b"]", b"{}", b"[1,]", b"[,1]", b"[1 2]", b"[1]]", b"[1]x", b"[1}", b"[}{]", b"[" * 3_000),
        *(b"[NaN]", b"[-Infinity]", b"[01]", b"[tru]", b'["]', b'["a\nb"]', b'["\xff"]', b"\xef\xbb\xbf[]"),
        *(ours("a"), b"[%b" % ours("a")),
    ],
)
def test_a_body_that_is_not_a_json_array_is_refused_whole(body: bytes) -> None:
    assert refusal(BATCH, body).status_code == 400
    assert refusal("application/json", body).status_code == 400


def test_a_line_that_is_not_json_spoils_no_other_and_is_named_if_it_says_who_it_is() -> None:
    broken = ours("broken")[:-1]
    found = entries("application/x-ndjson", b"%b\n%b\nrubbish" % (ours("a"), broken))
    assert [one.id for one in found] == ["a", "broken", None]
    assert [type(one) for one in found] == [Event, BadEvent, BadEvent]


def test_an_unknown_media_type_is_refused_with_what_would_be_right() -> None:
    assert refusal("text/plain", b"[]").status_code == 415
    assert BATCH in refusal("text/plain", b"[]").error


def test_payloads_go_by_the_producers_id_or_by_their_place_in_the_request() -> None:
    body = b'[{"prediction_id":"p"},{"event_id":"e"},{"message_id":"m","event_id":3},{"id":"camera"},17]'
    assert [one.id for one in entries("application/json", body, "k")] == ["p", "e", "m", "k/3", "k/4"]


def test_one_payload_id_with_two_contents_is_two_events_and_with_one_content_is_one() -> None:
    first, same, other = entries(
        "application/json", b'[{"event_id":"e","n":1},{"event_id":"e","n":1},{"event_id":"e","n":2}]'
    )
    assert first[:2] == same[:2]
    assert first[:2] != other[:2]


def test_an_array_is_cut_at_its_own_commas_only() -> None:
    body = b'[ "a,]b" , {"c":[1,2],"d":"\\"],"} ,[[],[]], 7 ]'
    assert split_array(body) == [b'"a,]b"', b'{"c":[1,2],"d":"\\"],"}', b"[[],[]]", b"7"]
    assert split_array(b" [ ] ") == []
