"""Every row of the table in docs/UPLOAD.md, and answers that no table foresees (promises 26 to 30; I2)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime, formatdate
from http import HTTPStatus
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import verdict
from bridge.batch import Batch
from bridge.message import CLOCK_SET_SINCE, DeadRow, Row, head, head_middle, tail
from bridge.verdict import Cause, Dead, Delivered, Halve, Later, Meaning, Partly, Pause, Reply, Verdict

NOW = 1_790_000_000.0
MIDDLE = head_middle("edge/press-4", "edge/predictions/press-4")


def row(number: int) -> Row:
    return Row(number, head(f"id-{number}", MIDDLE, "2026-01-01T00:00:00Z") + tail(b"{}", is_json=True))


ONE, THREE = Batch((row(1),)), Batch((row(1), row(2), row(3)), attempts=4)


def judge(reply: Reply, batch: Batch = THREE, *, require_receipt: bool = False) -> Verdict:
    return verdict.judge(reply, batch, require_receipt=require_receipt, now=NOW)


def results(*entries: tuple[Any, Any] | tuple[Any, Any, Any], status_code: int = 207) -> Reply:
    listed = [dict(zip(("id", "status", "error"), entry, strict=False)) for entry in entries]
    return json_reply({"results": listed}, status_code)


def json_reply(document: Any, status_code: int = 200, **more: Any) -> Reply:
    return Reply(status_code, "application/json", body=json.dumps(document).encode(), **more)


# ---- the table: a status code for a whole batch -------------------------------------------------------------------


class Line(NamedTuple):
    """One line of the table: status codes, and the kinds of verdict for three rows and for one."""

    status_codes: list[int]
    for_many: type[Verdict]
    for_one: type[Verdict]
    cause: Cause | None = None


TABLE = [
    Line([200, 201, 202, 204, 206, 299], Delivered, Delivered),
    Line([207], Later, Later, Cause.UNCOVERED),
    Line([408, 425, 429], Later, Later, Cause.THROTTLED),
    Line([500, 501, 502, 503, 504, 505, 507, 511, 520, 599], Later, Later, Cause.SERVER_FAILED),
    Line([409], Later, Later, Cause.IN_PROGRESS),
    Line([400, 412, 416, 418, 422, 423, 424, 451, 499], Halve, Dead),
    Line([413], Halve, Dead),
    Line([401, 402, 403, 404, 405, 406, 407, 410, 411, 414, 415, 417, 421, 426, 428, 431], Pause, Pause),
    Line([300, 301, 302, 303, 304, 307, 308, 399], Pause, Pause),
    Line([-1, 0, 100, 101, 103, 199, 600, 999], Later, Later, Cause.UNANSWERED),
]


@pytest.mark.parametrize(
    ("status_code", "line"), [pytest.param(code, line, id=str(code)) for line in TABLE for code in line.status_codes]
)
def test_a_status_code_has_the_verdict_of_the_table(status_code: int, line: Line) -> None:
    many, one = judge(Reply(status_code)), judge(Reply(status_code), ONE)
    assert type(many) is line.for_many
    assert type(one) is line.for_one
    if line.cause:
        assert isinstance(many, Later)
        assert many.cause is line.cause


def test_only_a_size_that_is_refused_is_remembered() -> None:
    assert judge(Reply(413)) == Halve(f"413 {HTTPStatus(413).phrase}", remember_size=True)
    assert judge(Reply(422)) == Halve(f"422 {HTTPStatus(422).phrase}", remember_size=False)


@pytest.mark.parametrize(("status_code", "word"), [(422, "refused"), (413, "too_large")])
def test_a_dead_row_tells_status_reason_attempts_and_an_excerpt(status_code: int, word: str) -> None:
    reply = Reply(status_code, body=b'{"error":"score\n\xff\x1b[31m is missing"}')
    batch = Batch((row(1),), attempts=4)
    expected = DeadRow(1, word, status_code, 5, '{"error":"score\\n�\\x1b[31m is missing"}')
    assert judge(reply, batch) == Dead(expected)


def test_a_pause_says_what_to_look_at() -> None:
    assert judge(Reply(401)) == Pause("401 Unauthorized: check upload.token")
    assert judge(Reply(308)) == Pause("308 Permanent Redirect: redirects are not followed, check upload.url")
    assert judge(Reply(431)) == Pause("431 Request Header Fields Too Large: check the upload settings")


# ---- no answer, broken answer -------------------------------------------------------------------------------------


def test_without_an_answer_all_is_tried_again_and_it_matters_whether_anything_was_sent() -> None:
    assert judge(Reply(None, error="timed out")) == Later("timed out", Cause.UNANSWERED)
    assert judge(Reply(None, error="refused", sent=False)) == Later("refused", Cause.UNREACHABLE)


def test_a_2xx_that_breaks_off_delivers_nothing() -> None:
    broken = judge(Reply(200, body=b'{"ok"', error="connection closed"))
    assert broken == Later("the answer broke off: connection closed", Cause.UNANSWERED)


def test_a_refusal_stands_even_if_its_text_breaks_off() -> None:
    assert isinstance(judge(Reply(413, error="connection closed")), Halve)
    assert isinstance(judge(Reply(401, error="connection closed")), Pause)


# ---- 2xx: what the body says --------------------------------------------------------------------------------------

PAGES = [
    ("text/html", b"<html>log in</html>"),
    ("text/html; charset=utf-8", b"please log in"),
    ("Application/XHTML+XML", b"<?xml version='1.0'?><html/>"),
    (None, b"<p>log in"),
    ("text/plain", b"\xef\xbb\xbf\n  <!DOCTYPE html><html>"),
    ("application/json", b"<!doctype html>"),
    ("application/octet-stream", b"<HTML>"),
]


@pytest.mark.parametrize(("content_type", "body"), PAGES)
def test_an_html_page_of_a_captive_portal_delivers_nothing(content_type: str | None, body: bytes) -> None:
    answer = judge(Reply(200, content_type, body=body))
    assert isinstance(answer, Later)
    assert "captive portal" in answer.reason
    assert answer.cause is Cause.UNCOVERED


COVERING = [
    (None, b""),
    ("text/html", b""),  # what many frameworks say with an empty body
    ("text/plain", b"ok"),
    ("application/json", b""),
    ("application/json", b"null"),
    ("application/json", b'[{"results": 1}]'),
    ("application/json", b'{"stored": 3, "result": []}'),
    ("application/xml", b"<ok/>"),
    (None, b"\x00\xff"),
]


@pytest.mark.parametrize(("content_type", "body"), COVERING)
def test_a_2xx_without_results_covers_every_row(content_type: str | None, body: bytes) -> None:
    assert judge(Reply(200, content_type, body=body)) == Delivered()


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"results": [',
        b'{"results": {"id-1": 200}}',
        b'{"results": null}',
        b'{"results": [1]}',
        b'{"results": [{"id": "id-1"}]}',
        b'{"results": [{"id": "id-1", "status": "200"}]}',
        b'{"results": [{"id": "id-1", "status": true}]}',
        b'{"results": [{"id": 1, "status": 200}]}',
        b'{"results": ' + b"[" * 5000,
    ],
)
def test_results_that_cannot_be_understood_cover_nothing(body: bytes) -> None:
    assert judge(Reply(200, "application/json", body=body)) == Later(
        "the answer cannot be understood", Cause.UNANSWERED
    )


@pytest.mark.parametrize("status_code", [200, 201, 202, 207])
def test_results_are_read_row_by_row(status_code: int) -> None:
    answer = results(("id-1", 201), ("id-2", 503, "busy"), ("id-3", 422, "no score"), status_code=status_code)
    assert judge(answer) == Partly(
        delivered=(1,),
        later=(DeadRow(2, "refused", 503, 5, "busy"),),
        unnamed=(),
        dead=(DeadRow(3, "refused", 422, 5, "no score"),),
    )


FATES = {
    "delivered": [200, 201, 202, 204, 299, 409],
    "later": [408, 425, 429, 500, 502, 503, 504, 599, 100, 302, 0, 999],
    "dead": [400, 401, 403, 404, 410, 413, 415, 418, 422, 499],
}


@pytest.mark.parametrize(
    ("status_code", "fate"), [(status_code, fate) for fate, codes in FATES.items() for status_code in codes]
)
def test_the_status_of_one_row_decides_its_fate(status_code: int, fate: str) -> None:
    partly = judge(results(("id-1", status_code)))
    assert isinstance(partly, Partly)
    found = {
        "delivered": partly.delivered,
        "later": tuple(one.row_id for one in partly.later),
        "dead": tuple(one.row_id for one in partly.dead),
    }
    assert found == {name: (1,) if name == fate else () for name in found}
    assert partly.unnamed == (2, 3)


def test_results_that_name_every_row_as_delivered_deliver_the_batch() -> None:
    assert judge(results(("id-3", 200), ("id-1", 409), ("id-2", 201), ("id-9", 500))) == Delivered()


def test_a_row_that_the_results_do_not_name_is_not_delivered() -> None:
    assert judge(results(("id-2", 200), (None, 400))) == Partly((2,), (), (1, 3), ())


@pytest.mark.parametrize("entries", [[], [("id-9", 200)], [(None, 400)]])
def test_results_that_name_no_row_deliver_nothing(entries: list[tuple[Any, Any]]) -> None:
    answer = judge(results(*entries, status_code=200))
    assert answer == Later("the answer names none of the rows", Cause.SERVER_FAILED, status_code=200)


@pytest.mark.parametrize("order", [(200, 422, 503), (503, 422, 200), (422, 200, 503)])
def test_of_two_results_for_one_row_the_worse_counts(order: tuple[int, ...]) -> None:
    partly = judge(results(*(("id-1", status_code) for status_code in order)))
    assert isinstance(partly, Partly)
    assert [one.status_code for one in partly.dead] == [422]


def test_of_two_results_that_are_equally_bad_the_first_is_recorded() -> None:
    partly = judge(results(("id-1", 422, "no score"), ("id-1", 400, "bad")))
    assert isinstance(partly, Partly)
    assert [(one.status_code, one.excerpt) for one in partly.dead] == [(422, "no score")]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream"])
def test_results_count_whatever_the_answer_calls_itself(content_type: str | None) -> None:
    assert judge(replace(results(("id-2", 200)), content_type=content_type)) == Partly((2,), (), (1, 3), ())


def test_retry_after_of_partial_results_is_a_floor() -> None:
    partly = judge(replace(results(("id-1", 429)), retry_after="7"))
    assert isinstance(partly, Partly)
    assert partly.floor_seconds == 7


# ---- answers longer than what is read -----------------------------------------------------------------------------


def cut(document: Any, at: int) -> Reply:
    return Reply(200, "application/json", body=json.dumps(document).encode()[:at], truncated=True)


LONG = {"results": [{"id": "id-1", "status": 200, "error": 'a }] "'}, {"id": "id-2", "status": 200}], "trace": "}"}
LONG_TEXT = json.dumps(LONG)
ENDS = {1: LONG_TEXT.index('}, {"id": "id-2"') + 1, 2: LONG_TEXT.index('}], "trace"') + 1}


@given(st.integers(1, len(LONG_TEXT) - 1))
def test_a_cut_answer_covers_exactly_the_rows_whose_results_are_whole(at: int) -> None:
    covered = tuple(row_id for row_id, end in ENDS.items() if end <= at)
    unnamed = tuple(row_id for row_id in THREE.row_ids if row_id not in covered)
    answer = judge(cut(LONG, at))
    if covered:
        assert answer == Partly(covered, (), unnamed, ())
    else:
        assert answer == Halve("the answer is longer than 65536 bytes", remember_size=True)


def test_a_long_answer_that_cannot_be_judged_asks_for_smaller_batches_and_kills_nothing() -> None:
    echo = cut({"echo": "x" * 100}, 60)
    assert isinstance(judge(echo), Halve)
    assert isinstance(judge(echo, ONE), Later)


def test_a_long_answer_whose_results_were_not_reached_covers_no_row() -> None:
    """What was cut off may have been the results."""
    answer = cut({"echo": [{"id": f"id-{number}"} for number in range(9)]}, 100)
    assert judge(answer) == Halve("the answer is longer than 65536 bytes", remember_size=True)


def test_a_long_answer_that_is_no_object_has_no_results() -> None:
    assert judge(Reply(200, "application/json", body=b"[" + b"1," * 9, truncated=True)) == Delivered()
    assert judge(Reply(200, "text/plain", body=b"ok " * 9, truncated=True)) == Delivered()


# ---- receipts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("echo", [THREE.key, f'"{THREE.key}"', f' "{THREE.key}" '])
def test_a_required_receipt_is_the_echo_of_the_key(echo: str) -> None:
    assert judge(Reply(200, echoed_key=echo), require_receipt=True) == Delivered()
    assert judge(json_reply({"idempotency_key": echo}), require_receipt=True) == Delivered()


def test_a_required_receipt_may_be_results() -> None:
    named = results(*((f"id-{number}", 200) for number in (1, 2, 3)), status_code=200)
    assert judge(named, require_receipt=True) == Delivered()


@pytest.mark.parametrize("reply", [Reply(200), Reply(204), Reply(200, echoed_key=ONE.key), json_reply({"ok": True})])
def test_without_the_required_receipt_nothing_is_delivered(reply: Reply) -> None:
    assert judge(reply) == Delivered()
    answer = judge(reply, require_receipt=True)
    assert isinstance(answer, Later)
    assert answer.cause is Cause.UNCOVERED


# ---- Retry-After --------------------------------------------------------------------------------------------------

RETRY_AFTER = [
    ("7", 7),
    (" 0 ", 0),
    ("1.5", 1.5),
    ("-5", 0),
    ("3601", 3600),
    ("9" * 400, 3600),
    (formatdate(NOW + 90, usegmt=True), 90),
    (format_datetime(datetime.fromtimestamp(NOW + 90, UTC)).replace("+0000", "-0000"), 90),
    (format_datetime(datetime.fromtimestamp(NOW + 90, timezone(timedelta(hours=2)))), 90),
    (formatdate(NOW - 90, usegmt=True), 0),
    (formatdate(NOW + 1e8, usegmt=True), 3600),
    ("", None),
    ("soon", None),
    ("Mon, 99 Foo 2026 99:99:99 GMT", None),
    ("nan", None),
    ("1e400", None),
    ("\x00", None),
]


@pytest.mark.parametrize(("header", "floor_seconds"), RETRY_AFTER)
def test_retry_after_is_seconds_or_a_date_capped_at_an_hour(header: str, floor_seconds: float | None) -> None:
    answer = judge(Reply(503, retry_after=header))
    assert isinstance(answer, Later)
    assert answer.floor_seconds == floor_seconds
    assert answer.cause is (Cause.SERVER_FAILED if floor_seconds is None else Cause.THROTTLED)


@pytest.mark.parametrize(
    ("now", "floor_seconds"), [(12.0, None), (CLOCK_SET_SINCE - 1, None), (CLOCK_SET_SINCE, 60), (NOW, 60)]
)
def test_a_date_says_nothing_to_a_clock_that_was_never_set(now: float, floor_seconds: float | None) -> None:
    reply = Reply(503, retry_after=formatdate(now + 60, usegmt=True))
    answer = verdict.judge(reply, ONE, require_receipt=False, now=now)
    assert isinstance(answer, Later)
    assert answer.floor_seconds == floor_seconds


# ---- total --------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 700) | st.text(max_size=5) | st.sampled_from(["id-1", "id-2"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["results", "id", "status", "error"]), inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = st.binary(max_size=60) | json_values.map(lambda value: json.dumps({"results": value}).encode())
replies = st.builds(
    Reply,
    st.none() | st.integers(-10, 1000),
    content_type=st.none() | st.sampled_from(["application/json", "text/html", "x/y"]) | st.text(max_size=9),
    retry_after=st.none() | st.text(max_size=30) | st.integers().map(str),
    echoed_key=st.none() | st.text(max_size=9),
    body=bodies,
    truncated=st.booleans(),
    error=st.none() | st.text(max_size=9),
    sent=st.booleans(),
)


@given(replies, st.sampled_from([ONE, THREE]), st.booleans())
def test_every_reply_has_a_verdict_that_covers_each_row_at_most_once(
    reply: Reply, batch: Batch, require_receipt: bool
) -> None:
    match judge(reply, batch, require_receipt=require_receipt):
        case Partly(delivered, later, unnamed, dead, _):
            named = [*delivered, *(one.row_id for one in (*later, *dead)), *unnamed]
            assert sorted(named) == list(batch.row_ids)
        case Delivered():
            assert reply.status_code in range(200, 300)
            assert reply.error is None
        case Dead(one):
            assert reply.status_code in range(400, 500)
            assert one.row_id == batch.rows[0].row_id
            assert len(batch.rows) == 1
        case Halve():
            assert len(batch.rows) > 1
        case _:
            pass


def test_the_table_in_this_test_and_the_table_in_the_code_know_the_same_codes() -> None:
    listed = {status_code for line in TABLE for status_code in line.status_codes}
    assert set(verdict.STATUS_CODES) <= listed
    assert {verdict.meaning(status_code) for status_code in listed} == set(Meaning)


def test_two_rows_are_enough_to_be_halved() -> None:
    two = Batch((row(1), row(2)))
    assert isinstance(judge(Reply(400), two), Halve)
    assert isinstance(judge(Reply(200, "application/json", body=b'{"results":[', truncated=True), two), Halve)


def test_an_excerpt_has_two_hundred_characters_at_most() -> None:
    assert verdict.excerpt("x" * 200) == "x" * 200
    assert len(verdict.excerpt("x" * 201)) == 200


@pytest.mark.parametrize(
    ("status_code", "advice"),
    [
        *((code, "upload.token") for code in (401, 403)),
        *((code, "upload.url") for code in (300, 301, 404, 405, 410)),
        (407, "upload.proxy"),
        (415, "upload.format"),
        (402, "the upload settings"),
    ],
)
def test_a_pause_says_where_to_look(status_code: int, advice: str) -> None:
    paused = judge(Reply(status_code))
    assert isinstance(paused, Pause)
    assert str(status_code) in paused.reason
    assert advice in paused.reason


@given(st.text(max_size=1000))
def test_an_excerpt_is_short_and_printable(text: str) -> None:
    shown = verdict.excerpt(text)
    assert len(shown) <= verdict.EXCERPT_CHARS_MAX
    assert shown.isprintable()


@pytest.mark.parametrize("body", [b" " * 99, b'{"stored": 1, "note": "' + b"x" * 99])
def test_an_answer_cut_off_before_it_says_anything_delivers_nothing(body: bytes) -> None:
    assert judge(Reply(200, "application/json", body=body, truncated=True)) != Delivered()
