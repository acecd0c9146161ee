"""The forwarder: rows from the disk queue to the cloud. The heart is `_Lane._step`: take, pack, post, judge, settle.

`upload.concurrency` lanes work side by side, each with an agenda of its own; what they know about the destination
(breaker, limits) they share. With one lane rows leave in order of arrival (I6). While a post is under way the
last batch is acked and the next one taken, joined and compressed; its answer waits for none of that.

A row is acked only after a verdict said that an answer covers it (I2), and a row that is held when this ends is
released; a post that was cut off by the end of the grace time counts for nothing. Memory is bounded (I5): a lane has
one batch out, one aside, and in line the eight that all lanes share, at least one. Knows no HTTP (uploader), no table
of answers (verdict), no SQL.
"""

from __future__ import annotations

import asyncio
import random as randomness
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar, assert_never

from bridge import backoff
from bridge.agenda import Agenda, Effect, Settlement
from bridge.backoff import Breaker, Closed, Leave, Paused, Probe, Wait
from bridge.batch import Batch, Limits
from bridge.config.settings import UploadSettings
from bridge.errors import PassingError
from bridge.events import CloudAnswered, CloudFailed, CloudPaused, Delivered, Emit
from bridge.liveness import IDLE
from bridge.message import CLOCK_SET_SINCE, DeadRow, Row
from bridge.verdict import Reply, judge

TOKEN_LOOK_SECONDS = 3.0  # while paused: how often the token file is looked at
DISK_RETRY_SECONDS = 1.0  # a full disk refuses even acks: they are asked for again, the rows were delivered

_WRITING_MAX = 8  # answers of a lane that are being written down at a time
_TAKE_BATCHES = 4  # taken at once under load, by all lanes together: a take waits for the disk's present group
_SENDING_STEPS = 2  # of the loop, until a post is on its way: packing the next batch would hold it up
_AHEAD_BATCHES = 4  # in line, when the next ones are asked for

PreparedT = TypeVar("PreparedT")


class Outbox(Protocol):
    """What the forwarder needs of the disk queue."""

    async def take(self, messages_max: int, bytes_max: int, *, batch: int, partly: bool) -> tuple[Row, ...]: ...
    async def ready(self) -> None: ...
    def waiting_seconds(self) -> float: ...
    async def ack(self, row_ids: Sequence[int]) -> None: ...
    async def reject(self, dead: Sequence[DeadRow]) -> None: ...
    async def release(self, row_ids: Sequence[int], *, sent: bool = True) -> None: ...


class Cloud(Protocol[PreparedT]):
    """What the forwarder needs of the uploader; what `prepare` returns is the uploader's business."""

    async def prepare(self, batch: Batch) -> PreparedT: ...
    async def post(self, batch: Batch, prepared: PreparedT | None = None) -> Reply: ...
    async def token_changed(self) -> bool: ...


class _Destination:
    """What all lanes know about the cloud end: whether it may be asked, and how much it takes at once."""

    def __init__(
        self, settings: UploadSettings, emit: Emit, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        self.clock = clock
        self.breaker: Breaker = Closed()
        self.stopping = False
        self._emit = emit
        self._random = random
        self.is_known_online = False
        self._pause_told: str | None = None
        self._changed: asyncio.Future[None] | None = None
        self.configure(settings)

    def configure(self, settings: UploadSettings) -> None:
        self.settings = settings
        self.limits = Limits(settings.batch_messages, settings.batch_bytes)

    @property
    def changed(self) -> asyncio.Future[None]:
        """Done at the next change that somebody who waits should look at."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def hurry(self) -> None:
        self.breaker = backoff.hurried(self.breaker, self.clock())
        self.wake()

    def ask(self) -> Leave:
        self.breaker, leave = backoff.ask(self.breaker, self.clock())
        return leave

    def delay_seconds(self, failures: int) -> float:
        upload = self.settings
        return backoff.delay_seconds(failures, self._random(), upload.retry_min_seconds, upload.retry_max_seconds)

    def report(self, settled: Settlement, *, was_probe: bool) -> None:
        """Learn from one post, and tell those who wait for it."""
        before = self.breaker
        if settled.refused_body_bytes is not None:
            self.limits = self.limits.shrunk(settled.refused_body_bytes)
        match settled.effect:
            case Effect.PASSED:
                self._pass(is_news=True)
            case Effect.ANSWERED:  # what refuses a row lets us in: neither away nor paused
                self._pass(is_news=bool(settled.dead) or self._pause_told is not None)
            case Effect.FAILED:
                self._fail(settled)
            case Effect.REFUSED:
                self._refuse(settled.reason)
            case Effect.NOTHING:
                if was_probe:
                    self._fail(settled)
            case never:
                assert_never(never)
        if self.breaker != before:
            self.wake()

    def _pass(self, *, is_news: bool) -> None:
        self.breaker = backoff.passed(self.breaker)
        if not isinstance(self.breaker, Closed):
            return
        self._pause_told = None
        if is_news and not self.is_known_online:
            self.is_known_online = True
            self._emit(CloudAnswered())

    def _fail(self, settled: Settlement) -> None:
        now = self.clock()
        delay_seconds = self.delay_seconds(backoff.failures_so_far(self.breaker))
        if settled.floor_seconds is not None:  # jitter above the floor, or a fleet would come back as one
            delay_seconds = max(delay_seconds, settled.floor_seconds + self.delay_seconds(0))
        self.breaker, self._pause_told = backoff.failed(self.breaker, now + delay_seconds), None
        self.is_known_online = False
        throttled = settled.throttled or settled.floor_seconds is not None
        self._emit(CloudFailed(settled.reason, delay_seconds, throttled))

    def _refuse(self, reason: str) -> None:
        self.breaker = backoff.refused(self.breaker, self.clock())
        self.is_known_online = False
        if reason != self._pause_told:  # one alarm for one fault, however many probes it lasts
            self._pause_told = reason
            self._emit(CloudPaused(reason, backoff.PROBE_SECONDS))


class Forwarder(Generic[PreparedT]):
    """The lanes and their destination. `run()` until `stop()`; tests bring their own time and randomness.

    `unwritten_max`: rows whose answer is still being written down while the next batch is out. After a kill these, and
    the batch that is out, are posted again (promise 1).
    """

    def __init__(  # noqa: PLR0913 - two neighbours, the settings, and time in four parts
        self,
        outbox: Outbox,
        uploader: Cloud[PreparedT],
        settings: UploadSettings,
        emit: Emit,
        *,
        unwritten_max: int = 0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        self.outbox = outbox
        self.uploader = uploader
        self.emit = emit
        self.wall_clock = wall_clock
        self.sleep = sleep
        self.unwritten_max = unwritten_max // settings.concurrency
        self.destination = _Destination(settings, emit, clock, random)
        self.abandoned = asyncio.Event()  # the grace time is over: leave the posts under way
        self._lanes = [_Lane(self) for _ in range(settings.concurrency)]
        self._finished = asyncio.Event()
        self._finished.set()

    async def run(self) -> None:
        """Forward until `stop()`; every row that is still held then is released."""
        self._finished.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, lane in enumerate(self._lanes):
                    tasks.create_task(lane.run(), name=f"forwarder-{number}")
        finally:
            self._finished.set()

    async def stop(self, grace_seconds: float) -> None:
        """Start nothing new, let posts under way end within the grace time, release the rest; return when done."""
        self.destination.stopping = True
        self.destination.wake()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._finished.wait()
        except TimeoutError:
            self.abandoned.set()
            await self._finished.wait()

    def due(self) -> float:
        """Return when the first lane moves again at the latest, on this forwarder's clock."""
        return min(lane.due for lane in self._lanes)

    def probe_now(self) -> None:
        """Somebody changed something: if posting waits for the destination, try at once."""
        self.destination.hurry()

    def reconfigure(self, settings: UploadSettings) -> None:
        """Use other settings from the next batch on, forget the sizes learned, and try at once.

        The number of lanes stays. The uploader is reloaded by whoever calls this, before.
        """
        self.destination.configure(settings)
        for lane in self._lanes:
            lane.agenda.configure(self.destination.limits, settings.max_attempts)
        self.destination.hurry()


class _Lane(Generic[PreparedT]):
    """One loop over an agenda."""

    def __init__(self, forwarder: Forwarder[PreparedT]) -> None:
        self._of = forwarder
        self._destination = forwarder.destination
        self.agenda = Agenda(self._destination.limits, self._destination.settings.max_attempts)
        self._ahead: tuple[Batch, PreparedT] | None = None
        self._coming: tuple[float, asyncio.Future[tuple[Row, ...]]] | None = None  # since when by the wall clock
        self._row_bytes = 1  # what a row took up, on the average, when rows came last
        self._is_drained = False
        self._writing: deque[tuple[int, asyncio.Future[None]]] = (
            deque()
        )  # rows of an answer, and they on their way to the disk
        self._took_at = 0.0  # by the wall clock, the first of what is in hand
        self._has_sent = False  # ... of which something may have reached the cloud
        self.due = IDLE

    async def run(self) -> None:
        try:
            while not self._destination.stopping:
                self._moves_within(0)
                await self._step()
        finally:
            self.due = IDLE
            try:
                await self._written()
            finally:
                with suppress(PassingError):
                    self.agenda.add(await self._coming[1] if self._coming else ())
                if row_ids := self.agenda.row_ids:
                    await self._of.outbox.release(row_ids)

    async def _step(self) -> None:
        if self.agenda.wants_rows(self._now()):
            await self._take()
        await self._give_back_undated()
        leave = self._leave()
        if isinstance(leave, Wait):
            await self._wait(leave.seconds)
            return
        batch = self.agenda.take_next(self._now(), self._destination.limits, small=leave == Probe(small=True))
        reply = await self._post(batch)
        if reply is None:
            return
        verdict = judge(
            reply, batch, require_receipt=self._destination.settings.require_receipt, now=self._of.wall_clock()
        )
        settled = self.agenda.settle(verdict, self._now(), self._destination.delay_seconds)
        self._destination.report(settled, was_probe=isinstance(leave, Probe))
        writing = asyncio.ensure_future(self._write(settled, reply.elapsed_seconds))
        self._writing.append((len(settled.acked) + len(settled.dead), writing))
        await self._written(but_batches=_WRITING_MAX, but_rows=self._of.unwritten_max)

    async def _write(self, settled: Settlement, latency_seconds: float) -> None:
        await asyncio.gather(self._ack(settled.acked, latency_seconds), self._bury(settled.dead))

    async def _written(self, *, but_batches: int = 0, but_rows: int = 0) -> None:
        """Return when what the answers said is on disk, but for the last few: the next batch is out meanwhile."""
        while len(self._writing) > but_batches or sum(rows for rows, _ in self._writing) > but_rows:
            _, writing = self._writing.popleft()
            await writing

    async def _give_back_undated(self) -> None:
        """Take again, with their right time, rows that were taken before the clock was set and never left."""
        undated = not self._has_sent and self._took_at < CLOCK_SET_SINCE <= self._of.wall_clock()
        if undated and (row_ids := self.agenda.row_ids):
            await self._of.outbox.release(row_ids, sent=False)
            self.agenda = Agenda(self._destination.limits, self._destination.settings.max_attempts)
            self._ahead, self._is_drained = None, False

    def _leave(self) -> Leave:
        """Ask to post, but only with something in hand: who may probe and has nothing would block the others."""
        seconds = self.agenda.wait_seconds(self._now())
        return self._destination.ask() if seconds == 0 else Wait(seconds or 0)

    # ---- rows come ----

    async def _take(self) -> None:
        if self._is_drained and self.agenda.is_idle and not self._coming:
            if not self._of.outbox.waiting_seconds():
                await self._written()
            await self._wait(self.agenda.wait_seconds(self._now()), self._of.outbox.ready())
            if not self._of.outbox.waiting_seconds():
                return  # woken by something else: the linger begins with the first row
            await self._linger()
        await self._fetch()

    async def _linger(self) -> None:
        """Let the batch grow until its first row has waited for `upload.linger_ms`, be it during the last post."""
        seconds = self._destination.settings.linger_ms / 1000 - self._of.outbox.waiting_seconds()
        if seconds > 0:
            await self._wait(seconds)

    def _ask(self, *, partly: bool) -> None:
        """Ask the disk queue for rows, if it was not asked already; for less than a batch only if `partly`.

        Behind a whole batch a smaller one would take as long to be answered, and more could be waiting by then.
        """
        if self._coming or self._destination.stopping:
            return
        limits = self._destination.limits
        batches = max(1, self._share(_TAKE_BATCHES))
        batch = max(1, min(limits.messages, limits.row_bytes // self._row_bytes))
        taking = self._of.outbox.take(batches * limits.messages, batches * limits.row_bytes, batch=batch, partly=partly)
        self._coming = self._of.wall_clock(), asyncio.ensure_future(taking)

    def _share(self, batches: int) -> int:
        """Return a lane's part of what is taken ahead: none in an outage, as what is taken cannot be dropped."""
        return batches // self._destination.settings.concurrency if self._destination.is_known_online else 0

    async def _fetch(self) -> None:
        """Put the next rows into the line when they come."""
        self._ask(partly=True)
        if not self._coming:
            return
        asked_at, coming = self._coming
        try:
            rows = await coming
        except PassingError:
            self._coming = None
            await self._wait(DISK_RETRY_SECONDS)
            return
        self._coming = None
        if self.agenda.is_empty:
            self._took_at, self._has_sent = asked_at, False
        # Nothing lingers under load: rows or bytes that fill a batch say that there is more. (With rows larger than
        # half a batch the guess may be wrong; that costs one linger.)
        limits, size_bytes = self._destination.limits, sum([len(row.data) for row in rows])
        self._is_drained = len(rows) < limits.messages and size_bytes < limits.row_bytes // 2
        self._row_bytes = max(1, size_bytes // len(rows)) if rows else self._row_bytes
        self.agenda.add(rows)

    # ---- a batch goes ----

    async def _post(self, batch: Batch) -> Reply | None:
        """POST, and prepare the next batch meanwhile. None: the grace time ended first, nobody knows how it went."""
        self._moves_within(2 * self._destination.settings.timeout_seconds)  # it may be asked twice (415)
        prepared = self._ahead[1] if self._ahead and self._ahead[0] == batch else None
        posting = asyncio.ensure_future(self._of.uploader.post(batch, prepared))
        abandoned = asyncio.ensure_future(self._of.abandoned.wait())
        try:
            for _ in range(_SENDING_STEPS):
                await asyncio.sleep(0)
            await self._look_ahead(posting)
            await asyncio.wait({posting, abandoned}, return_when=asyncio.FIRST_COMPLETED)
            reply = posting.result() if posting.done() else None
            self._has_sent = self._has_sent or reply is None or reply.sent
            return reply
        finally:
            await _cancel(posting, abandoned)

    async def _look_ahead(self, posting: asyncio.Future[Any]) -> None:
        """Have rows in line and the next batch packed when the answer comes; it never waits for them."""
        if self.agenda.rows_in_line <= self._share(_AHEAD_BATCHES) * self._destination.limits.messages:
            if not self._is_drained:
                self._ask(partly=False)
            if self._coming and self.agenda.is_idle:
                await asyncio.wait({posting, self._coming[1]}, return_when=asyncio.FIRST_COMPLETED)
        if self._coming and self._coming[1].done() and not self._coming[1].exception():
            await self._fetch()
        batch = self.agenda.peek(self._destination.limits)
        if batch and not (self._ahead and self._ahead[0] == batch):
            self._ahead = batch, await self._of.uploader.prepare(batch)

    async def _ack(self, row_ids: Sequence[int], latency_seconds: float) -> None:
        if row_ids and await self._insist(lambda: self._of.outbox.ack(row_ids)):
            self._of.emit(Delivered(len(row_ids), latency_seconds))

    async def _bury(self, dead: Sequence[DeadRow]) -> None:
        if dead:
            await self._insist(lambda: self._of.outbox.reject(dead))

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> bool:
        """Write what an answer said, also to a disk that is full for a while; False if the bridge stops before.

        Rows that were delivered and not acked are posted again after the restart, under the same ids.
        """
        while True:
            try:
                await write()
            except PassingError:
                if self._destination.stopping:
                    return False
                self._moves_within(DISK_RETRY_SECONDS)
                await self._of.sleep(DISK_RETRY_SECONDS)
            else:
                return True

    # ---- time passes ----

    def _now(self) -> float:
        return self._destination.clock()

    def _moves_within(self, seconds: float) -> None:
        self.due = self._now() + seconds

    async def _wait(self, seconds: float | None, *others: Awaitable[object]) -> None:
        """Wait so long (None: without end), or for one of the others, or for a change at the destination."""
        changed = self._destination.changed
        reasons: list[asyncio.Future[Any]] = [asyncio.ensure_future(other) for other in others]
        try:
            if isinstance(self._destination.breaker, Paused):
                seconds = TOKEN_LOOK_SECONDS if seconds is None else min(seconds, TOKEN_LOOK_SECONDS)
                if await self._of.uploader.token_changed():
                    self._destination.hurry()
            if seconds is not None:
                reasons.append(asyncio.ensure_future(self._of.sleep(seconds)))
            if not self._destination.stopping:
                self._moves_within(IDLE if seconds is None else seconds)
                await asyncio.wait({changed, *reasons}, return_when=asyncio.FIRST_COMPLETED)
            for reason in reasons:
                if reason.done():
                    reason.result()
        finally:
            await _cancel(*reasons)


async def _cancel(*futures: asyncio.Future[Any]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
