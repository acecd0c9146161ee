"""The forwarder against an in-memory outbox and a scripted cloud, with time turned off.

Promises 26 to 31 and 35, as far as they need no network; I2 (acked only when covered), I5 (bounded), I6 (order).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.backoff import PROBE_SECONDS
from bridge.batch import Batch
from bridge.config.settings import UploadSettings
from bridge.errors import DiskFullError
from bridge.events import CloudAnswered, CloudFailed, CloudPaused, Delivered, Event
from bridge.forwarder import DISK_RETRY_SECONDS, Forwarder
from bridge.message import CLOCK_SET_SINCE, DeadRow, Row, head, head_middle, tail
from bridge.verdict import Reply

MIDDLE = head_middle("edge/press-4", "edge/predictions/press-4")


def row(number: int) -> Row:
    return Row(number, head(f"id-{number}", MIDDLE, "2026-01-01T00:00:00Z") + tail(b"{}", is_json=True))


class MemoryOutbox:
    """The disk queue's twin in memory, by the same contract."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.waiting = list(rows)
        self.taken: dict[int, Row] = {}
        self.acked: list[int] = []
        self.unsent: list[int] = []
        self.dead: dict[int, DeadRow] = {}
        self.takes: list[tuple[int, int, int]] = []
        self.faults: list[Exception] = []
        self.waited = 1e-9
        self._ready = asyncio.Event()
        self._ready.set()

    @property
    def is_settled(self) -> bool:
        return not self.waiting and not self.taken

    def put(self, rows: Iterable[Row]) -> None:
        self.waiting += rows
        self._ready.set()

    async def take(self, messages_max: int, bytes_max: int, *, batch: int, partly: bool) -> tuple[Row, ...]:
        self._ready.clear()
        await asyncio.sleep(0)
        rows: list[Row] = []
        ready = min(len(self.waiting), messages_max)
        wanted = ready - ready % batch if ready >= batch or not partly else ready
        while self.waiting and len(rows) < wanted:
            if rows and sum(len(one.data) for one in (*rows, self.waiting[0])) > bytes_max:
                break
            rows.append(self.waiting.pop(0))
        if rows or self.waiting:
            self._ready.set()
        self.taken |= {one.row_id: one for one in rows}
        self.takes.append((messages_max, bytes_max, len(rows)))
        return tuple(rows)

    def waiting_seconds(self) -> float:
        return self.waited if self._ready.is_set() else 0.0

    async def ready(self) -> None:
        await self._ready.wait()

    async def ack(self, row_ids: Sequence[int]) -> None:
        await self._write()
        for row_id in row_ids:
            del self.taken[row_id]
        self.acked += row_ids

    async def reject(self, dead: Sequence[DeadRow]) -> None:
        await self._write()
        for one in dead:
            del self.taken[one.row_id]
            self.dead[one.row_id] = one

    async def release(self, row_ids: Sequence[int], *, sent: bool = True) -> None:
        self.unsent += [] if sent else row_ids
        self.waiting = sorted([*self.waiting, *(self.taken.pop(row_id) for row_id in row_ids)])
        self._ready.set()

    async def _write(self) -> None:
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)


Answer = Callable[[Batch], Reply | Awaitable[Reply]]


class ScriptedCloud:
    """An uploader whose answers are a function; it writes down what was posted, and when."""

    def __init__(self, answer: Answer, clock: Callable[[], float]) -> None:
        self.answer = answer
        self.posts: list[Batch] = []
        self.posted_at: list[float] = []
        self.prepared: list[Batch] = []
        self.under_way = self.under_way_most = 0
        self.token_changes: list[bool] = []
        self._clock = clock

    async def prepare(self, batch: Batch) -> str:
        self.prepared.append(batch)
        return batch.key

    async def post(self, batch: Batch, prepared: str | None = None) -> Reply:
        assert prepared in {None, batch.key}
        self.posts.append(batch)
        self.posted_at.append(self._clock())
        self.under_way += 1
        self.under_way_most = max(self.under_way_most, self.under_way)
        try:
            await asyncio.sleep(0)
            reply = self.answer(batch)
            return reply if isinstance(reply, Reply) else await reply
        finally:
            self.under_way -= 1

    async def token_changed(self) -> bool:
        return self.token_changes.pop(0) if self.token_changes else False


class Scene:
    """A forwarder with its twins, in a time that passes only when somebody sleeps."""

    def __init__(self, count: int, answer: Answer, *, random: float = 0.5, **upload: Any) -> None:
        self.now, self.started_at = 0.0, 1_790_000_000.0
        self.slept: list[float] = []
        self.events: list[Event] = []
        self.outbox = MemoryOutbox(row(number) for number in range(count))
        self.cloud = ScriptedCloud(answer, lambda: self.now)
        self.settings = UploadSettings(url="http://127.0.0.1:9/ingest", **upload)
        self.forwarder = Forwarder(
            self.outbox,
            self.cloud,
            self.settings,
            self.events.append,
            clock=lambda: self.now,
            wall_clock=lambda: self.started_at + self.now,
            sleep=self._sleep,
            random=lambda: random,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)  # several lanes may sleep at the same time

    @asynccontextmanager
    async def running(self, grace_seconds: float = 5) -> AsyncIterator[None]:
        async with asyncio.timeout(20):
            running = asyncio.create_task(self.forwarder.run())
            yield
            await self.forwarder.stop(grace_seconds)
            await running

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - many conditions, no time passes
            await asyncio.sleep(0)

    async def settle_all(self) -> None:
        async with self.running():
            await self.until(lambda: self.outbox.is_settled)

    def seen(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def ok(_: Batch) -> Reply:
    return Reply(204, elapsed_seconds=0.25)


def script(*replies: Reply) -> Answer:
    coming = iter(replies)
    return lambda batch: next(coming, ok(batch))


# ---- the way of a row ---------------------------------------------------------------------------------------------


async def test_rows_are_delivered_in_order_and_told_in_groups() -> None:
    scene = Scene(25, ok, batch_messages=10)
    await scene.settle_all()
    assert scene.outbox.acked == list(range(25))
    assert scene.events == [CloudAnswered(), Delivered(10, 0.25), Delivered(10, 0.25), Delivered(5, 0.25)]


async def test_a_dead_row_is_told_with_its_reason() -> None:
    scene = Scene(4, lambda batch: Reply(422 if 2 in batch.row_ids else 200))
    await scene.settle_all()
    assert scene.outbox.dead == {2: DeadRow(2, "refused", 422, 2, "")}  # among four, then alone


async def test_the_next_batch_is_taken_and_prepared_while_one_is_out() -> None:
    answered = asyncio.Event()

    async def slow(_: Batch) -> Reply:
        await answered.wait()
        return Reply(200)

    scene = Scene(50, slow, batch_messages=10)
    async with scene.running():
        await scene.until(lambda: len(scene.cloud.prepared) == 1)
        assert [one.row_ids[0] for one in scene.cloud.posts] == [0]
        assert scene.cloud.prepared[0].row_ids == tuple(range(10, 20))
        assert len(scene.outbox.taken) == 20  # one out, one ahead, no more (I5)
        answered.set()
        await scene.until(lambda: scene.outbox.is_settled)
    assert scene.outbox.acked == list(range(50))
    assert len({one.key for one in scene.cloud.prepared}) == len(scene.cloud.prepared)


async def test_an_answer_does_not_wait_for_the_rows_that_were_asked_for_meanwhile() -> None:
    scene = Scene(200, ok, batch_messages=10)
    take, may_come = scene.outbox.take, asyncio.Event()

    async def slow_disk(messages_max: int, bytes_max: int, **how: Any) -> tuple[Row, ...]:
        if len(scene.outbox.takes) == 2:
            await may_come.wait()
        return await take(messages_max, bytes_max, **how)

    scene.outbox.take = slow_disk  # type: ignore[method-assign]
    async with scene.running():
        await scene.until(lambda: len(scene.outbox.acked) == 20)  # all that came before
        assert len(scene.cloud.posts) == 2
        may_come.set()
        await scene.until(lambda: scene.outbox.is_settled)
    assert scene.outbox.acked == list(range(200))


async def test_an_answer_does_not_wait_for_a_full_disk_that_gives_no_rows() -> None:
    scene = Scene(60, ok, batch_messages=10)
    take, refused_at = scene.outbox.take, list[int]()

    async def full_disk(messages_max: int, bytes_max: int, **how: Any) -> tuple[Row, ...]:
        if len(scene.outbox.takes) == 1 and not refused_at:
            refused_at.append(len(scene.outbox.acked))
            raise DiskFullError("full")
        return await take(messages_max, bytes_max, **how)

    scene.outbox.take = full_disk  # type: ignore[method-assign]
    async with scene.running():
        await scene.until(lambda: len(scene.outbox.acked) == 10)
        assert (refused_at, scene.slept) == ([0], [])
        await scene.until(lambda: scene.outbox.is_settled)
    assert scene.outbox.acked == list(range(60))
    assert scene.slept[0] == DISK_RETRY_SECONDS


async def test_rows_are_asked_for_before_the_last_ones_are_out_but_not_in_an_outage() -> None:
    held: list[int] = []

    def answer(_: Batch) -> Reply:
        held.append(len(scene.outbox.taken))
        return Reply(503 if len(held) > 15 else 200)

    scene = Scene(300, answer, batch_messages=10)
    async with scene.running():
        await scene.until(lambda: len(scene.cloud.posts) > 40)
    assert min(held[3:14]) >= 20, "the next batch is there before the answer"
    assert max(held) <= 10 + 80 + 80, "one out, eight in line, eight being written down (I5)"
    assert len(set(held[17:])) == 1, "while the cloud is away nothing more is taken"


async def test_rows_that_come_after_the_stop_are_released_too() -> None:
    scene = Scene(50, ok, batch_messages=10)
    take, asked, may_come = scene.outbox.take, asyncio.Event(), asyncio.Event()

    async def slow_disk(messages_max: int, bytes_max: int, **how: Any) -> tuple[Row, ...]:
        if scene.outbox.takes:
            asked.set()
            await may_come.wait()
        return await take(messages_max, bytes_max, **how)

    scene.outbox.take = slow_disk  # type: ignore[method-assign]
    async with scene.running():
        await asked.wait()
        scene.cloud.answer = lambda _: Reply(503)
        stopping = asyncio.create_task(scene.forwarder.stop(5))
        await scene.until(lambda: scene.outbox.acked == list(range(10)))
        may_come.set()
        await stopping
    assert not scene.outbox.taken
    assert [one.row_id for one in scene.outbox.waiting] == list(range(10, 50))


async def test_several_batches_are_taken_at_once_only_while_the_cloud_takes_them() -> None:
    scene = Scene(100, lambda batch: Reply(503 if batch.rows[0].row_id >= 50 else 200), batch_messages=10)
    async with scene.running():
        await scene.until(lambda: len(scene.cloud.posts) > 8)
    assert scene.outbox.takes[0][0] == 10
    assert {messages_max for messages_max, _, taken in scene.outbox.takes if taken} == {10, 40}


async def test_behind_whole_batches_no_smaller_one_leaves_while_more_may_come() -> None:
    def answer(batch: Batch) -> Reply:
        if len(scene.cloud.posts) <= 20:  # seven come while a post is out
            scene.outbox.put(map(row, range(25 + 7 * came[0], 32 + 7 * came[0])))
            came[0] += 1
        return ok(batch)

    came = [0]
    scene = Scene(25, answer, batch_messages=10)
    await scene.settle_all()
    assert scene.outbox.acked == list(range(25 + 20 * 7))
    sizes = [len(one.rows) for one in scene.cloud.posts]
    assert sizes[:3] == [10, 10, 10], "the five that were left over have grown to ten"
    assert min(sizes[:-1]) >= 7, "what came while a post was out leaves together"


async def test_whole_batches_of_large_rows_are_those_that_fit_into_a_body() -> None:
    scene = Scene(0, ok, batch_messages=1000, batch_bytes=10_000)
    scene.outbox.put(map(row, range(95)))
    await scene.settle_all()
    fits = max(len(one.rows) for one in scene.cloud.posts)
    assert 10 < fits < 1000
    assert {taken % fits for _, _, taken in scene.outbox.takes[1:-2]} == {0}
    assert scene.outbox.acked == list(range(95))


async def test_a_batch_lingers_from_when_its_first_row_came_be_that_during_the_last_post() -> None:
    scene = Scene(0, ok, batch_messages=10, linger_ms=20)
    async with scene.running():
        for waited, lingers in ((1e-9, [0.02]), (0.015, [0.005]), (0.02, []), (5.0, [])):
            await scene.until(lambda: bool(scene.outbox.takes) and scene.outbox.takes[-1][2] == 0)
            scene.slept.clear()
            scene.outbox.waited = waited
            scene.outbox.put([row(len(scene.outbox.acked))])
            await scene.until(lambda: scene.outbox.is_settled)
            assert [*filter(None, scene.slept)] == [pytest.approx(seconds) for seconds in lingers]


async def turns(number: int) -> None:
    """Let everything go as far as it can without time."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_the_linger_begins_with_the_first_row_and_not_when_it_is_woken_by_something_else() -> None:
    scene = Scene(0, ok, batch_messages=10, linger_ms=20)
    async with scene.running():
        await turns(100)
        scene.slept.clear()
        takes = len(scene.outbox.takes)
        scene.forwarder.reconfigure(scene.settings)
        await turns(100)
        assert [*filter(None, scene.slept)] == []
        assert len(scene.outbox.takes) == takes, "nothing is there to be taken"
        scene.outbox.put([row(0), row(1)])
        await scene.until(lambda: scene.outbox.is_settled)
    assert [len(batch.rows) for batch in scene.cloud.posts] == [2]
    assert [*filter(None, scene.slept)] == [pytest.approx(0.02)]


async def test_a_drained_queue_lingers_and_a_full_one_does_not() -> None:
    scene = Scene(30, ok, batch_messages=10, linger_ms=20)
    async with scene.running():
        await scene.until(lambda: len(scene.outbox.acked) == 30)
        assert scene.slept == []
        await scene.until(lambda: scene.outbox.takes[-1][2] == 0)
        scene.outbox.put([row(100)])
        await scene.until(lambda: scene.outbox.is_settled)
    assert scene.slept[-1] == pytest.approx(0.02)


async def test_what_is_taken_at_once_fits_into_one_batch() -> None:
    scene = Scene(40, ok, batch_messages=1000, batch_bytes=2048)
    await scene.settle_all()
    assert all(one.body_bytes <= 2048 for one in scene.cloud.posts)
    assert sum(len(one.rows) == 1 for one in scene.cloud.posts) <= 1


async def test_a_refused_size_holds_for_the_batches_to_come() -> None:
    sizes_max = 5 * (len(row(10).data) + 1) + 1
    scene = Scene(60, lambda batch: Reply(413 if batch.body_bytes > sizes_max else 200), batch_messages=20)
    await scene.settle_all()
    assert scene.outbox.acked == list(range(60))
    assert sum(one.body_bytes > sizes_max for one in scene.cloud.posts) <= 6
    scene.forwarder.reconfigure(scene.settings)
    assert scene.forwarder.destination.limits.body_bytes == scene.settings.batch_bytes


# ---- failing and coming back --------------------------------------------------------------------------------------


async def test_a_lost_answer_is_followed_by_the_same_rows_under_the_same_key() -> None:
    scene = Scene(5, script(Reply(None, error="closed"), Reply(503), Reply(None, error="closed")))
    await scene.settle_all()
    assert {one.key for one in scene.cloud.posts} == {scene.cloud.posts[0].key}
    assert len(scene.cloud.posts) == 4


async def test_one_row_probes_a_long_outage_and_draining_starts_with_its_answer() -> None:
    down = [Reply(None, error="connection refused", sent=False)] * 30
    scene = Scene(100, script(*down), batch_messages=50)
    await scene.settle_all()
    assert scene.outbox.acked == list(range(100))
    probes, after = scene.cloud.posts[5:31], scene.cloud.posts[31:]
    assert {one.row_ids for one in probes} == {(0,)}
    assert [len(one.rows) for one in after] == [49, 50]
    assert scene.cloud.posted_at[31] == scene.cloud.posted_at[30]
    assert len(scene.seen(CloudFailed)) == 30
    assert len(scene.seen(CloudAnswered)) == 1


async def test_an_hour_of_503_is_asked_at_the_pace_of_the_backoff() -> None:
    scene = Scene(10, lambda _: Reply(503), random=0.999)
    async with scene.running():
        await scene.until(lambda: scene.now >= 3600)
        assert len(scene.cloud.posts) <= 8 + 3600 / 59
        assert len(scene.outbox.taken) == 10
    assert scene.outbox.acked == []
    assert not scene.outbox.dead
    assert sorted(scene.outbox.waiting) == [row(number) for number in range(10)]


async def test_retry_after_is_a_floor_for_every_lane() -> None:
    scene = Scene(90, script(Reply(429, retry_after="30")), concurrency=3, batch_messages=10)
    await scene.settle_all()
    before = [at for at in scene.cloud.posted_at if at < 30]
    assert len(before) <= 3  # what the lanes had under way
    assert scene.seen(CloudFailed)[0].throttled
    assert scene.seen(CloudFailed)[0].retry_seconds >= 30
    assert sorted(scene.outbox.acked) == list(range(90))


async def test_one_lane_probes_while_the_others_wait() -> None:
    scene = Scene(40, lambda _: Reply(502), concurrency=4, batch_messages=10)
    async with scene.running():
        await scene.until(lambda: len(scene.cloud.posts) >= 4)
        await scene.until(lambda: scene.cloud.under_way == 0)
        scene.cloud.under_way_most = 0
        await scene.until(lambda: len(scene.cloud.posts) >= 20)
        assert scene.cloud.under_way_most == 1
        scene.cloud.answer = ok
        await scene.until(lambda: scene.outbox.is_settled)
    assert sorted(scene.outbox.acked) == list(range(40))


async def test_lanes_post_side_by_side() -> None:
    scene = Scene(80, ok, concurrency=4, batch_messages=10)
    await scene.settle_all()
    assert scene.cloud.under_way_most == 4


# ---- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status_code", "hours"), [(401, 4), (302, 1), (403, 1), (404, 1), (405, 1), (407, 1), (410, 1)]
)
async def test_hours_of_refusals_loses_nothing_kills_nothing_and_alarms_once(status_code: int, hours: int) -> None:
    scene = Scene(50, lambda _: Reply(status_code), batch_messages=20)
    async with scene.running():
        await scene.until(lambda: scene.now >= hours * 3600)
        posts = len(scene.cloud.posts)
        assert posts <= 2 + hours * 3600 / PROBE_SECONDS
        assert {len(one.rows) for one in scene.cloud.posts[1:]} == {1}
        assert not scene.outbox.acked
        scene.cloud.answer = ok
        await scene.until(lambda: scene.outbox.is_settled)
    assert scene.outbox.acked == list(range(50))
    assert not scene.outbox.dead
    assert len(scene.seen(CloudPaused)) == 1
    assert len(scene.seen(CloudAnswered)) == 1


@pytest.mark.parametrize("before", [Reply(401), Reply(None, error="connection refused", sent=False)])
async def test_a_cloud_that_refuses_every_row_is_neither_paused_nor_away(before: Reply) -> None:
    replies = iter([before])
    scene = Scene(8, lambda _: next(replies, Reply(422)))
    await scene.settle_all()
    assert len(scene.outbox.dead) == 8
    assert [type(event) for event in scene.events if not isinstance(event, Delivered)][-1] is CloudAnswered
    assert len(scene.seen(CloudAnswered)) == 1


async def test_probe_now_ends_the_wait_of_a_pause() -> None:
    scene = Scene(5, script(Reply(401)))
    async with scene.running():
        await scene.until(lambda: bool(scene.seen(CloudPaused)))
        scene.forwarder.probe_now()
        await scene.until(lambda: scene.outbox.is_settled)
    assert scene.now < PROBE_SECONDS / 2


async def test_a_changed_token_file_ends_the_wait_of_a_pause() -> None:
    scene = Scene(5, script(Reply(401)))
    scene.cloud.token_changes = [False, False, True]
    await scene.settle_all()
    assert 0 < scene.now < PROBE_SECONDS / 2
    assert scene.outbox.acked == list(range(5))


# ---- the end ------------------------------------------------------------------------------------------------------


async def test_stop_lets_the_post_under_way_end_and_releases_the_rest() -> None:
    answered = asyncio.Event()

    async def slow(_: Batch) -> Reply:
        await answered.wait()
        return Reply(200)

    scene = Scene(50, slow, batch_messages=10)
    async with scene.running():
        await scene.until(lambda: scene.cloud.under_way == 1)
        stopping = asyncio.create_task(scene.forwarder.stop(5))
        await asyncio.sleep(0)
        answered.set()
        await stopping
    assert scene.outbox.acked == list(range(10))
    assert [one.row_id for one in scene.outbox.waiting] == list(range(10, 50))
    assert not scene.outbox.taken


async def test_a_post_that_outlasts_the_grace_time_counts_for_nothing() -> None:
    async def never(_: Batch) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    scene = Scene(10, never)
    async with scene.running(grace_seconds=0):
        await scene.until(lambda: scene.cloud.under_way == 1)
    assert scene.cloud.under_way == 0
    assert not scene.outbox.acked
    assert [one.row_id for one in scene.outbox.waiting] == list(range(10))


async def test_stop_ends_every_kind_of_waiting() -> None:
    for answer in (ok, lambda _: Reply(503), lambda _: Reply(401)):
        scene = Scene(3, answer, concurrency=2)
        async with scene.running():
            await scene.until(lambda scene=scene: len(scene.cloud.posts) >= 1)  # type: ignore[misc]
        assert not scene.outbox.taken


async def test_acks_wait_for_a_full_disk_to_have_room_again() -> None:
    scene = Scene(5, ok)
    scene.outbox.faults = [DiskFullError("full"), DiskFullError("full")]
    await scene.settle_all()
    assert scene.outbox.acked == list(range(5))
    assert len(scene.cloud.posts) == 1


@pytest.mark.parametrize(("rows", "window", "batches"), [(1, 100, 8), (1, 2, 2), (10, 25, 2), (10, 9, 0)])
async def test_batches_are_written_down_while_the_next_one_is_out_within_the_window(
    rows: int, window: int, batches: int
) -> None:
    scene = Scene(20 * rows, ok, batch_messages=rows)
    scene.forwarder.unwritten_max = window
    writing, real_ack = 0, scene.outbox.ack
    unwritten_when_posted: set[int] = set()

    def answer(_: Batch) -> Reply:
        unwritten_when_posted.add(writing)
        return Reply(200)

    scene.cloud.answer = answer

    async def slow_ack(row_ids: Sequence[int]) -> None:
        nonlocal writing
        writing += 1
        for _ in range(100):
            await asyncio.sleep(0)  # far longer than a post takes
        await real_ack(row_ids)
        writing -= 1

    scene.outbox.ack = slow_ack  # type: ignore[method-assign]
    await scene.settle_all()
    assert scene.outbox.acked == list(range(20 * rows))
    assert max(unwritten_when_posted) == batches


async def test_an_unexpected_error_ends_the_forwarder_loudly_and_releases_the_rows() -> None:
    scene = Scene(5, ok)
    scene.outbox.faults = [ZeroDivisionError()]
    scene.cloud.answer = lambda batch: Reply(400 if len(batch.rows) > 1 else 200)
    with pytest.raises(ExceptionGroup) as raised:
        await scene.forwarder.run()
    assert raised.group_contains(ZeroDivisionError)
    assert [one.row_id for one in scene.outbox.waiting] == [1, 2, 3, 4]
    await scene.forwarder.stop(0)


# ---- in all -------------------------------------------------------------------------------------------------------

HARMLESS = [
    Reply(None, error="closed"),
    Reply(None, error="refused", sent=False),
    Reply(200, error="cut"),
    Reply(200, "text/html", body=b"<html>"),
    Reply(207),
    Reply(302),
    Reply(401),
    Reply(409),
    Reply(429, retry_after="3"),
    Reply(503, retry_after="1"),
]
weathers = st.lists(st.sampled_from(HARMLESS) | st.none(), max_size=40)


class CoveringCloud:
    """Weather first, then the truth: bad rows are refused; it knows which rows its answers covered."""

    def __init__(self, weather: list[Reply | None], bad: set[int]) -> None:
        self.weather = iter(weather)
        self.bad = bad
        self.covered: set[int] = set()
        self.blamed: set[int] = set()

    def __call__(self, batch: Batch) -> Reply:
        if reply := next(self.weather, None):
            return reply
        if self.bad.isdisjoint(batch.row_ids):
            self.covered.update(batch.row_ids)
            return Reply(200)
        self.blamed.update(batch.row_ids if len(batch.rows) == 1 else ())
        return Reply(422)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 25), st.sets(st.integers(0, 59), max_size=4), weathers, st.integers(1, 3))
def test_every_row_ends_delivered_or_dead_exactly_when_an_answer_covered_it(
    count: int, batch_messages: int, bad: set[int], weather: list[Reply | None], concurrency: int
) -> None:
    async def walk() -> None:
        cloud = CoveringCloud(weather, bad)
        scene = Scene(count, cloud, batch_messages=batch_messages, concurrency=concurrency)
        await scene.settle_all()
        assert set(scene.outbox.acked) == cloud.covered == set(range(count)) - bad
        assert scene.outbox.dead.keys() == cloud.blamed == bad & set(range(count))
        assert sum(event.messages for event in scene.seen(Delivered)) == len(scene.outbox.acked)
        if concurrency == 1:
            assert scene.outbox.acked == sorted(scene.outbox.acked)

    asyncio.run(walk())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.sets(st.integers(0, 39), min_size=1, max_size=2), st.integers(1, 3))
def test_rows_that_the_server_cannot_digest_hold_up_nobody_for_ever(
    count: int, bad: set[int], concurrency: int
) -> None:
    async def walk() -> None:
        def answer(batch: Batch) -> Reply:
            return Reply(200 if bad.isdisjoint(batch.row_ids) else 500)

        scene = Scene(count, answer, batch_messages=10, concurrency=concurrency)
        async with scene.running():
            for number in range(1000, 1040):  # life goes on
                scene.outbox.put([row(number)])
                await scene.until(lambda: not scene.outbox.waiting)
            await scene.until(lambda: set(scene.outbox.taken) <= bad)
        assert not scene.outbox.dead
        assert {one.row_id for one in scene.outbox.waiting} == bad & set(range(count))

    asyncio.run(walk())


# ---- the clock is set --------------------------------------------------------------------------------------------


async def test_rows_that_never_left_are_taken_again_when_the_clock_is_set() -> None:
    """No certificate is valid in 1970; what waits in hand for that to end shall get its right time."""
    scene = Scene(5, script(*[Reply(None, error="certificate is not yet valid", sent=False)] * 3))
    scene.started_at = CLOCK_SET_SINCE - 0.1  # set while it waits for the next try
    await scene.settle_all()
    assert scene.outbox.unsent == [0, 1, 2, 3, 4]
    assert scene.outbox.acked == [0, 1, 2, 3, 4]


async def test_rows_that_were_asked_for_before_the_clock_was_set_are_taken_again_before_they_go() -> None:
    scene = Scene(5, ok)
    scene.started_at = CLOCK_SET_SINCE - 1
    take = scene.outbox.take

    async def slow_disk(messages_max: int, bytes_max: int, **how: Any) -> tuple[Row, ...]:
        rows = await take(messages_max, bytes_max, **how)
        scene.now = 2.0
        return rows

    scene.outbox.take = slow_disk  # type: ignore[method-assign]
    await scene.settle_all()
    assert (scene.outbox.unsent, scene.outbox.acked) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert len(scene.cloud.posts) == 1


@pytest.mark.parametrize("seen", [Reply(503), Reply(None, error="closed")])
async def test_rows_that_the_cloud_may_have_seen_keep_their_bytes_and_their_key(seen: Reply) -> None:
    scene = Scene(5, script(seen, Reply(None, error="refused", sent=False)))
    scene.started_at = CLOCK_SET_SINCE - 0.1
    await scene.settle_all()
    assert scene.outbox.unsent == []
    assert len({one.key for one in scene.cloud.posts}) == 1


async def test_uploading_does_not_wait_for_the_clock() -> None:
    scene = Scene(5, ok)
    scene.started_at = 0.0
    await scene.settle_all()
    assert (scene.outbox.acked, scene.slept) == ([0, 1, 2, 3, 4], [])
