"""One life of a process that works with the real disk queue and says what it does: what a power cut is tried on.

    python -m tests.harness.powercut_life FOLDER MARKS --seed 7 --steps 40 [--dies] [--durability crash]
        [--confirms-early] [--pragma "synchronous = OFF"]

Before each transaction it appends a line to the file MARKS: what the queue holds different once that is committed
(`tries`). When the transaction has returned it appends `confirms`: from then on nothing may undo it. `--dies` ends the
life in the middle of a transaction, without closing the file; the next life goes on from what the marks tell. Several
checkpoints, WALs begun anew and truncated, and pages given back to the file system come about because the pragmas
that govern them are made small here; `synchronous` is as the queue sets it. `--confirms-early` and `--pragma` are for
the mistakes that a test must find.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import orjson

from bridge.disk_queue import DiskQueue, FolderLock, NewRow, queue
from bridge.loss import LossReason
from bridge.message import DeadRow, head, head_middle, tail

READY, DELIVERED, DEAD = 0, 5, 9
SMALL_PRAGMAS = ("wal_autocheckpoint = 150", "journal_size_limit = 300000", "cache_size = 40")
SPAN_ROWS_MIN = 12  # so that many batches are noted as delivered and few marked
KEPT_MESSAGES = 15  # delivered rows
BULGE_ROWS, BULGE_BYTES = 14, 100_000  # more than the free pages from which on the file shrinks


class Held(NamedTuple):
    """A row as it must be found."""

    status: int
    digest: str


@dataclass(frozen=True, slots=True)
class Picture:
    """What the queue holds: its rows by id, how many messages are in the loss ledger, the highest id given out."""

    rows: Mapping[int, Held]
    losses: int = 0
    newest_id: int = 0

    def after(self, changes: Mapping[int, Held | None], losses: int) -> Picture:
        rows = {**self.rows, **changes}
        return Picture(
            {row_id: held for row_id, held in rows.items() if held is not None},
            self.losses + losses,
            max(self.newest_id, *changes, 0),
        )


@dataclass(frozen=True, slots=True)
class Account:
    """What the marks tell: the picture that was confirmed, and the one that was being tried, if any."""

    confirmed: Picture
    tried: Picture | None = None

    def after(self, mark: bytes) -> Account:
        line = orjson.loads(mark)
        if line == "confirms":
            assert self.tried, "confirmed without a try"
            return Account(self.tried)
        changes = {int(row_id): held and Held(*held) for row_id, held in line["tries"].items()}
        return Account(self.confirmed, self.confirmed.after(changes, line["losses"]))


NOTHING_YET = Account(Picture({}))


def account_of(marks: Iterable[bytes], since: Account = NOTHING_YET) -> Account:
    for mark in marks:
        since = since.after(mark)
    return since


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=12).hexdigest()


def event(row_id: int, size: int) -> bytes:
    payload = b'"%s"' % random.Random(row_id).randbytes(size // 2).hex().encode()
    return head(f"m{row_id}", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(payload, is_json=True)


@dataclass(slots=True)
class Plan:
    """One transaction to be: its verbs in order, and what the queue holds different afterwards."""

    verbs: list[Callable[[], object]] = field(default_factory=list)
    changes: dict[int, Held | None] = field(default_factory=dict)
    losses: int = 0


class Life:
    """The queue and what it must hold; a step is one transaction of several verbs, as the disk thread groups them."""

    def __init__(
        self,
        disk_queue: DiskQueue,
        picture: Picture,
        say: Callable[[object], None],
        seed: int,
        *,
        confirms_early: bool,
    ) -> None:
        self._queue = disk_queue
        self._picture = picture
        self._say = say
        self._choice = random.Random(seed)
        self._confirms_early = confirms_early
        self._batches: list[tuple[int, ...]] = []

    def pass_by(self, steps: int) -> None:
        """Work: small steps, with a bulge after a third of them that is drained and given back after two thirds."""
        for number in range(steps):
            if number == steps // 3:
                self._swell()
            elif number == steps * 2 // 3:
                self._drain()
            else:
                self.commit(self._step())

    def commit(self, plan: Plan, *, dies: bool = False) -> None:
        changes = {str(row_id): held and list(held) for row_id, held in plan.changes.items()}
        self._say({"tries": changes, "losses": plan.losses})
        if self._confirms_early and not dies:
            self._say("confirms")
        with self._queue.transaction():
            for verb in plan.verbs:
                verb()
            if dies:
                os._exit(0)
        if not self._confirms_early:
            self._say("confirms")
        self._picture = self._picture.after(plan.changes, plan.losses)

    def _step(self) -> Plan:
        plan = Plan()
        if self._choice.random() < 0.7:
            self._put(plan, [self._size() for _ in range(self._choice.randint(1, 40))])
        if self._batches and self._choice.random() < 0.7:
            self._settle(plan)
        if self._choice.random() < 0.1:
            self._drop(plan, self._choice.randint(1, 8))
        if self._choice.random() < 0.3:
            self._tidy(plan, KEPT_MESSAGES)
        if self._choice.random() < 0.7:
            plan.verbs.append(lambda: self._take(self._choice.randint(1, 60)))
        if self._choice.random() < 0.1:
            plan.verbs.append(self._queue.shrink)
        if self._choice.random() < 0.1:
            plan.verbs.append(self._queue.mark_noted)
        return plan

    def die(self) -> None:
        """End in the middle of a transaction, some of it in the WAL already."""
        plan = Plan()
        self._put(plan, [BULGE_BYTES] * 3)
        self.commit(plan, dies=True)

    def _swell(self) -> None:
        plan = Plan()
        self._put(plan, [BULGE_BYTES] * BULGE_ROWS)
        self.commit(plan)

    def _drain(self) -> None:
        self.commit(Plan([lambda: self._take(1000)]))
        while self._batches:
            plan = Plan()
            self._settle(plan, acked_share=1)
            self._tidy(plan, 0)
            plan.verbs += [self._queue.shrink, lambda: self._take(1000)]
            self.commit(plan)
        for _ in range(3):
            self.commit(Plan([self._queue.shrink]))

    def _size(self) -> int:
        smallest, largest = self._choice.choices(((100, 400), (2000, 9000), (20_000, 60_000)), (90, 9, 1))[0]
        return self._choice.randint(smallest, largest)

    def _put(self, plan: Plan, sizes: Sequence[int]) -> None:
        events = {self._picture.newest_id + 1 + i: size for i, size in enumerate(sizes)}
        rows = {row_id: event(row_id, size) for row_id, size in events.items()}
        plan.changes |= {row_id: Held(READY, digest(data)) for row_id, data in rows.items()}
        new = [NewRow(data, 1.8e9, row_id % 65536, f"m{row_id}") for row_id, data in rows.items()]
        plan.verbs.append(lambda: self._queue.put_rows(new))

    def _settle(self, plan: Plan, acked_share: float = 0.75) -> None:
        batch = self._batches.pop(self._choice.randrange(len(self._batches)))
        fates = self._choice.choices(
            "adr", (acked_share, (1 - acked_share) / 4, (1 - acked_share) * 3 / 4), k=len(batch)
        )
        acked, dead, released = ([i for i, f in zip(batch, fates, strict=True) if f == kind] for kind in "adr")
        held = self._picture.rows
        plan.changes |= {row_id: held[row_id]._replace(status=DELIVERED) for row_id in acked}
        plan.changes |= {row_id: held[row_id]._replace(status=DEAD) for row_id in dead}
        plan.losses += len(dead)
        plan.verbs += [
            lambda: self._queue.ack_rows(acked),
            lambda: self._queue.reject([DeadRow(row_id, "because", 400, 1, "no") for row_id in dead]),
            lambda: self._queue.release(released),
        ]

    def _drop(self, plan: Plan, count: int) -> None:
        held = self._picture.after(plan.changes, 0).rows
        taken = {row_id for batch in self._batches for row_id in batch}
        ready = sorted(row_id for row_id, row in held.items() if row.status == READY and row_id not in taken)
        victims = ready[:count]
        plan.changes |= dict.fromkeys(victims)
        plan.losses += len(victims)
        plan.verbs.append(lambda: self._queue.drop_oldest(count, 0, LossReason.MAX_MESSAGES))

    def _tidy(self, plan: Plan, keep: int) -> None:
        held = self._picture.after(plan.changes, 0).rows
        delivered = sorted(row_id for row_id, row in held.items() if row.status == DELIVERED)
        plan.changes |= dict.fromkeys(delivered[: max(0, len(delivered) - keep)])
        plan.verbs.append(lambda: self._tidy_all(keep))

    def _tidy_all(self, keep: int) -> None:
        while self._queue.tidy(3600, keep):
            pass

    def _take(self, messages_max: int) -> None:
        if rows := self._queue.take(messages_max, 1 << 20):
            self._batches.append(tuple(row.row_id for row in rows))


def life_options() -> argparse.ArgumentParser:
    """Declare what every life is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("marks", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--durability", choices=("power", "crash"), default="power")
    return parser


@contextmanager
def lived(
    given: argparse.Namespace, pragmas: Sequence[str] = ()
) -> Iterator[tuple[DiskQueue, Callable[[object], None]]]:
    """Yield the locked queue and what appends a line to the marks."""
    marks = os.open(given.marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    lock = FolderLock(given.folder)
    disk_queue = DiskQueue(given.folder, durability=given.durability)
    for pragma in (*SMALL_PRAGMAS, *pragmas):
        disk_queue._conn.execute(f"PRAGMA {pragma}").fetchall()
    yield disk_queue, lambda words: _append(marks, words)
    disk_queue.close()
    lock.release()


def _append(marks: int, words: object) -> None:
    os.write(marks, orjson.dumps(words) + b"\n")


def main() -> None:
    parser = life_options()
    parser.add_argument("--dies", action="store_true")
    parser.add_argument("--confirms-early", action="store_true")
    parser.add_argument("--pragma", action="append", default=[])
    given = parser.parse_args()
    picture = account_of(given.marks.read_bytes().splitlines() if given.marks.exists() else []).confirmed
    queue.SPAN_ROWS_MIN = SPAN_ROWS_MIN
    with lived(given, given.pragma) as (disk_queue, say):
        life = Life(disk_queue, picture, say, given.seed, confirms_early=given.confirms_early)
        life.pass_by(given.steps)
        if given.dies:
            life.die()


if __name__ == "__main__":
    main()
