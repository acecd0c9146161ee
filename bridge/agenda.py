"""The agenda of one lane of the forwarder: which rows to post next, and what a verdict changes about that.

In the middle of a message's way to the cloud: rows come in from the disk queue, batches go out to be posted, verdicts
come back, and each verdict becomes exactly one `Settlement`: rows to ack, rows to bury, and what the destination did.

Theory of operation
-------------------
`line` holds pieces (batches not yet settled) in order of arrival, and only its front is ever posted, so rows leave in
order (I6). A verdict puts what is left of a piece back to the front. Three searches work on the line:

*   The answer blames the body (400): the piece is halved. If the left half then passes whole, the right half must
    hold the bad row ("accused"), so it is halved again without being posted. One bad row among B is alone after at
    most 2·log2(B) + 1 requests, and only a row that was refused alone is dead.
*   A batch keeps drawing 5xx although something else passed since it first did: a row that the server cannot digest
    is suspected and the piece halved. To find out whether anything else passes, the probe of a long outage is one
    row; if that row is the bad one itself, then after minutes one behind it is tried now and then. This is the only
    case besides `aside` in which a row overtakes another, and it needs many 5xx answers to one single row.
*   A row that is found to be the culprit of 5xx, or that the answers keep telling "later", is set aside: it is tried
    again at its own pace and no longer holds up the others. At most one batch's worth of rows is aside.

A batch that went unanswered may have been stored, so it is posted again in the same company, under the same key,
before anything may cut it ("doubtful").

Synchronous and without I/O; times and delays are the caller's. Never acks, waits or posts itself. Holds I2, I5 and I6.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import assert_never

from bridge.batch import Batch, Limits, halve, pack, split
from bridge.message import DeadRow, Row
from bridge.verdict import Cause, Dead, Delivered, Halve, Later, Partly, Pause, Verdict

SUSPECT_FAILURES = 3  # 5xx answers to one batch before it may be halved, or to one row before it is set aside
WHOLE_FAILURES = 10  # unanswered posts of one batch before it may be cut
ASIDE_FAILURES = 5  # answers "later" to the same rows before they are set aside
OVERTAKE_AFTER_SECONDS = 120.0  # of nothing but 5xx: an outage that is shorter never changes the order
OVERTAKE_EVERY = 10  # failures of the single row in front: then one behind it is tried
OVERTAKE_SUSPECT_EVERY = 4  # the same, where others are known to pass
OVERTAKERS_MAX = 8  # not always the same one is tried, as it may be bad too

Delay = Callable[[int], float]  # failures so far → seconds, with jitter


class Effect(Enum):
    """What a verdict says about the destination as a whole."""

    PASSED = auto()  # it took rows
    ANSWERED = auto()  # it works, and took none of these
    FAILED = auto()
    REFUSED = auto()
    NOTHING = auto()  # this was about one row set aside


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to do with the rows of a post, and what the destination did. `refused_body_bytes`: build none so large."""

    effect: Effect
    acked: tuple[int, ...] = ()
    dead: tuple[DeadRow, ...] = ()
    reason: str = ""
    floor_seconds: float | None = None
    throttled: bool = False
    refused_body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    batch: Batch
    failures: int = 0  # posts of just these rows that ended in a passing failure
    doubtful: bool = False  # one of them may have been stored
    suspect: bool = False  # part of a piece that failed while others passed
    failed_at: int | None = None  # how much had passed when it (or what it is part of) first drew a 5xx
    failing_since: float = 0.0  # and when that was
    accused: bool = False  # its twin is being posted; if that passes whole, this one holds the bad row
    overtakes: int = 0  # pieces in front of it, while it is tried before them
    overtook: int = 0  # how often that was in vain
    is_aside: bool = False
    not_before: float = 0.0


class Agenda:
    """The rows that one lane holds. `take_next` and `settle` alternate."""

    def __init__(self, limits: Limits, max_attempts: int = 0) -> None:
        self._room = limits
        self._max_attempts = max_attempts
        self._line: deque[_Piece] = deque()
        self._aside: list[_Piece] = []
        self._out: _Piece | None = None
        self._passes = 0
        self._blames: Counter[int] = Counter()  # by row id: answers that told this row "later"

    def configure(self, limits: Limits, max_attempts: int) -> None:
        """Use other bounds for what is aside from now on."""
        self._room, self._max_attempts = limits, max_attempts

    # ---- what is there ----

    @property
    def row_ids(self) -> tuple[int, ...]:
        """Every row held: in line, aside, or out."""
        out = [self._out] if self._out else []
        return tuple(row_id for piece in (*out, *self._line, *self._aside) for row_id in piece.batch.row_ids)

    @property
    def is_empty(self) -> bool:
        """No row is held."""
        return not (self._out or self._line or self._aside)

    @property
    def is_idle(self) -> bool:
        """Nothing is in line: new rows may be waited for."""
        return not self._line

    @property
    def rows_in_line(self) -> int:
        """How many rows wait to be posted in order."""
        return sum(len(piece.batch.rows) for piece in self._line)

    def wants_rows(self, now: float) -> bool:
        """Nothing is in line, or a row that may be bad is there alone and needs others to be compared with."""
        return not self._line or (len(self._line) == 1 and self._may_be_overtaken(self._line[0], now))

    def wait_seconds(self, now: float) -> float | None:
        """Return how long until there is something to post: 0 now, None if it takes new rows first."""
        times = [piece.not_before for piece in (*list(self._line)[:1], *self._aside)]
        return max(0.0, min(times) - now) if times else None

    def add(self, rows: Iterable[Row]) -> None:
        """Put newly taken rows at the end of the line."""
        if batch_rows := tuple(rows):
            self._line.append(_Piece(Batch(batch_rows)))

    # ---- what to post ----

    def peek(self, limits: Limits) -> Batch | None:
        """Return what `take_next` will give if the post under way goes well: something to prepare meanwhile."""
        return pack(self._line[0].batch.rows, limits) if self._line and not self._line[0].batch.attempts else None

    def take_next(self, now: float, limits: Limits, *, small: bool = False) -> Batch:
        """Return the batch to post; call it when `wait_seconds` is 0. `small`: a probe, one row if that is fair."""
        due_aside = next((piece for piece in self._aside if piece.not_before <= now), None)
        if due_aside and not (small and self._line and self._line[0].not_before <= now):
            self._aside.remove(due_aside)
            self._out = due_aside
        else:
            self._out = self._take_front(now, limits, small=small)
        return self._out.batch

    def _take_front(self, now: float, limits: Limits, *, small: bool) -> _Piece:
        piece = self._line.popleft()
        if not piece.batch.attempts:
            piece = self._cut(piece, len(pack(piece.batch.rows, limits).rows))
        kept_whole = piece.doubtful and piece.failures < WHOLE_FAILURES
        in_the_dark = piece.suspect and piece.failures and not self._passed_since(piece)
        if (small and not kept_whole) or in_the_dark:
            if len(piece.batch.rows) > 1:
                return self._cut(piece, 1)
            if self._line and self._may_be_overtaken(piece, now):
                return self._overtake(piece)
        return piece

    def _cut(self, piece: _Piece, at: int) -> _Piece:
        if at == len(piece.batch.rows):
            return piece
        left, right = split(piece.batch, at)
        self._line.appendleft(replace(piece, batch=right))
        return replace(piece, batch=left, failures=0 if at == 1 else piece.failures, accused=False)

    def _may_be_overtaken(self, piece: _Piece, now: float) -> bool:
        # Only while nothing passed since its first 5xx: as soon as something has, it is tried itself.
        if len(piece.batch.rows) > 1 or not piece.failures or piece.failed_at != self._passes:
            return False
        if piece.suspect:
            return piece.failures % OVERTAKE_SUSPECT_EVERY == 0
        return piece.failures % OVERTAKE_EVERY == 0 and now - piece.failing_since >= OVERTAKE_AFTER_SECONDS

    def _overtake(self, piece: _Piece) -> _Piece:
        """Try a row from behind before the one in front: the first of those that were tried least."""
        self._acquit()
        place = min(range(min(len(self._line), OVERTAKERS_MAX)), key=lambda at: self._line[at].overtook)
        chosen = self._line[place]
        del self._line[place]
        if len(chosen.batch.rows) > 1:
            first, rest = split(chosen.batch, 1)
            self._line.insert(place, replace(chosen, batch=rest))
            chosen = replace(chosen, batch=first)
        self._line.appendleft(replace(piece, failures=piece.failures + 1))
        return replace(chosen, overtakes=place + 1)

    # ---- what a verdict changes ----

    def settle(self, verdict: Verdict, now: float, delay: Delay) -> Settlement:
        """Apply the verdict on the batch that is out."""
        if self._out is None:
            raise RuntimeError("settle() without take_next()")
        piece, self._out = self._out, None
        batch = Batch(piece.batch.rows, piece.batch.attempts + 1)
        match verdict:
            case Delivered():
                return self._delivered(batch)
            case Dead(row):
                self._acquit()
                return self._buried(row)
            case Halve(reason, remember_size):
                if not remember_size:
                    self._acquit()
                self._push_halves(_Piece(batch), accused=not remember_size)
                size_bytes = batch.body_bytes if remember_size else None
                return Settlement(Effect.ANSWERED, reason=reason, refused_body_bytes=size_bytes)
            case Partly():
                return self._partly(replace(piece, batch=batch), verdict, now, delay)
            case Later():
                sent = verdict.cause is not Cause.UNREACHABLE
                return self._later(replace(piece, batch=batch) if sent else piece, verdict, now, delay)
            case Pause(reason):
                self._put_back(replace(piece, batch=batch, doubtful=False))
                return Settlement(Effect.REFUSED, reason=reason)
            case never:
                assert_never(never)

    def _delivered(self, batch: Batch) -> Settlement:
        self._passes += 1
        self._forget(batch.row_ids)
        if self._line and self._line[0].accused:
            self._convict(self._line.popleft())
        return Settlement(Effect.PASSED, acked=batch.row_ids)

    def _buried(self, row: DeadRow) -> Settlement:
        self._passes += 1
        self._forget([row.row_id])
        return Settlement(Effect.ANSWERED, dead=(row,), reason=row.reason)

    def _partly(self, piece: _Piece, verdict: Partly, now: float, delay: Delay) -> Settlement:
        self._acquit()
        again = {row.row_id for row in verdict.later}.union(verdict.unnamed)
        spent = self._blame(verdict.later)
        dead = (*verdict.dead, *spent)
        self._passes += bool(verdict.delivered or verdict.dead)
        self._forget([*verdict.delivered, *(row.row_id for row in dead)])
        again.difference_update(row.row_id for row in spent)
        rest = tuple(row for row in piece.batch.rows if row.row_id in again)
        if rest:
            self._postpone(
                replace(piece, batch=Batch(rest, piece.batch.attempts), failures=piece.failures + 1),
                now + max(verdict.floor_seconds or 0.0, delay(piece.failures)),
            )
        effect = Effect.PASSED if verdict.delivered else Effect.ANSWERED
        if verdict.floor_seconds is not None and rest:
            effect = Effect.FAILED
        return Settlement(
            effect, verdict.delivered, dead, "rows are told to wait", verdict.floor_seconds, effect is Effect.FAILED
        )

    def _later(self, piece: _Piece, verdict: Later, now: float, delay: Delay) -> Settlement:
        if verdict.cause is Cause.IN_PROGRESS:
            pause_seconds = max(verdict.floor_seconds or 0.0, delay(piece.batch.attempts - 1))
            self._put_back(replace(piece, doubtful=True, not_before=now + pause_seconds))
            return Settlement(Effect.ANSWERED, reason=verdict.reason)
        unanswered, server_failed = verdict.cause is Cause.UNANSWERED, verdict.cause is Cause.SERVER_FAILED
        failures = piece.failures + (unanswered or server_failed)
        if piece.is_aside and (unanswered or server_failed):
            return self._keep_aside(replace(piece, failures=failures), verdict, now, delay)
        blamable = server_failed or (unanswered and (piece.suspect or failures >= WHOLE_FAILURES))
        is_enough = failures >= SUSPECT_FAILURES or (piece.suspect and len(piece.batch.rows) > 1)
        if blamable and self._passed_since(piece) and is_enough:
            return self._suspect(replace(piece, failures=failures), verdict, now, delay)
        first_time = blamable and piece.failed_at is None
        self._put_back(
            replace(
                piece,
                failures=failures,
                doubtful=piece.doubtful or unanswered,
                failed_at=self._passes if first_time else piece.failed_at,
                failing_since=now if first_time else piece.failing_since,
            )
        )
        throttled = verdict.cause is Cause.THROTTLED
        return Settlement(
            Effect.FAILED, reason=verdict.reason, floor_seconds=verdict.floor_seconds, throttled=throttled
        )

    # ---- the search for bad rows ----

    def _passed_since(self, piece: _Piece) -> bool:
        return piece.failed_at is not None and self._passes > piece.failed_at

    def _suspect(self, piece: _Piece, verdict: Later, now: float, delay: Delay) -> Settlement:
        """Others pass and this piece does not: halve it, or set a single row aside."""
        self._acquit()
        if len(piece.batch.rows) == 1:
            dead = self._blame_alone(piece, verdict)
            if not dead:
                self._postpone(replace(piece, failures=1, failed_at=self._passes), now + delay(0), aside=True)
            return Settlement(Effect.ANSWERED, dead=dead, reason=verdict.reason)
        self._push_halves(_Piece(piece.batch, suspect=True, failed_at=self._passes), accused=False)
        # No answer at all to a large body, and answers to small ones: most likely the link is too slow for it.
        too_slow = verdict.cause is Cause.UNANSWERED
        size_bytes = piece.batch.body_bytes if too_slow else None
        return Settlement(Effect.ANSWERED, reason=verdict.reason, refused_body_bytes=size_bytes)

    def _keep_aside(self, piece: _Piece, verdict: Later, now: float, delay: Delay) -> Settlement:
        """Rows set aside failed again: this is no news about the destination, and a blame only if others pass."""
        dead: tuple[DeadRow, ...] = ()
        if len(piece.batch.rows) == 1 and self._passed_since(piece):
            dead = self._blame_alone(piece, verdict)
        parts = halve(piece.batch) if len(piece.batch.rows) > 1 else (piece.batch,)
        if not dead:
            not_before = now + delay(piece.failures - 1)
            self._aside += [replace(piece, batch=part, failed_at=self._passes, not_before=not_before) for part in parts]
        return Settlement(Effect.NOTHING, dead=dead, reason=verdict.reason)

    def _blame_alone(self, piece: _Piece, verdict: Later) -> tuple[DeadRow, ...]:
        row_id = piece.batch.rows[0].row_id
        dead = self._blame([DeadRow(row_id, "max_attempts", verdict.status_code, piece.batch.attempts, verdict.reason)])
        self._forget(row.row_id for row in dead)
        return dead

    def _blame(self, rows: Iterable[DeadRow]) -> tuple[DeadRow, ...]:
        """Count an answer against each row; return those that have no attempt left."""
        rows = tuple(rows)
        self._blames.update(row.row_id for row in rows)
        if not self._max_attempts:
            return ()
        return tuple(
            row._replace(reason="max_attempts") for row in rows if self._blames[row.row_id] >= self._max_attempts
        )

    def _forget(self, row_ids: Iterable[int]) -> None:
        if self._blames:  # hardly ever
            for row_id in row_ids:
                self._blames.pop(row_id, None)

    def _push_halves(self, piece: _Piece, *, accused: bool) -> None:
        left, right = halve(piece.batch)
        self._line.appendleft(replace(piece, batch=right, accused=accused))
        self._line.appendleft(replace(piece, batch=left, accused=False))

    def _convict(self, piece: _Piece) -> None:
        """Halve at once a piece that must hold the bad row, as its twin passed whole; a row alone is still posted."""
        if len(piece.batch.rows) > 1:
            self._push_halves(piece, accused=True)
        else:
            self._line.appendleft(replace(piece, accused=False))

    def _acquit(self) -> None:
        """Accuse nobody: the refusal is explained, or can no longer be laid at one half's door."""
        for at, piece in enumerate(self._line):
            if piece.accused:
                self._line[at] = replace(piece, accused=False)

    # ---- back to the line ----

    def _put_back(self, piece: _Piece) -> None:
        if piece.is_aside:
            self._aside.append(piece)
        else:
            overtook = piece.overtook + bool(piece.overtakes)
            self._line.insert(piece.overtakes, replace(piece, overtakes=0, overtook=overtook))

    def _postpone(self, piece: _Piece, not_before: float, *, aside: bool = False) -> None:
        """Keep rows that have a delay of their own: in front of all others, or aside once that would hold these up."""
        holds_up = aside or piece.failures >= ASIDE_FAILURES
        is_aside = piece.is_aside or (holds_up and self._has_room_aside(piece))
        self._put_back(replace(piece, not_before=not_before, is_aside=is_aside))

    def _has_room_aside(self, piece: _Piece) -> bool:
        rows = [row for held in (*self._aside, piece) for row in held.batch.rows]
        return len(pack(rows, self._room).rows) == len(rows)
