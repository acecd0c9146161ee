"""The table of answers (docs/UPLOAD.md), row by row, through real HTTP: which rows are delivered, kept, dead, halved.

One bridge lives through the whole table; the cloud is given a new script for each row of it. The unit tests walk
through the same table without a network; here it is the process, its queue and its status that must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge.agenda import WHOLE_FAILURES
from tests.harness import wait_until
from tests.harness.cloud import (
    Exchange,
    Request,
    Responder,
    accept,
    answer,
    black_hole,
    cut_after_store,
    cut_before_store,
    html,
    raw,
    redirect,
    reject_ids,
    results,
)
from tests.harness.cloud_stage import CloudStage, payload, shared_stage

ROWS = 4
JSON = {"Content-Type": "application/json"}
DEFAULTS: Mapping[str, object] = {"require_receipt": None, "max_attempts": None, "timeout_seconds": 5.0}


@dataclass(frozen=True, slots=True)
class Case:
    """What the cloud answers to four rows, numbered from 0, and what becomes of them while it does.

    Rows in neither set are kept. `paused`: uploading stops, and only a hang-up (or a minute) brings a probe.
    """

    name: str
    make_responder: Callable[[Sequence[str]], Responder]  # from the ids of the four rows
    delivered: frozenset[int] = frozenset()
    dead: frozenset[int] = frozenset()
    paused: bool = False
    halved: bool = False
    same_key: bool = False
    upload: Mapping[str, Any] = field(default_factory=dict)
    filler: Mapping[int, str] = field(default_factory=dict)  # what makes a row larger than its neighbours


ALL = frozenset(range(ROWS))


def always(responder: Responder) -> Callable[[Sequence[str]], Responder]:
    """Answer so whatever the ids of the four rows are."""
    return lambda _ids: responder


def refuse_the_third(status: int) -> Callable[[Sequence[str]], Responder]:
    """Refuse every body that holds row number 2."""
    return lambda ids: reject_ids([ids[2]], status)


def too_large(request_bytes_max: int) -> Responder:
    """413 for a body above this size."""
    take, refuse = accept(), answer(413)

    async def respond(exchange: Exchange) -> None:
        await (take if len(exchange.request.body) <= request_bytes_max else refuse)(exchange)

    return respond


def named(ids: Sequence[str], *statuses: int | None, status: int = 207) -> Responder:
    return results(dict(zip(ids, statuses, strict=True)), status=status)


def known_already() -> Responder:
    """Store everything, and say of each row that it was there before."""
    say = results(lambda _: 409)

    async def respond(exchange: Exchange) -> None:
        exchange.store()
        await say(exchange)

    return respond


def store_all_and_say(body: bytes, headers: Mapping[str, str] = JSON, status: int = 200) -> Responder:
    return answer(status, headers, body, store=True)


TAKEN = [
    Case("200", always(accept()), delivered=ALL),
    Case("200 and nothing else", always(answer(200, store=True)), delivered=ALL),
    Case("201 with another document", always(store_all_and_say(b'{"ok":true}', status=201)), delivered=ALL),
    Case("202", always(answer(202, store=True)), delivered=ALL),
    Case("204", always(answer(204, store=True)), delivered=ALL),
    Case("200 in plain text", always(store_all_and_say(b"OK", {"Content-Type": "text/plain"})), delivered=ALL),
    Case("200 with an HTML page", always(html())),
    Case("203 with an HTML page", always(html(203))),
    Case(
        "200 without an echo where a receipt is required", always(accept(echo=False)), upload={"require_receipt": True}
    ),
    Case(
        "200 with an echo where a receipt is required",
        always(accept()),
        delivered=ALL,
        upload={"require_receipt": True},
    ),
    Case(
        "207 that names the rows where a receipt is required",
        lambda ids: named(ids, 201, 201, 201, 201),
        delivered=ALL,
        upload={"require_receipt": True},
    ),
]
ROW_BY_ROW = [
    Case("207, all well", lambda ids: named(ids, 200, 201, 202, 204), delivered=ALL),
    Case("207, all known already", always(known_already()), delivered=ALL),
    Case("200 with results", lambda ids: named(ids, 200, 422, 201, 201, status=200), ALL - {1}, frozenset({1})),
    Case("207, some again later", lambda ids: named(ids, 201, 408, 425, 429), frozenset({0})),
    Case("207, some failed", lambda ids: named(ids, 500, 201, 503, 599), frozenset({1})),
    Case("207, some dead", lambda ids: named(ids, 400, 201, 413, 422), frozenset({1}), frozenset({0, 2, 3})),
    Case("207, one is not named", lambda ids: named(ids, 201, None, 201, 201), ALL - {1}),
    Case("207, none is named", lambda ids: named(ids, None, None, None, None)),
    Case("207 without results", always(answer(207, JSON, b"{}"))),
    Case("207 with broken JSON", always(answer(207, JSON, b'{"results":['))),
]
AGAIN = [
    *(Case(f"{status}", always(answer(status))) for status in (408, 425, 429, 500, 502, 503, 504, 507, 599)),
    Case("no answer", always(black_hole()), same_key=True, upload={"timeout_seconds": 0.2}),
    Case("cut before the answer", always(cut_before_store()), same_key=True),
    Case("stored, and cut before the answer", always(cut_after_store()), same_key=True),
    Case(
        "an answer that breaks off", always(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nstored")), same_key=True
    ),
    Case("an answer that is no HTTP", always(raw(b"SSH-2.0-OpenSSH_9.2\r\n")), same_key=True),
    Case("409, in progress", always(answer(409)), same_key=True),
]
BLAMED = [
    *(
        Case(f"{status}, one bad row", refuse_the_third(status), ALL - {2}, frozenset({2}), halved=True)
        for status in (400, 418, 422, 451)
    ),
    Case("400, all bad", always(answer(400)), dead=ALL, halved=True),
    Case("413 until small enough", always(too_large(700)), delivered=ALL, halved=True),
    Case(
        "413, one row too large", always(too_large(900)), ALL - {1}, frozenset({1}), halved=True, filler={1: "x" * 2000}
    ),
]
REFUSED = [
    *(Case(f"{status}", always(answer(status)), paused=True) for status in (401, 402, 403, 404, 405, 407, 410, 415)),
    *(
        Case(f"{status}", always(redirect("http://127.0.0.1:9/", status)), paused=True)
        for status in (301, 302, 303, 307, 308)
    ),
    Case("304", always(answer(304)), paused=True),
]
POISON = [
    Case("500 for one row, while others pass", refuse_the_third(500), ALL - {2}, halved=True),
    Case(
        "503 for one row by name, a limited number of times",
        lambda ids: named(ids, 201, 201, 503, 201),
        ALL - {2},
        frozenset({2}),
        upload={"max_attempts": 3},
    ),
]
CASES = [*TAKEN, *ROW_BY_ROW, *AGAIN, *BLAMED, *REFUSED, *POISON]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudStage]:
    upload = {"linger_ms": 30, "retry_max_seconds": 0.05}
    with shared_stage(tmp_path_factory.mktemp("verdicts"), upload) as stage:
        yield stage


def requests_about(stage: CloudStage, ids: Sequence[str]) -> list[Request]:
    wanted = set(ids)
    return [request for request in stage.cloud.requests if wanted.intersection(request.ids)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_on(stage: CloudStage, case: Case) -> None:
    ids = [f"{CASES.index(case):02}-{number}" for number in range(ROWS)]
    stage.reconfigure(**{**DEFAULTS, **case.upload})
    stage.cloud.always(case.make_responder(ids))
    before = stage.messages
    stage.publish(payload(name, case.filler.get(number, "")) for number, name in enumerate(ids))
    wait_for_the_verdict(stage, case, before, ids)
    now = stage.messages
    assert now["delivered"] - before["delivered"] == len(case.delivered)
    assert now["dead"] - before["dead"] == len(case.dead)
    requests = requests_about(stage, ids)
    assert any(len(request.ids) < len(requests[0].ids) for request in requests) >= case.halved
    assert not case.same_key or len({request.key for request in requests[:WHOLE_FAILURES]}) == 1
    take_the_rest(stage, before, ids)
    assert {number for number, one in enumerate(ids) if one not in stage.cloud.stored} == case.dead
    assert not stage.cloud.altered


def wait_for_the_verdict(stage: CloudStage, case: Case, before: Mapping[str, int], ids: Sequence[str]) -> None:
    """Wait for what must happen, and then for another request if there must be one: by then the former was judged."""

    def settled() -> bool:
        counters = stage.messages
        return all(counters[key] - before[key] >= len(getattr(case, key)) for key in ("delivered", "dead"))

    wait_until(settled, what=f"{len(case.delivered)} delivered, {len(case.dead)} dead")
    if case.paused:
        wait_until(lambda: stage.cloud_state == "paused", what="paused")
        assert len(requests_about(stage, ids)) == 1
    elif case.delivered | case.dead != ALL:
        seen = len(requests_about(stage, ids))
        wait_until(lambda: len(requests_about(stage, ids)) >= seen + 2, what="two more tries")


def take_the_rest(stage: CloudStage, before: Mapping[str, int], ids: Sequence[str]) -> None:
    """Accept everything again, until all four rows are delivered or dead."""
    stage.cloud.always()
    stage.hang_up()

    def settled() -> bool:
        counters = stage.messages
        return counters["delivered"] + counters["dead"] - before["delivered"] - before["dead"] >= ROWS

    wait_until(settled, what="the others delivered as well")


def test_at_the_end_the_queue_agrees(stage: CloudStage) -> None:
    """Runs after the table: what the counters said is what is in the file."""
    counters, dead = stage.messages, stage.status["queue"]["dead"]
    stage.stop()
    rows = dict(stage.select("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status"))
    assert rows.get(5, 0) == counters["delivered"]
    assert rows.get(9, 0) == counters["dead"] >= dead
    assert rows.keys() <= {5, 9}
