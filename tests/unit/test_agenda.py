"""What a lane posts next: order, the search for bad rows, rows set aside (promise 30; I2, I5, I6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import agenda as agenda_module
from bridge.agenda import Agenda, Effect, Settlement
from bridge.batch import Batch, Limits
from bridge.message import Row, head, head_middle, tail
from bridge.verdict import Reply, Verdict, judge

MIDDLE = head_middle("edge/press-4", "edge/predictions/press-4")
LIMITS = Limits(1024, 10**6)


def row(number: int) -> Row:
    return Row(number, head(f"id-{number}", MIDDLE, "2026-01-01T00:00:00Z") + tail(b"{}", is_json=True))


Cloud = Callable[[Batch], Reply]


class Walk:
    """An agenda walked to its end against a cloud that is a function, with time that passes only in waits."""

    def __init__(self, count: int, cloud: Cloud, *, max_attempts: int = 0, limits: Limits = LIMITS) -> None:
        self.agenda = Agenda(limits, max_attempts)
        self.agenda.add(row(number) for number in range(count))
        self.cloud = cloud
        self.limits = limits
        self.now = 0.0
        self.posts: list[Batch] = []
        self.acked: list[int] = []
        self.dead: dict[int, tuple[str, int | None, int]] = {}
        self.failures = 0

    def step(self) -> Settlement:
        self.now += self.agenda.wait_seconds(self.now) or 0.0
        batch = self.agenda.take_next(self.now, self.limits, small=self.failures >= 5)
        self.posts.append(batch)
        verdict = judge(self.cloud(batch), batch, require_receipt=False, now=0)
        return self.settle(verdict)

    def settle(self, verdict: Verdict) -> Settlement:
        settled = self.agenda.settle(verdict, self.now, lambda failures: float(failures + 1))
        self.acked += settled.acked
        self.dead |= {one.row_id: (one.reason, one.status_code, one.attempts) for one in settled.dead}
        if settled.effect in {Effect.PASSED, Effect.ANSWERED}:
            self.failures = 0
        elif settled.effect is Effect.FAILED:
            self.failures += 1
            self.now += 5
        return settled

    def to_the_end(self, steps_max: int = 5000) -> Walk:
        while self.agenda.row_ids and len(self.posts) < steps_max:
            self.step()
        return self


def refusing(bad: Collection[int], status_code: int = 400) -> Cloud:
    return lambda batch: Reply(status_code if set(bad) & set(batch.row_ids) else 200)


# ---- 4xx: halving -------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data(), st.integers(2, 1024))
def test_one_bad_row_is_alone_after_at_most_2_log2_b_plus_1_requests(data: st.DataObject, count: int) -> None:
    bad = data.draw(st.integers(0, count - 1))
    walk = Walk(count, refusing([bad])).to_the_end()
    assert walk.dead.keys() == {bad}
    assert walk.acked == [number for number in range(count) if number != bad]
    assert len(walk.posts) <= 2 * math.log2(count) + 1


@pytest.mark.parametrize("count", [2, 3, 5, 7, 24, 100, 255])
def test_the_bound_holds_for_every_place_of_the_bad_row(count: int) -> None:
    most = max(len(Walk(count, refusing([bad])).to_the_end().posts) for bad in range(count))
    assert most <= 2 * math.log2(count) + 1


@given(st.integers(1, 60).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1)))))
def test_any_set_of_bad_rows_dies_exactly_and_all_others_leave_in_order(count_bad: tuple[int, set[int]]) -> None:
    count, bad = count_bad
    walk = Walk(count, refusing(bad)).to_the_end()
    assert walk.dead.keys() == bad
    assert walk.acked == [number for number in range(count) if number not in bad]


def test_a_row_dies_only_by_an_answer_to_itself_alone() -> None:
    walk = Walk(64, refusing([63], 422)).to_the_end()
    assert [batch.row_ids for batch in walk.posts if 63 in batch.row_ids] == [tuple(range(64)), (63,)]
    assert walk.dead == {63: ("refused", 422, 2)}


def test_an_outage_in_the_middle_of_the_search_changes_nothing_about_its_result() -> None:
    replies = iter([None, 503, None, 429] * 100)
    down = {3, 5, 6, 9}
    walk = Walk(32, lambda _: Reply(200))

    def cloud(batch: Batch) -> Reply:
        return Reply(next(replies)) if len(walk.posts) in down else refusing([20])(batch)

    walk.cloud = cloud
    walk.to_the_end()
    assert walk.dead.keys() == {20}
    assert walk.acked == [number for number in range(32) if number != 20]


# ---- 413 ----------------------------------------------------------------------------------------------------------


def test_a_413_halves_remembers_the_size_and_posts_both_halves() -> None:
    walk = Walk(8, lambda batch: Reply(413 if len(batch.rows) > 4 else 200))
    first = walk.step()
    assert first.refused_body_bytes == walk.posts[0].body_bytes
    walk.to_the_end()
    assert [batch.row_ids for batch in walk.posts[1:]] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert walk.acked == list(range(8))


def test_a_single_row_that_is_too_large_dies() -> None:
    walk = Walk(4, refusing([2], 413)).to_the_end()
    assert walk.dead == {2: ("too_large", 413, 3)}
    assert walk.acked == [0, 1, 3]


# ---- passing failures ---------------------------------------------------------------------------------------------

PASSING = [Reply(None, error="cut"), Reply(503), Reply(429), Reply(409), Reply(200, "text/html", body=b"<html>")]


@pytest.mark.parametrize("reply", PASSING)
def test_what_is_tried_again_goes_before_new_rows_in_the_same_company(reply: Reply) -> None:
    walk = Walk(3, lambda _: reply)
    walk.step()
    walk.agenda.add([row(9)])
    walk.step()
    assert walk.posts[0].key == walk.posts[1].key


def test_a_batch_that_may_have_been_stored_is_not_cut_by_the_probe_of_an_outage() -> None:
    walk = Walk(8, lambda _: Reply(None, error="no whole answer"))
    for _ in range(agenda_module.WHOLE_FAILURES):
        walk.step()
    assert {batch.key for batch in walk.posts} == {walk.posts[0].key}
    walk.step()
    assert walk.posts[-1].row_ids == (0,)


def test_a_batch_in_progress_is_repeated_unchanged_for_as_long_as_it_takes() -> None:
    walk = Walk(8, lambda _: Reply(409))
    for _ in range(50):
        assert walk.step().effect is Effect.ANSWERED
    assert {batch.key for batch in walk.posts} == {walk.posts[0].key}


def test_the_probe_of_an_outage_without_a_doubt_is_the_first_row() -> None:
    walk = Walk(8, lambda _: Reply(None, error="refused", sent=False))
    for _ in range(6):
        walk.step()
    assert [len(batch.rows) for batch in walk.posts] == [8, 8, 8, 8, 8, 1]


def test_a_pause_is_probed_with_one_row_even_if_the_batch_is_in_doubt() -> None:
    replies = iter([Reply(None, error="cut"), Reply(401), Reply(200), Reply(200)])
    walk = Walk(8, lambda _: next(replies))
    walk.step()
    assert walk.step().effect is Effect.REFUSED
    walk.failures = 5  # what a small probe is to the agenda
    walk.step()
    assert walk.posts[-1].row_ids == (0,)
    walk.to_the_end()
    assert walk.acked == list(range(8))


# ---- 5xx: suspicion -----------------------------------------------------------------------------------------------


def poisoned(bad: Collection[int], reply: Reply = Reply(500)) -> Cloud:  # noqa: B008 - frozen
    return lambda batch: reply if set(bad) & set(batch.row_ids) else Reply(200)


@settings(max_examples=50)
@given(st.integers(2, 200).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))))
def test_a_row_that_the_server_cannot_digest_does_not_hold_up_the_others(count_bad: tuple[int, int]) -> None:
    count, bad = count_bad
    walk = Walk(count, poisoned([bad]))
    while len(walk.acked) < count - 1:
        assert len(walk.posts) < 35 + 8 * math.log2(count)
        walk.step()
    assert walk.agenda.row_ids == (bad,)
    assert not walk.dead
    overtakers = {bad + 1}
    in_order = [number for number in walk.acked if number not in overtakers]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize("bad", [{0, 1, 2}, {5, 6}, {0, 31}, {3, 9, 10, 11, 20}])
def test_several_bad_rows_are_all_set_aside_while_there_are_others(bad: set[int]) -> None:
    walk = Walk(32, poisoned(bad))
    for number in range(400):
        walk.agenda.add([row(1000 + number)] if walk.agenda.wants_rows(walk.now) else [])
        walk.step()
    assert set(range(32)) - set(walk.acked) == bad
    assert len(set(walk.acked)) > 32


def test_a_server_that_dies_of_a_row_without_an_answer_is_searched_too() -> None:
    walk = Walk(16, poisoned([11], Reply(None, error="closed")))
    while len(walk.acked) < 15:
        assert len(walk.posts) < 60
        walk.step()
    assert walk.agenda.row_ids == (11,)


def test_a_body_too_large_for_the_link_is_halved_and_the_size_remembered() -> None:
    walk = Walk(64, lambda batch: Reply(200) if len(batch.rows) < 20 else Reply(None, error="timed out"))
    remembered = [size for size in (walk.step().refused_body_bytes for _ in range(30) if walk.agenda.row_ids) if size]
    assert remembered
    assert walk.acked == list(range(64))


def test_a_server_outage_alone_never_puts_a_row_aside_or_to_death() -> None:
    walk = Walk(8, lambda _: Reply(500), max_attempts=3)
    for _ in range(200):
        assert walk.step().effect is Effect.FAILED
    assert not walk.dead
    walk.cloud = lambda _: Reply(200)
    walk.to_the_end()
    assert sorted(walk.acked) == list(range(8))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(1, 20))
def test_an_outage_of_5xx_shorter_than_two_minutes_never_changes_the_order(
    count: int, batch_messages: int, first: int, failures: int
) -> None:
    walk = Walk(count, lambda _: Reply(200), limits=Limits(batch_messages, 10**6))
    down = range(first, first + failures)
    walk.cloud = lambda _: Reply(500 if len(walk.posts) - 1 in down else 200)
    walk.to_the_end()
    assert walk.acked == list(range(count))


def test_max_attempts_ends_a_row_that_fails_while_others_pass() -> None:
    walk = Walk(8, poisoned([3]), max_attempts=4)
    while 3 in walk.agenda.row_ids:
        assert len(walk.posts) < 100
        walk.agenda.add([row(100 + len(walk.posts))])
        walk.now += 1
        walk.step()
    reason, status_code, attempts = walk.dead.pop(3)
    assert (reason, status_code) == ("max_attempts", 500)
    assert attempts == sum(3 in batch.row_ids for batch in walk.posts)
    assert not walk.dead


# ---- row by row ---------------------------------------------------------------------------------------------------


def naming(status_codes: dict[int, int]) -> Cloud:
    def answer(batch: Batch) -> Reply:
        listed = ",".join(f'{{"id":"id-{one}","status":{status_codes.get(one, 200)}}}' for one in batch.row_ids)
        return Reply(207, "application/json", body=f'{{"results":[{listed}]}}'.encode())

    return answer


def test_rows_told_later_go_before_new_rows_and_after_their_own_delay() -> None:
    walk = Walk(4, naming({1: 503, 2: 429}))
    settled = walk.step()
    assert settled == Settlement(Effect.PASSED, acked=(0, 3), reason=settled.reason)
    walk.agenda.add([row(9)])
    assert walk.agenda.wait_seconds(walk.now) == 1
    walk.cloud = naming({})
    walk.to_the_end()
    assert walk.acked == [0, 3, 1, 2, 9]


def test_rows_always_told_later_are_set_aside_and_tried_again_at_their_own_pace() -> None:
    walk = Walk(4, naming({1: 503}))
    for _ in range(agenda_module.ASIDE_FAILURES):
        walk.step()
    walk.agenda.add([row(9)])
    assert walk.agenda.wait_seconds(walk.now) == 0
    walk.step()
    assert walk.acked == [0, 2, 3, 9]
    walk.cloud = naming({})
    walk.to_the_end()
    assert walk.acked == [0, 2, 3, 9, 1]


def test_max_attempts_counts_answers_that_name_the_row() -> None:
    walk = Walk(4, naming({1: 503}), max_attempts=3).to_the_end()
    assert walk.dead == {1: ("max_attempts", 503, 3)}
    assert walk.acked == [0, 2, 3]


def test_at_most_a_batch_of_rows_is_aside() -> None:
    limits = Limits(4, 10**6)
    walk = Walk(0, naming(dict.fromkeys(range(100), 503)), limits=limits)
    for number in range(8):
        walk.agenda.add([row(number)])
    for _ in range(200):
        walk.step()
    assert len(walk.agenda.row_ids) == 8
    assert {batch.row_ids[0] for batch in walk.posts} == {0, 1, 2, 3, 4}


def test_retry_after_of_partial_results_holds_for_the_destination() -> None:
    walk = Walk(
        2, lambda _: Reply(207, "application/json", retry_after="7", body=b'{"results":[{"id":"id-0","status":200}]}')
    )
    settled = walk.step()
    assert (settled.effect, settled.floor_seconds, settled.acked) == (Effect.FAILED, 7, (0,))


# ---- in all -------------------------------------------------------------------------------------------------------

weathers = st.sampled_from([200, 200, 200, None, 500, 503, 429, 409, 401, 207])


@settings(max_examples=100)
@given(
    st.integers(1, 40),
    st.sets(st.integers(0, 39), max_size=3),
    st.sets(st.integers(0, 39), max_size=3),
    st.lists(weathers, max_size=60),
)
def test_every_row_ends_delivered_or_dead_exactly_when_an_answer_covered_it(
    count: int, bad: set[int], slow: set[int], weather: list[int | None]
) -> None:
    coming, covered, blamed = iter(weather), set[int](), set[int]()

    def cloud(batch: Batch) -> Reply:
        status_code = next(coming, 200)
        if status_code == 200 and set(batch.row_ids) & bad:
            status_code = 400
            blamed.update(batch.row_ids if len(batch.rows) == 1 else ())
        elif status_code == 200:
            covered.update(batch.row_ids)
        elif status_code == 207:
            covered.update(set(batch.row_ids) - slow)
            return naming(dict.fromkeys(slow, 503))(batch)
        return Reply(status_code, error=None if status_code else "cut")

    walk = Walk(count, cloud)
    while walk.agenda.row_ids:
        assert len(walk.posts) < 1000
        settled = walk.step()
        assert set(settled.acked) <= covered
        held = set(walk.agenda.row_ids)
        assert held.isdisjoint(walk.acked)
        assert held | set(walk.acked) | walk.dead.keys() == set(range(count))
    assert sorted([*walk.acked, *walk.dead]) == list(range(count))
    assert walk.dead.keys() == blamed
