"""The disk thread: the one thread in which the disk queue lives, with a group commit around everything it is asked.

The event loop hands over verbs and awaits their results; the thread takes all that have come in the meantime, runs
them in one transaction and answers after the one sync. So neither the network nor the event loop ever waits for the
disk (I7), and under load one fsync serves a whole group of puts, acks and takes. It never decides anything.

If the disk is full the group is undone and each verb is tried alone, at last with the reserve released and the WAL
written back: acks and deletes go on while puts fail.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from bridge.disk_queue import DiskQueue, Receipt
from bridge.errors import BridgeError, DiskFailedError, DiskFullError, PassingError, QueueDamagedError
from bridge.liveness import IDLE
from bridge.loss import Loss
from bridge.message import DeadRow, Row

T = TypeVar("T")
Verb = Callable[[DiskQueue], T]

_GROUP_MAX = 64  # verbs in one transaction, so that no answer waits for an endless group
_TIDY_STEPS = 8  # steps of housekeeping, at most, in one go
_FULL_TIDY_ROWS = 64  # with a page each, and indexes, still less than the half mebibyte of the smallest reserve
_NOTED_SECONDS = 5.0  # what is delivered is marked so at the latest then, if it is still there
_TIDY_EXCESS = 4096  # delivered rows too many, at least, that are deleted although messages come
_BACKLOG_ROWS = 10_000  # waiting


class _Job(NamedTuple):
    verb: Verb[Any]
    answer: asyncio.Future[Any]


class DiskThread:
    """The disk queue's async face. Make it on the event loop that awaits it; `close()` ends thread and file.

    `on_losses` is told on the loop what each transaction wrote in the loss ledger, before its verbs are answered, and
    `on_receipts` what can be told now that it is committed.
    """

    def __init__(
        self,
        disk_queue: DiskQueue,
        *,
        keep_seconds: float,
        keep_messages: int,
        on_losses: Callable[[Sequence[Loss]], None] = lambda _: None,
        on_receipts: Callable[[Sequence[Receipt]], None] = lambda _: None,
    ) -> None:
        self._queue = disk_queue
        self._on_receipts = on_receipts
        self._on_losses = on_losses
        self._keep = keep_seconds, keep_messages
        self._slack = 0  # delivered rows too many that may be there: they make way for those that come
        self._newest_seen = disk_queue.newest_id()
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._maybe_ready, self._ready_since = asyncio.Event(), 0.0
        self.wake()
        self._group_started_at: float | None = None
        self._unanswered, self._moved_at = 0, time.monotonic()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="disk", daemon=True)
        self._thread.start()

    # --- asked from the event loop -----------------------------------------------------------------------------

    def run(self, verb: Verb[T]) -> asyncio.Future[T]:
        """Run a verb in the next transaction; the result comes after its commit. Verbs run in the order asked."""
        answer: asyncio.Future[T] = self._loop.create_future()
        if not self._unanswered:
            self._moved_at = time.monotonic()
        self._unanswered += 1
        self._inbox.put(_Job(verb, answer))
        return answer

    async def take(self, messages_max: int, bytes_max: int, *, batch: int = 1, partly: bool = True) -> tuple[Row, ...]:
        """Take the oldest ready rows; () if there are none.

        `batch`, `partly`: as `DiskQueue.take` says.
        """
        since = self._ready_since if self._maybe_ready.is_set() else math.inf
        self._maybe_ready.clear()
        try:
            rows, has_more = await self.run(
                lambda queue: (queue.take(messages_max, bytes_max, batch=batch, partly=partly), queue.has_ready)
            )
        except PassingError:
            self.wake()  # they are still there
            raise
        if rows or has_more:
            self.wake()
        if not rows:  # those that were left go on waiting
            self._ready_since = min(since, self._ready_since)
        return rows

    async def ready(self) -> None:
        """Return when `take` may have something: since the last empty take, rows were put, released or requeued."""
        await self._maybe_ready.wait()

    def waiting_seconds(self) -> float:
        """Return for how long there may have been something to take; 0 if there is nothing."""
        return time.monotonic() - self._ready_since if self._maybe_ready.is_set() else 0.0

    async def ack(self, row_ids: Sequence[int]) -> None:
        """Taken rows become delivered (I2: only call it for rows that an answer covers)."""
        await self.run(lambda queue: queue.ack_rows(row_ids))

    async def reject(self, dead: Sequence[DeadRow]) -> None:
        """Rows become dead, with reason and ledger."""
        await self.run(lambda queue: queue.reject(dead))

    async def release(self, row_ids: Sequence[int], *, sent: bool = True) -> None:
        """Taken rows become ready again; `sent`: some of them may have been posted."""
        await self.run(lambda queue: queue.release(row_ids, sent=sent))
        self.wake()

    def wake(self) -> None:
        """Tell waiting takers that there may be something."""
        if not self._maybe_ready.is_set():
            self._ready_since = time.monotonic()
            self._maybe_ready.set()

    async def housekeep(self) -> None:
        """Keep the reserve, delete delivered rows that are too old or too many, give free pages back; once a second."""
        await self.run(lambda queue: queue.keep_reserve())
        try:
            await self.run(self._tidy_by_the_second)
        except DiskFullError:
            # What is emptied is logged, and the log has no more room than the reserve gave it: one small step a time.
            while await self.run(lambda queue: queue.tidy(*self._keep, _FULL_TIDY_ROWS)):
                pass
        await self.run(lambda queue: queue.mark_noted(time.time() - _NOTED_SECONDS))
        await self.run(_shrink)

    def stalled_seconds(self) -> float:
        """Return how long the group being written has been under way; 0 if none is."""
        started_at = self._group_started_at
        return 0.0 if started_at is None else time.monotonic() - started_at

    def due(self) -> float:
        """Return since when the thread owes an answer: from the first question or the last answer on."""
        return self._moved_at if self._unanswered else IDLE

    def close(self) -> None:
        """Finish what was asked, then end the thread and close the file. Blocks for that long."""
        self._inbox.put(None)
        self._thread.join()

    # --- in the thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (jobs := self._next_group()) is not None:
                self._group_started_at = time.monotonic()
                self._commit(jobs)
                with suppress(PassingError):  # whoever needs the room next relieves the queue
                    self._between_groups(self._queue.bound_wal)
                self._group_started_at = None
            self._mark_all()
        finally:
            self._queue.close()

    def _mark_all(self) -> None:
        """Leave a file behind in which the stock library finds delivered what is; else the next start knows it too."""
        if not self._failed:
            with suppress(BridgeError), self._queue.transaction():
                self._queue.mark_noted()

    def _next_group(self) -> list[_Job] | None:
        jobs: list[_Job] = []
        while len(jobs) < _GROUP_MAX and not (jobs and self._inbox.empty()):
            job = self._inbox.get()
            if job is None:
                if jobs:
                    self._inbox.put(None)
                break
            jobs.append(job)
        return jobs or None

    def _commit(self, jobs: list[_Job], *, relieved: bool = False) -> None:
        if self._failed:
            self._answer([(job, None, self._failed) for job in jobs])
            return
        try:
            with self._queue.transaction():
                results = [job.verb(self._queue) for job in jobs]
                if not relieved and self._queue.excess(self._keep[1] + self._slack):
                    self._tidy(self._queue)
        except PassingError as error:
            self._try_again(jobs, error, relieved=relieved)
        except BaseException as error:  # noqa: BLE001 - the top of the thread: whoever asked gets it and ends loudly
            self._learn(error)
            self._answer([(job, None, error) for job in jobs])
        else:
            self._tell()
            self._answer([(job, result, None) for job, result in zip(jobs, results, strict=True)])

    def _try_again(self, jobs: list[_Job], error: PassingError, *, relieved: bool) -> None:
        if len(jobs) > 1:
            for job in jobs:
                self._commit([job])
        elif isinstance(error, DiskFullError) and not relieved:
            self._between_groups(self._queue.relieve)
            self._commit(jobs, relieved=True)
        else:
            self._answer([(jobs[0], None, error)])

    def _between_groups(self, work: Callable[[], None]) -> None:
        """Do what is no transaction; if it fails but for want of room, whoever asks next gets the error."""
        try:
            work()
        except PassingError:
            raise
        except BridgeError as error:
            self._learn(error)
            self._failed = error

    def _learn(self, error: BaseException) -> None:
        if isinstance(error, QueueDamagedError):
            self._queue.condemn()
        if isinstance(error, DiskFailedError | QueueDamagedError):
            # After a failed sync the kernel may have forgotten the pages: what the file holds is unknown until
            # it is opened anew, so nobody is told of a success from here on (I1, I2).
            self._failed = error

    def _tidy_by_the_second(self, disk_queue: DiskQueue) -> None:
        """Delete what is too old, and what is too many once nothing comes: till then it makes way for what comes."""
        newest = disk_queue.newest_id()
        is_idle, self._newest_seen = newest == self._newest_seen, newest
        disk_queue.expect_rows(not is_idle)
        self._slack = 0 if is_idle else max(_TIDY_EXCESS, self._keep[1])
        self._tidy(disk_queue)

    def _tidy(self, disk_queue: DiskQueue) -> None:
        keep_seconds, keep_messages = self._keep
        for _ in range(_TIDY_STEPS):
            if not disk_queue.tidy(keep_seconds, keep_messages + self._slack):
                break

    def _tell(self) -> None:
        if losses := self._queue.ledger.recent:
            self._loop.call_soon_threadsafe(self._on_losses, losses)
        if receipts := self._queue.receipts.recent:
            self._loop.call_soon_threadsafe(self._on_receipts, receipts)

    def _answer(self, answers: list[tuple[_Job, Any, BaseException | None]]) -> None:
        self._loop.call_soon_threadsafe(self._settle, answers)

    def _settle(self, answers: list[tuple[_Job, Any, BaseException | None]]) -> None:
        self._unanswered -= len(answers)
        self._moved_at = time.monotonic()
        for job, result, error in answers:
            if job.answer.done():  # its asker was cancelled meanwhile
                continue
            if error is None:
                job.answer.set_result(result)
            else:
                job.answer.set_exception(error)


def _shrink(queue: DiskQueue) -> None:
    """Give free pages back to the file system, but not in the middle of a backlog: its rows would only be moved."""
    if queue.ready_rows < _BACKLOG_ROWS:
        queue.shrink()
