"""The stored event: its layout, its ids, and that a payload's bytes survive."""

from __future__ import annotations

import base64
import uuid

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import message

TIME = "2026-11-23T18:00:00.000000Z"


def stored(payload: bytes, *, event_id: str = "7", topic: str = "edge/predictions/a") -> bytes:
    is_json, _ = message.parse_json(payload)
    return message.head(event_id, message.head_middle("edge/press-4", topic), TIME) + message.tail(
        payload, is_json=is_json
    )


def test_a_json_payload_becomes_the_data_of_a_cloudevent() -> None:
    assert orjson.loads(stored(b'{"label":"cat"}')) == {
        "specversion": "1.0",
        "id": "7",
        "source": "edge/press-4",
        "type": "edge.prediction.v1",
        "subject": "edge/predictions/a",
        "time": TIME,
        "datacontenttype": "application/json",
        "data": {"label": "cat"},
    }


def test_numbers_keep_every_digit_as_it_came() -> None:
    payload = b'{"p": 0.10000000000000000555, "big": 123456789012345678901234567890, "e": 1E-7}'
    assert payload in stored(payload)


def test_line_breaks_between_tokens_become_spaces_so_that_one_event_is_one_line() -> None:
    event = stored(b'{\r\n  "a": "x\\ny",\n  "b": 2\n}')
    assert b"\n" not in event
    assert b"\r" not in event
    assert orjson.loads(event)["data"] == {"a": "x\ny", "b": 2}


@pytest.mark.parametrize(
    "payload",
    [b"", b"NaN", b"{'a': 1}", b"\xff\xfe", b'{"a":1', b"1" * 5000, b'"\\ud800"', b"\xef\xbb\xbf1", b"[" * 100_000],
    ids=["empty", "NaN", "quotes", "not UTF-8", "cut", "5,000 digits", "lone surrogate", "BOM", "100,000 deep"],
)
def test_what_is_not_json_travels_as_base64_unchanged(payload: bytes) -> None:
    event = orjson.loads(stored(payload))
    assert "data" not in event
    assert base64.b64decode(event["data_base64"]) == payload


def test_nesting_that_common_parsers_refuse_travels_as_base64() -> None:
    shallow = b"[" * message.JSON_DEPTH_MAX + b"1" + b"]" * message.JSON_DEPTH_MAX
    assert "data" in orjson.loads(stored(shallow[1:-1]))
    deep = b'{"a":[' * 300 + b"1" + b"]}" * 300
    assert "data_base64" in orjson.loads(stored(deep))


@given(payload=st.binary(max_size=200), event_id=st.text(min_size=1, max_size=40), topic=st.text(max_size=40))
def test_any_payload_id_and_topic_can_be_read_back(payload: bytes, event_id: str, topic: str) -> None:
    event = stored(payload, event_id=event_id, topic=topic)
    decoded = orjson.loads(event)
    assert (decoded["id"], decoded["subject"]) == (event_id, topic)
    assert message.event_id(event) == event_id
    assert message.event_id_and_subject(event) == (event_id, topic)
    assert b"\n" not in event
    _, what = message.split(event)
    assert what == message.tail(payload, is_json="data" in decoded)


@given(names=st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(max_size=9)), min_size=1, max_size=5))
def test_ids_and_topics_of_many_events_are_those_of_each(names: list[tuple[str, str]]) -> None:
    events = [stored(b"1", event_id=event_id, topic=topic) for event_id, topic in names]
    found = message.event_ids_and_subjects(events)
    assert (found is None) == any(b"\\" in event for event in events), "what is escaped is read one by one"
    assert found is None or list(zip(*found, strict=True)) == names


@pytest.mark.parametrize("odd", [b"", b"\xff", b'{"id":"a"}', stored(b"1").replace(b"predictions", b"\xff\xfe", 1)])
def test_ids_and_topics_of_many_events_are_looked_at_one_by_one_where_one_is_odd(odd: bytes) -> None:
    assert message.event_ids_and_subjects([stored(b"1"), odd, stored(b"2")]) is None
    assert message.event_ids_and_subjects([]) is None


@given(value=st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists))
def test_the_bare_payload_of_a_json_event_is_what_came(value: object) -> None:
    payload = orjson.dumps(value)
    assert message.payload_json(stored(payload)) == payload


def test_the_bare_payload_of_other_bytes_is_named_as_base64() -> None:
    assert orjson.loads(message.payload_json(stored(b"\x00\x01"))) == {"data_base64": "AAE="}


def test_a_payload_cannot_forge_the_border_between_head_and_tail() -> None:
    payload = b'{"x":",\\"datacontenttype\\":","y":{"datacontenttype":"application/json","data":5}}'
    head, what = message.split(stored(payload, event_id='","datacontenttype":', topic=',"datacontenttype":'))
    assert head.endswith(TIME.encode() + b'"')
    assert what == message.tail(payload, is_json=True)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"prediction_id": "a", "event_id": "b"}, "a"),
        ({"event_id": 17}, "17"),
        ({"message_id": ""}, None),
        ({"message_id": True}, None),
        ({"message_id": "x" * 513}, None),
        ({"id": "camera-4"}, None),
        ({"id": 12}, None),
        ({"id": "0190163d-8694-739b-aea5-966c26f8ad91"}, "0190163d-8694-739b-aea5-966c26f8ad91"),
        ({"id": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        (["prediction_id"], None),
        ("text", None),
    ],
)
def test_the_producers_id_is_taken_only_where_it_is_one(payload: object, expected: str | None) -> None:
    assert message.producer_id(payload, ("prediction_id", "event_id", "message_id")) == expected


def test_a_bare_id_counts_if_it_is_asked_for_by_name() -> None:
    assert message.producer_id({"id": "camera-4"}, ("id",)) == "camera-4"


FIELDS = ("prediction_id", "event_id", "message_id")
NAMES = st.sampled_from([*FIELDS, "id", "label", "i"])
some_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | NAMES,
    lambda child: st.lists(child, max_size=3) | st.dictionaries(NAMES, child, max_size=3),
    max_leaves=5,
)
payloads = st.lists(
    some_json.map(orjson.dumps) | st.binary(max_size=5) | st.just(b'{"a":\r\n1}'), min_size=1, max_size=4
)


@given(some=payloads, names=st.sampled_from([FIELDS, (), ("i",)]))
def test_what_is_plain_at_a_glance_is_json_in_one_line_without_an_id_of_its_own(
    some: list[bytes], names: tuple[str, ...]
) -> None:
    if message.are_plain_json(some, frozenset((*names, "id"))):
        parsed = [message.parse_json(payload) for payload in some]
        assert all(is_json and message.producer_id(value, names) is None for is_json, value in parsed)
        assert not any(b"\n" in payload or b"\r" in payload for payload in some)


PLAIN = b'{"label":"crack","boxes":[[1,2],[3,4]],"by":{"id":"camera-4"}}'


@pytest.mark.parametrize(
    ("odd", "is_plain"),
    [
        (PLAIN, True),
        (b"[]", True),
        (b'["text"]', True),
        (b'{"event_id":"a"}', False),
        (b'{"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}', False),
        (b'{"a":\n1}', False),
        (b'{"a":\r1}', False),
        (b'{"a":1', False),
        (b"\xff", False),
        (b'{"a":%b1%b}' % (b"[" * 500, b"]" * 500), False),
        (b'{"a":%b1%b}' % (b"[" * 499, b"]" * 499), True),
    ],
)
def test_one_that_is_not_plain_makes_all_be_looked_at_one_by_one(odd: bytes, is_plain: bool) -> None:
    for at in range(3):
        some = [PLAIN, PLAIN]
        some.insert(at, odd)
        assert message.are_plain_json(some, frozenset((*FIELDS, "id"))) == is_plain


def test_neighbours_that_are_json_only_together_are_not_plain() -> None:
    assert not message.are_plain_json([b"[1", b"2]", b"3,4"], frozenset(("id",)))


@given(ms=st.integers(0, 2**48 - 1), bits=st.integers(0, 2**74 - 1))
def test_our_own_ids_are_uuids_of_version_7(ms: int, bits: int) -> None:
    made = uuid.UUID(message.uuid7(ms, bits))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == ms


@pytest.mark.parametrize("first", [0, (1 << 48) - 2, (5 << 48) - 1, (1 << 74) - 3])
def test_many_of_our_own_ids_are_those_that_single_ones_would_be(first: int) -> None:
    singly = [message.uuid7(1_700_000_000_000, (first + i) % (1 << 74)) for i in range(5)]
    assert [made.decode() for made in message.uuid7s(1_700_000_000_000, first, 5)] == singly


def test_our_own_ids_sort_as_they_were_made() -> None:
    made = [message.uuid7(1_700_000_000_000, (1 << 74) - 1), message.uuid7(1_700_000_000_001, 0)]
    assert made == sorted(made)


def test_what_the_stock_library_stored_becomes_an_event_once() -> None:
    event = message.adopt(b'{"label": "cat"}', 1_700_000_000.0, "edge/press-4", 5)
    assert event is not None
    decoded = orjson.loads(event)
    assert decoded["data"] == {"label": "cat"}
    assert uuid.UUID(decoded["id"]).version == 7
    assert message.adopt(event, 0.0, "edge/other", 6) == event


def test_a_pickle_is_never_loaded() -> None:
    assert message.adopt(b"\x80\x04\x95\x0b\x00\x00\x00", 1.0, "edge/x", 0) is None


# ---- before the clock was set ----

BOOT = "0c2e33a0-8a3c-4a6e-9d0e-2f1f2a3b4c5d"
HOSTILE = '","time":"x","clockunset":"' + BOOT + "/1.0"


def undated(topic: str = "edge/x", payload: bytes = b"1", *, is_json: bool = True) -> bytes:
    time = message.unset_time_text(600.0, BOOT, 12.5)
    return message.head("id-1", message.head_middle("edge/press", topic), time) + message.tail(payload, is_json=is_json)


def test_an_event_from_before_the_clock_was_set_says_so_and_is_a_cloudevent_all_the_same() -> None:
    event = orjson.loads(undated())
    assert event["time"] == "1970-01-01T00:10:00.000000Z"
    assert event["clockunset"] == f"{BOOT}/12.500000"
    assert event["data"] == 1
    assert message.event_id(undated()) == "id-1"


@pytest.mark.parametrize("is_json", [True, False])
def test_in_the_same_boot_it_gets_the_time_it_should_have_had(is_json: bool) -> None:
    began_at = 1_790_000_000.0
    redated_event = message.redated(undated(is_json=is_json), BOOT, began_at)
    expected = message.head(
        "id-1", message.head_middle("edge/press", "edge/x"), message.time_text(began_at + 12.5)
    ) + message.tail(b"1", is_json=is_json)
    assert redated_event == (expected, began_at + 12.5)


def test_in_another_boot_and_without_a_mark_it_stays_as_it_is() -> None:
    dated = message.head(
        "id-1", message.head_middle("edge/press", "edge/x"), message.time_text(1_790_000_000.0)
    ) + message.tail(b"1", is_json=True)
    assert message.redated(undated(), "another boot", 1_790_000_000.0) is None
    assert message.redated(dated, BOOT, 1_790_000_000.0) is None
    assert message.redated(b'{"not": "ours"}', BOOT, 1_790_000_000.0) is None


def test_neither_topic_nor_payload_can_forge_the_mark() -> None:
    payload = orjson.dumps({"time": "x", "clockunset": f"{BOOT}/1.0", "text": HOSTILE})
    middle = message.head_middle("edge/press", f"edge/{HOSTILE}")
    dated = message.head("id-1", middle, message.time_text(1_790_000_000.0)) + message.tail(payload, is_json=True)
    assert message.redated(dated, BOOT, 1_790_000_000.0) is None
    marked = message.redated(undated(f"edge/{HOSTILE}", payload), BOOT, 1_790_000_000.0)
    assert marked is not None
    assert orjson.loads(marked[0])["subject"] == f"edge/{HOSTILE}"
    assert orjson.loads(marked[0])["data"] == orjson.loads(payload)


@pytest.mark.parametrize(
    ("event", "bare"),
    [
        (
            message.head("a", message.head_middle("edge/x", "t"), "2026-01-01T00:00:00Z")
            + message.tail(b"\xff", is_json=False),
            {"data_base64": "/w=="},
        ),
        (b'{ "specversion":"1.0","id":"a","data":[1,2]}', [1, 2]),
        (b'{ "specversion":"1.0","id":"a","data_base64":"AAE="}', {"data_base64": "AAE="}),
        (b'{ "specversion":"1.0","id":"a"}', {"data_base64": ""}),
    ],
)
def test_the_bare_payload_of_any_event_is_found(event: bytes, bare: object) -> None:
    assert orjson.loads(message.payload_json(event)) == bare


def test_an_event_whose_time_is_no_text_is_kept_and_read_by_parsing() -> None:
    foreign = (
        b'{"specversion":"1.0","id":"a","source":"s","type":"t","subject":"x","time":5,"datacontenttype":"d","data":1}'
    )
    adopted = message.adopt(foreign, 1.0, "edge/x", 1)
    assert adopted is not None
    assert adopted.startswith(b"{ ")
    assert orjson.loads(adopted) == orjson.loads(foreign)
