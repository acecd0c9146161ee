"""The verbs of the queue that `bridge.disk_queue` describes; `connection.py` is what they stand on."""

from __future__ import annotations

import time
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Any

import orjson

from bridge.disk_queue.connection import DELETE_ROWS, QueueConnection
from bridge.disk_queue.file import DAMAGE_HINT, FILE_NAME, INCREMENTAL
from bridge.disk_queue.ledger import Entry
from bridge.disk_queue.receipts import ReceiptState
from bridge.disk_queue.rows import DEAD, DELIVERED, READY, TIME_MAX, Counts, NewRow, Noted, SavedRow, Span, merged, runs
from bridge.disk_queue.selection import Columns, Listed, Selection, bare_page, columns_page, ids_without_index, page
from bridge.errors import QueueDamagedError
from bridge.loss import Gone, LossReason, by_topic
from bridge.message import CLOCK_SET_SINCE, DeadRow, Row, event_id, event_subject, new_row, reads_as_ours, split

_INSERT_ROWS_STEPS = (512, 64, 8, 1)  # one prepared statement for each; 512 x 6 values stay far below SQLite's 32,766
_TIDY_ROWS = 2000  # rows deleted in one step of housekeeping
_WAY_ROWS, _WAY_BYTES = 256, 1 << 20  # deleted at a time, if not more: a few would cost each transaction six pages
SPAN_ROWS_MIN = 256  # delivered rows without a gap that are noted instead of marked one by one
_TOLD_ROWS_NOTE = "loss_event_rows"
_DEAD_MAX = 10_000  # dead rows that are kept
_EXPIRED_MAX = 2000  # rows given up in one take because they expired
_VACUUM_PAGES = 256  # pages given back to the file system in one step
_REDATE_ROWS, _REDATE_BYTES = 500, 4 << 20  # looked at in one step of putting times right
_PUT_BACK = (
    "INSERT INTO ack_queue_default (_id, data, timestamp, status, crc, packet_id, event_id, settled_at, expires_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UNSET_NOTE = "clock_unset_from_row"
_MARK = "UPDATE ack_queue_default SET status = ?, settled_at = ?"


class DiskQueue(QueueConnection):
    """The queue on disk; every verb runs inside `transaction()` and is durable when that is left."""

    # --- the verbs ---------------------------------------------------------------------------------------------

    def put_rows(self, rows: Sequence[NewRow]) -> None:
        """Store new rows, ready, in the given order."""
        if rows and rows[0].received_at < CLOCK_SET_SINCE and self.note(_UNSET_NOTE) is None:
            self.write_note(_UNSET_NOTE, str(self.newest_id() + 1))
        newest = self._state.newest
        self._leaps.look(newest)
        if not rows:
            return
        columns = _columns(rows)
        start = 0
        for step in _INSERT_ROWS_STEPS:
            # Many rows in one statement: sqlite3 gives up the interpreter lock once a statement, not once a row.
            while len(rows) - start >= step:
                values = _values(columns, start, start + step)
                newest = self._conn.execute(_insert_sql(step, tuple(columns)), values).lastrowid or newest
                start += step
        self._become(waiting=self._state.waiting + len(rows), newest=newest)
        self._leaps.stored(newest, columns["timestamp"])
        if "expires_at" in columns or min(columns["timestamp"]) < CLOCK_SET_SINCE:
            self._recent.clear()  # when it is taken it may have expired, or get its right time
        else:
            self._recent.add(columns["data"], newest, self._state.cursor)

    def take(self, messages_max: int, bytes_max: int, *, batch: int = 1, partly: bool = True) -> tuple[Row, ...]:
        """Take the oldest ready rows, at most so many and (but for the first) so many bytes; () if none is ready.

        Batches open at the last stop, and released rows, come first and in their old company; those that never left
        come in whole batches of `batch` rows if there is one, fewer only if `partly`. Rows that fail their checksum or
        cannot be decoded become dead here and are not returned. Rows that expired while they waited are given up
        here, at most `_EXPIRED_MAX` of them: then this may return () although more are ready.
        """
        if self._holds:
            return ()
        while self._state.returned:
            (first, last), *rest = self._state.returned
            self._state = replace(self._state, returned=tuple(rest))
            if rows := self._take_span(first, last, messages_max, bytes_max):
                return rows
        ready = min(self.ready_rows, messages_max)
        messages_max = ready if partly and ready < batch else ready - ready % batch
        if not messages_max:
            return ()
        if rows := self._recent.take(self._state.cursor, messages_max, bytes_max):
            self._fly(rows, rows[-1].row_id)
            return rows
        before = self._state.waiting
        self._leaps.look(self._state.newest)
        rows = self._take_span(self._state.cursor + 1, 2**62, messages_max, bytes_max, now=time.time())
        if not rows and self._state.waiting == before and self.has_ready:
            # Cannot happen as long as the cursor's invariant holds; if it ever does not, no row may be stuck.
            rows = self._take_span(0, 2**62, messages_max, bytes_max)
            if not rows and self.has_ready:
                raise QueueDamagedError(
                    f"{self._state.waiting - self._state.taken} waiting rows are not to be found in the index",
                    DAMAGE_HINT,
                )
        return rows

    @property
    def ready_rows(self) -> int:
        """How many rows can be taken."""
        return 0 if self._holds else self._state.waiting - self._state.taken

    @property
    def has_ready(self) -> bool:
        """Tell whether any row can be taken."""
        return self.ready_rows > 0

    def _take_span(self, first: int, last: int, messages_max: int, bytes_max: int, now: float = 0.0) -> tuple[Row, ...]:
        taken = self._taken_ids() if first <= self._state.cursor else frozenset()  # none is behind the cursor
        rows: list[Row] = []
        bad: list[DeadRow] = []
        expired: list[int] = []
        size_bytes, at, full = 0, first - 1, False
        cursor = self._conn.execute(
            "SELECT _id, CAST(data AS BLOB), crc, timestamp, expires_at FROM ack_queue_default INDEXED BY edge_ready"
            " WHERE status < 2 AND _id BETWEEN ? AND ? ORDER BY _id",
            (first, last),
        )
        noted = [span for span in self._state.noted if span.first <= last and span.last >= first]
        for row_id, data, crc, received_at, expires_at in cursor:
            if row_id in taken or (noted and any(span.first <= row_id <= span.last for span in noted)):
                continue
            if expires_at is not None and _has_expired(expires_at, now - self._leaps.seconds(row_id)):
                if len(expired) >= _EXPIRED_MAX:
                    break
                expired.append(row_id)
                continue
            if full or len(rows) >= messages_max or (rows and size_bytes + len(data or b"") > bytes_max):
                full = True
                break
            at = row_id
            checked = self._checked(row_id, data, crc, received_at)
            if isinstance(checked, DeadRow):
                bad.append(checked)
            else:
                rows.append(checked)
                size_bytes += len(checked.data)
        cursor.close()
        if full and last <= self._state.cursor:
            self._state = replace(self._state, returned=merged([(at + 1, last), *self._state.returned]))
        if bad:
            self.reject(bad)
        self._give_up(expired, LossReason.EXPIRED)
        if rows:
            self._fly(rows, at)
        return tuple(rows)

    def _fly(self, rows: Sequence[Row], at: int) -> None:
        """Remember that these rows left together, the last one looked at being `at`."""
        span = Span(rows[0].row_id, rows[-1].row_id, frozenset([row.row_id for row in rows]))
        self._state = replace(
            self._state,
            flying=(*self._state.flying, span),
            cursor=max(self._state.cursor, at, span.last),
            unsent=tuple(kept for kept in self._state.unsent if kept[1] < span.first or span.last < kept[0]),
        )

    def _checked(self, row_id: int, data: bytes | None, crc: Any, received_at: Any) -> Row | DeadRow:
        if crc is not None and data is not None:
            if zlib.crc32(data) != crc:
                return DeadRow(row_id, "crc")
            if reads_as_ours(data):
                row = new_row((row_id, data))
                return self._put_right(row) if _is_undated(received_at) and self._is_unsent(row_id) else row
        is_time = isinstance(received_at, (int, float)) and 0 <= received_at < TIME_MAX
        event = None if data is None else self._adopt(data, float(received_at) if is_time else 0.0)
        if event is None:
            return DeadRow(row_id, "undecodable")
        if event == data and crc is not None:
            return Row(row_id, event)
        self._conn.execute(
            "UPDATE ack_queue_default SET data = ?, crc = ? WHERE _id = ?", (event, zlib.crc32(event), row_id)
        )
        self._changed = True
        return Row(row_id, event)

    def _is_unsent(self, row_id: int) -> bool:
        """Tell whether nobody has seen these bytes: what may have been posted keeps its bytes, for its key's sake."""
        return row_id > self._state.cursor or any(first <= row_id <= last for first, last in self._state.unsent)

    def _put_right(self, row: Row) -> Row:
        redated = self._redate(row.data)
        if redated is None:
            return row
        event, received_at = redated
        self._conn.execute(
            "UPDATE ack_queue_default SET data = ?, crc = ?, timestamp = ? WHERE _id = ?",
            (event, zlib.crc32(event), received_at, row.row_id),
        )
        self._changed = True
        return Row(row.row_id, event)

    def put_times_right(self) -> bool:
        """Date rows that came before the clock was set and wait untouched: a small step; tells if more may follow.

        Call it only once the clock is set. Rows of an earlier boot keep their mark.
        """
        if self.note(_UNSET_NOTE) is None:
            return False
        looked_at, size_bytes = 0, 0
        from_row = self.noted(_UNSET_NOTE, int, 1)
        rows: list[Row] = []
        cursor = self._conn.execute(
            "SELECT _id, CAST(data AS BLOB), crc, timestamp FROM ack_queue_default INDEXED BY edge_ready"
            " WHERE status < 2 AND _id >= ? ORDER BY _id LIMIT ?",
            (max(from_row, self._state.cursor + 1), _REDATE_ROWS),
        )
        for row_id, data, crc, received_at in cursor:
            looked_at, size_bytes = row_id, size_bytes + len(data or b"")
            if data is not None and zlib.crc32(data) == crc and _is_undated(received_at):
                rows.append(Row(row_id, data))
            if size_bytes > _REDATE_BYTES:
                break
        cursor.close()
        for row in rows:
            self._put_right(row)
        if looked_at:
            self.write_note(_UNSET_NOTE, str(looked_at + 1))
        else:
            self._conn.execute("DELETE FROM edge_note WHERE key = ?", (_UNSET_NOTE,))
            self._changed = True
        return looked_at > 0

    def ack_rows(self, row_ids: Sequence[int]) -> None:
        """Taken rows become delivered: an answer of the cloud covers them.

        On a full disk they are deleted at once: that frees pages, while marking them makes the database grow.
        """
        self.receipts.settle(row_ids, ReceiptState.DELIVERED)
        if self._reserve.spent:
            self._settle(row_ids, "DELETE FROM ack_queue_default")
            self._delete(row_ids)  # and why they once were dead, if somebody requeued them
            self._become(waiting=self._state.waiting - len(row_ids))
            return
        self._note_delivered(row_ids)
        self._become(waiting=self._state.waiting - len(row_ids), delivered=self._state.delivered + len(row_ids))

    def _note_delivered(self, row_ids: Sequence[int]) -> None:
        """Mark few rows at once; note many as a span: under load they are deleted before anybody looks at them."""
        few: list[int] = []
        noted: list[Noted] = []
        now = time.time()
        for first, last in runs(row_ids):
            if last - first + 1 < SPAN_ROWS_MIN:
                few += range(first, last + 1)
            else:
                noted.append(Noted(first, last, now))
        if few:
            self._settle(few, _MARK, DELIVERED, now)
        if noted:
            taken = self._state.taken
            self._forget(frozenset(row_ids))
            self._check_waited(row_ids, len(few) + taken - self._state.taken)
            self.renote([*self._state.noted, *noted])

    def reject(self, dead: Sequence[DeadRow]) -> None:
        """Rows become dead: kept with the reason, and written in the loss ledger in this very transaction (I9)."""
        now = time.time()
        self._settle([row.row_id for row in dead], _MARK, DEAD, now)
        self._conn.executemany(
            "INSERT INTO edge_dead VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (row_id) DO UPDATE"
            " SET reason = excluded.reason, status_code = excluded.status_code, at = excluded.at,"
            # a row that was requeued keeps the attempts of its former life
            " attempts = attempts + excluded.attempts, excerpt = excluded.excerpt",
            [(row.row_id, row.reason, row.status_code, row.attempts, now, row.excerpt) for row in dead],
        )
        told_rows = self._told_rows()  # a loss event that is refused is no loss
        details = {row.row_id: row.reason + (f" (HTTP {row.status_code})" if row.status_code else "") for row in dead}
        for detail in dict.fromkeys(details.values()):
            row_ids = [i for i, its_detail in details.items() if its_detail == detail and i not in told_rows]
            self._lose(LossReason.DEAD, row_ids, detail)
            self.receipts.settle(row_ids, ReceiptState.DEAD, detail)
        self._become(waiting=self._state.waiting - len(dead), dead=self._state.dead + len(dead))
        self.remove_oldest_dead(self._state.dead - _DEAD_MAX)

    def release(self, row_ids: Sequence[int], *, sent: bool = True) -> None:
        """Taken rows become ready again, in their old place and company. `sent`: some of them may have been posted."""
        gone = frozenset(row_ids)
        back = [(min(ids), max(ids)) for span in self._state.flying if (ids := span.ids & gone)]
        self._forget(gone)
        unsent = self._state.unsent if sent else (*self._state.unsent, *back)
        self._state = replace(self._state, returned=merged([*self._state.returned, *back]), unsent=unsent)

    def _settle(self, row_ids: Sequence[int], statement: str, *values: float) -> None:
        changed = sum(
            self._conn.execute(f"{statement} WHERE _id BETWEEN ? AND ? AND status < 2", (*values, first, last)).rowcount
            for first, last in runs(row_ids)
        )
        self._check_waited(row_ids, changed)
        self._forget(frozenset(row_ids))

    def _check_waited(self, row_ids: Sequence[int], waited: int) -> None:
        if waited != len(row_ids):
            raise QueueDamagedError(
                f"{len(row_ids)} rows were to be settled but {waited} were waiting in {self.folder / FILE_NAME}",
                "has another program written to the file? Stop it and start the bridge again",
            )

    def _forget(self, row_ids: frozenset[int]) -> None:
        flying: list[Span] = []
        for span in self._state.flying:
            if span.ids.isdisjoint(row_ids):
                flying.append(span)
            elif ids := span.ids - row_ids:
                flying.append(Span(min(ids), max(ids), ids))
        self._state = replace(self._state, flying=tuple(flying))

    def _lose(self, reason: LossReason, row_ids: Sequence[int], detail: str = "") -> None:
        """Write rows that are still there in the ledger."""
        gone: list[Gone] = []
        for first, last in runs(row_ids):
            gone += [
                _gone(data, received_at)
                for data, received_at in self._conn.execute(
                    "SELECT CAST(data AS BLOB), CAST(timestamp AS REAL) FROM ack_queue_default"
                    " WHERE _id BETWEEN ? AND ? ORDER BY _id",
                    (first, last),
                )
            ]
        for loss in by_topic(reason, gone, detail):
            self.record_loss(loss)

    def drop_oldest(
        self, messages_min: int, bytes_min: int, reason: LossReason, received_before: float | None = None
    ) -> tuple[int, int]:
        """Give up the oldest ready rows, at least so many and so many bytes, written in the loss ledger (I9).

        With `received_before` at most `messages_min` of those that came before then (earlier still by as much as the
        clock was put forward since). Returns messages and bytes.
        """
        self._leaps.look(self._state.newest)
        spared = self._taken_ids().union(self._told_rows())
        row_ids: list[int] = []
        freed_bytes = 0
        rows = self._conn.execute(
            "SELECT _id, LENGTH(data), CAST(timestamp AS REAL) FROM ack_queue_default INDEXED BY edge_ready"
            " WHERE status < 2 ORDER BY _id"
        )
        for row_id, size_bytes, received_at in rows:
            if len(row_ids) >= messages_min and freed_bytes >= bytes_min:
                break
            if received_before is not None and received_at >= received_before - self._leaps.seconds(row_id):
                break
            if row_id in spared or self._noted_span(row_id):
                continue
            if received_before is None or received_at > CLOCK_SET_SINCE:
                row_ids.append(row_id)
                freed_bytes += size_bytes or 0
        rows.close()
        self._give_up(row_ids, reason)
        return len(row_ids), freed_bytes

    def _give_up(self, row_ids: Sequence[int], reason: LossReason) -> None:
        """Delete waiting rows, after the ledger has them."""
        self._recent.clear()
        self._lose(reason, row_ids)
        self._delete(row_ids)
        self.receipts.settle(row_ids, ReceiptState.DROPPED, reason.words)
        if row_ids:
            self._become(waiting=self._state.waiting - len(row_ids))

    def _delete(self, row_ids: Sequence[int]) -> None:
        for first, last in runs(row_ids):
            self._conn.execute(DELETE_ROWS, (first, last))
            self._conn.execute("DELETE FROM edge_dead WHERE row_id BETWEEN ? AND ?", (first, last))

    # --- by the operator's hand ----------------------------------------------------------------------------------

    def select(self, selection: Selection, after_id: int) -> tuple[list[Listed], int | None]:
        """Return a page of the selected rows; `bridge.disk_queue.selection` says how."""
        self.mark_noted()
        return page(self._conn, selection, after_id, self._taken_ids())

    def select_bare(self, selection: Selection, after_id: int) -> tuple[list[bytes], int | None]:
        """Return a page of the stored bytes of the selected rows."""
        self.mark_noted()
        return bare_page(self._conn, selection, after_id, self._taken_ids())

    def select_columns(self, selection: Selection, after_id: int) -> tuple[Columns, int | None]:
        """Return a page of the selected rows as columns."""
        self.mark_noted()
        return columns_page(self._conn, selection, after_id, self._taken_ids())

    def ids_without_index(self, after_id: int) -> tuple[list[str], int | None]:
        """Return a page of the ids by which `find_events` does not find: those that the bridge made."""
        return ids_without_index(self._conn, after_id)

    def row_range(self) -> tuple[int, int]:
        """Return the lowest and the highest id of the rows that are there; (0, 0) if none is."""
        ends = (self._conn.execute(f"SELECT {end}(_id) FROM ack_queue_default").fetchone()[0] for end in ("MIN", "MAX"))
        lowest, highest = (end or 0 for end in ends)
        return lowest, highest

    def requeue(self, row_ids: Sequence[int]) -> None:
        """Dead rows become ready again, in their old place; why they died stays written."""
        for first, last in runs(row_ids):
            self._conn.execute(
                "UPDATE ack_queue_default SET status = 0, settled_at = NULL WHERE _id BETWEEN ? AND ? AND status = 9",
                (first, last),
            )
        self._become(waiting=self._state.waiting + len(row_ids), dead=self._state.dead - len(row_ids))
        self.bring_forward(row_ids)

    def discard(self, row_ids: Sequence[int]) -> None:
        """Give up ready rows because the operator said so."""
        self._give_up(row_ids, LossReason.DISCARDED)

    def remove_dead(self, row_ids: Sequence[int]) -> None:
        """Delete dead rows; the ledger says that they cannot be requeued any more."""
        self._lose(LossReason.DEAD_REMOVED, row_ids)
        self._delete(row_ids)
        self._become(dead=self._state.dead - len(row_ids))

    def remove_oldest_dead(self, count: int) -> int:
        """Delete at most so many dead rows, oldest first; return how many."""
        rows = self._conn.execute(
            "SELECT _id FROM ack_queue_default INDEXED BY edge_settled WHERE status >= 5 AND status = 9"
            " ORDER BY _id LIMIT ?",
            (max(0, count),),
        ).fetchall()
        if rows:
            self.remove_dead([row_id for (row_id,) in rows])
        return len(rows)

    def remove_delivered(self, row_ids: Sequence[int]) -> None:
        """Delete delivered rows before their time."""
        self._delete(row_ids)
        self._become(delivered=self._state.delivered - len(row_ids))

    # --- housekeeping --------------------------------------------------------------------------------------------

    def note_told(self, row_ids: Iterable[int]) -> None:
        """Remember which rows tell the cloud of all losses so far: bounds spare them, and if they die it is no loss."""
        self.ledger.mark_told()
        self.write_note(_TOLD_ROWS_NOTE, orjson.dumps(list(row_ids)).decode())

    def _told_rows(self) -> list[int]:
        return self.noted(_TOLD_ROWS_NOTE, _row_ids, [])

    def told_rows_wait(self, refused_after: float) -> bool:
        """Tell whether the last loss events are still waiting, or were refused for good since then."""
        marks = ",".join(map(str, self._told_rows()))
        waits = "(status < 2 OR (status = 9 AND settled_at > ?))"
        rows = self._conn.execute(
            f"SELECT _id FROM ack_queue_default WHERE _id IN ({marks}) AND {waits}", (refused_after,)
        ).fetchall()
        return any(self._noted_span(row_id) is None for (row_id,) in rows)

    def excess(self, keep_messages: int) -> int:
        """Return how many delivered rows there are above the number to be kept."""
        return max(0, self._state.delivered - keep_messages)

    def make_way(self, rows: int, keep_messages: int) -> None:
        """Delete so many of the delivered rows above the number to be kept, or all; call it before `put_rows`.

        The new rows take their pages in the same transaction; what is deleted in one of its own, or beyond what comes,
        is written for nothing. More goes only where few come, many at a time, and after a burst, by an eighth.
        """
        excess = self.excess(keep_messages)
        if not excess:
            return
        counts = self.counts()
        least = min(_WAY_ROWS, _WAY_BYTES * sum(counts[:4]) // counts.size_bytes)
        if excess < least:
            return
        more = -(-rows // 8) if excess > _TIDY_ROWS else 0
        goal = self._state.delivered - min(max(rows + more, least), excess)
        while self._state.delivered > goal and self.tidy(2.0**62, keep_messages, self._state.delivered - goal):
            pass

    def tidy(self, keep_seconds: float, keep_messages: int, rows_max: int = _TIDY_ROWS) -> bool:
        """Delete delivered rows that are too old or too many, oldest first: a small step; tells if more may follow."""
        marked = self._state.delivered - sum(span.rows for span in self._state.noted)
        oldest = self._conn.execute(
            "SELECT _id, settled_at FROM ack_queue_default INDEXED BY edge_settled"
            " WHERE status >= 5 AND status = 5 ORDER BY _id LIMIT ?",  # the index wants its own words
            (min(rows_max, marked),),
        ).fetchall()
        # Rows are settled nearly in order, so the first that is young enough is followed by younger ones.
        settled_before = time.time() - keep_seconds
        too_old = next((i for i, row in enumerate(oldest) if row[1] > settled_before), len(oldest))
        count = max(self.excess(keep_messages), too_old)
        noted_from = self._state.noted[0].first if self._state.noted else 2**63
        doomed = [row_id for row_id, _ in oldest[:count] if row_id < noted_from]
        if not doomed:
            return self._tidy_noted(settled_before, keep_messages, rows_max)
        self.remove_delivered(doomed)
        return len(doomed) == rows_max or bool(self._state.noted)

    def _tidy_noted(self, settled_before: float, keep_messages: int, rows_max: int) -> bool:
        """Delete what is too old or too many of the oldest noted span; tells if more may follow."""
        if not self._state.noted:
            return False
        oldest, *others = self._state.noted
        is_old = oldest.settled_at <= settled_before
        count = min(oldest.rows, rows_max, oldest.rows if is_old else self.excess(keep_messages))
        if count:
            self._conn.execute(DELETE_ROWS, (oldest.first, oldest.first + count - 1))
            self._become(delivered=self._state.delivered - count)
            self.renote([oldest._replace(first=oldest.first + count), *others])
        return count > 0

    def shrink(self) -> None:
        """Give some free pages back to the file system, if more than a quarter of the file is free."""
        free = self._pragma("freelist_count")
        if free > _VACUUM_PAGES and free * 4 > self._pragma("page_count"):
            self.give_back_pages(_VACUUM_PAGES)

    def give_back_pages(self, pages: int) -> int:
        """Give at most so many free pages at the file's end back to the file system; return how many.

        Rows of the last pages move to free places in front: that is written to the WAL, and nothing else needs room.
        """
        before = self._pragma("freelist_count")
        for _ in range(min(pages, before)):  # one at a time: sqlite3 stops the pragma after its first step
            self._conn.execute("PRAGMA incremental_vacuum(1)")
        self._changed = True
        return before - self._pragma("freelist_count")

    def free_pages(self) -> tuple[int, int]:
        """Return how many pages of the file are free, and the bytes of one."""
        return self._pragma("freelist_count"), self._pragma("page_size")

    @property
    def gives_back(self) -> bool:
        """Tell whether the file can be made smaller step by step; a file that the stock library made cannot."""
        return self._pragma("auto_vacuum") == INCREMENTAL

    # --- after a damage ----------------------------------------------------------------------------------------

    def withhold(self, holds: bool) -> None:  # noqa: FBT001 - a switch
        """While it holds nothing can be taken: older rows are on their way back (I6)."""
        self._holds = holds

    def inherit(
        self,
        entries: Sequence[Sequence[Any]],
        totals: Sequence[tuple[str, int, int]],
        notes: Sequence[tuple[str, str]],
        batches: Sequence[tuple[int, int]],
    ) -> None:
        """Take over what a damaged file knew beside its rows: the ledger, the notes, what was in flight."""
        self.ledger.inherit(entries, totals)
        self._conn.executemany("INSERT OR IGNORE INTO edge_note VALUES (?, ?)", notes)
        newest = max((last for _, last in batches), default=0)
        state = self._state
        self._state = replace(
            state, returned=merged([*batches, *state.returned]), cursor=max(state.cursor, newest if self._holds else 0)
        )
        self._changed = True

    def put_back(self, row: SavedRow, death: tuple[Any, ...] | None) -> int | None:
        """Store a salvaged row under its old id; return the id under which the queue has that message now.

        `death`: why it is (or, requeued, once was) dead: reason, HTTP status, attempts, time, excerpt. None if this
        very row is there already. A waiting row whose message came again meanwhile is not stored twice.
        """
        row_id = row.row_id
        if row_id is not None and (there := self.stored_event(row_id)) is not None:
            if there == row.data:
                return None
            row_id = None  # two rows under one id: one of the ids is damaged
        if row.event_id and row.status == READY and (twin := self._twin(row)):
            return twin
        stored_id = self._conn.execute(_PUT_BACK, (row_id, *row[1:])).lastrowid or 0
        if death:
            self._conn.execute("INSERT OR IGNORE INTO edge_dead VALUES (?, ?, ?, ?, ?, ?)", (stored_id, *death))
        state = self._state
        self._become(
            waiting=state.waiting + (row.status == READY),
            delivered=state.delivered + (row.status == DELIVERED),
            dead=state.dead + (row.status == DEAD),
            newest=max(state.newest, stored_id),
        )
        return stored_id

    def bring_forward(self, row_ids: Sequence[int]) -> None:
        """Rows that became ready behind what was taken already: they are next; batches between them stay as they were.

        One span over all that no batch stands between: each is written with every change until it is taken.
        """
        batches = merged(self._state.returned)
        late: dict[int, list[int]] = {}
        for row_id in row_ids:
            following = bisect_left(batches, row_id, key=itemgetter(1))
            is_in_batch = following < len(batches) and batches[following][0] <= row_id
            if row_id <= self._state.cursor and not is_in_batch:
                late.setdefault(following, []).append(row_id)
        spans = [(min(ids), max(ids)) for ids in late.values()]
        self._state = replace(self._state, returned=merged([*batches, *spans]))

    def _twin(self, row: SavedRow) -> int | None:
        """Return the row that holds the same event of the same producer, if there is one."""
        twins = self._conn.execute(
            "SELECT _id, CAST(data AS BLOB) FROM ack_queue_default INDEXED BY edge_event"
            " WHERE event_id = ? AND event_id IS NOT NULL AND status <> 9",
            (row.event_id,),
        )
        return next((row_id for row_id, data in twins if split(data)[1] == split(row.data or b"")[1]), None)

    # --- questions ---------------------------------------------------------------------------------------------

    def find_events(
        self, event_ids: Iterable[str], view: Callable[[bytes], bytes] = bytes, *, dead_too: bool = False
    ) -> dict[str, bytes]:
        """Return what `view` makes of the stored events that carry one of these producer's ids.

        Waiting ones, and those delivered and still kept. One event at a time is in memory.
        """
        living = "" if dead_too else " AND status <> 9"
        wanted = list(dict.fromkeys(event_ids))
        found: dict[str, bytes] = {}
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = self._conn.execute(
                "SELECT event_id, CAST(data AS BLOB) FROM ack_queue_default INDEXED BY edge_event"
                f" WHERE event_id IN ({marks}) AND event_id IS NOT NULL{living}",
                some,
            )
            found.update((own_id, view(data)) for own_id, data in rows)
        return found

    def find_row(self, own_id: str) -> int | None:
        """Return the row that carries this producer's id; dead ones do not count."""
        row = self._conn.execute(
            "SELECT _id FROM ack_queue_default INDEXED BY edge_event"
            " WHERE event_id = ? AND event_id IS NOT NULL AND status <> 9 ORDER BY _id DESC LIMIT 1",
            (own_id,),
        ).fetchone()
        return row[0] if row else None

    def is_delivered(self, row_id: int) -> bool:
        """Tell whether this row is delivered and kept."""
        row = self._conn.execute("SELECT status FROM ack_queue_default WHERE _id = ?", (row_id,)).fetchone()
        return row is not None and (row[0] == DELIVERED or self._noted_span(row_id) is not None)

    def arrivals(self, rows_max: int, after_id: int) -> dict[int, int]:
        """Return packet id → row id of the last rows stored (the newest wins), at most so many, after that row."""
        newest = self.newest_id()
        return dict(
            self._conn.execute(
                "SELECT packet_id, _id FROM ack_queue_default WHERE _id > ? AND packet_id IS NOT NULL ORDER BY _id",
                (max(after_id, newest - rows_max),),
            )
        )

    def stored_event(self, row_id: int) -> bytes | None:
        """Return the stored event of a row, or None if the row is gone."""
        row = self._conn.execute("SELECT CAST(data AS BLOB) FROM ack_queue_default WHERE _id = ?", (row_id,)).fetchone()
        return row[0] if row else None

    def losses(self) -> list[Entry]:
        """Return the loss ledger, oldest first."""
        return self.ledger.entries()

    def dead_rows(self, rows_max: int = -1) -> list[DeadRow]:
        """Return why each dead row is dead, of the newest so many, oldest first."""
        rows = self._conn.execute(
            "SELECT row_id, CAST(reason AS TEXT), CAST(status_code AS INTEGER), CAST(attempts AS INTEGER),"
            " CAST(excerpt AS TEXT) FROM ack_queue_default INDEXED BY edge_settled"
            " JOIN edge_dead ON row_id = _id WHERE status >= 5 AND status = 9 ORDER BY _id DESC LIMIT ?",
            (rows_max,),
        )
        return [DeadRow(*row) for row in rows][::-1]

    def counts(self) -> Counts:
        """Return the counts; O(1)."""
        state = self._state
        taken = state.taken
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return Counts(state.waiting - taken, taken, state.delivered, state.dead, pages * self._pragma("page_size"))

    def oldest_received_at(self) -> float | None:
        """Return when the oldest waiting row was received; O(log n) for each span that is only noted."""
        after_id = 0
        while row := self._conn.execute(
            "SELECT CAST(timestamp AS REAL), _id FROM ack_queue_default INDEXED BY edge_ready"
            " WHERE status < 2 AND _id > ? ORDER BY _id LIMIT 1",
            (after_id,),
        ).fetchone():
            if (span := self._noted_span(row[1])) is None:
                return float(row[0])
            after_id = span.last
        return None

    def _noted_span(self, row_id: int) -> Noted | None:
        return next((span for span in self._state.noted if span.first <= row_id <= span.last), None)

    def _taken_ids(self) -> frozenset[int]:
        return frozenset().union(*(span.ids for span in self._state.flying))


def _is_undated(received_at: Any) -> bool:
    """Tell whether a row came before the clock was set; what another program wrote for a time need not be one."""
    return isinstance(received_at, (int, float)) and received_at < CLOCK_SET_SINCE


def _has_expired(expires_at: Any, now: float) -> bool:
    """Tell whether a row is too late; one that came before the clock was set never is: it counted from then."""
    return isinstance(expires_at, float) and CLOCK_SET_SINCE < expires_at <= now


def _gone(data: bytes | None, received_at: Any) -> Gone:
    is_time = isinstance(received_at, float) and 0 <= received_at < TIME_MAX
    at = received_at if is_time else None
    try:
        return Gone(event_id(data), event_subject(data), at) if data else Gone(None, None, at)
    except (ValueError, TypeError, KeyError):  # what cannot be decoded has no id to tell
        return Gone(None, None, at)


def _row_ids(note: str) -> list[int]:
    return [int(row_id) for row_id in orjson.loads(note)]


@cache
def _insert_sql(rows: int, columns: tuple[str, ...]) -> str:
    """Return the statement that stores so many rows."""
    marks = f"({'?,' * len(columns)}{READY})"
    return f"INSERT INTO ack_queue_default ({','.join(columns)},status) VALUES {','.join([marks] * rows)}"


def _columns(rows: Sequence[NewRow]) -> dict[str, Sequence[Any]]:
    """Return the values of rows by columns, without those that none has: each value is a tenth of a microsecond."""
    events, times, packet_ids, own_ids, expiries = zip(*rows, strict=True)
    columns = {"data": events, "timestamp": times, "crc": [*map(zlib.crc32, events)], "packet_id": packet_ids}
    rare = {"event_id": own_ids, "expires_at": expiries}
    return columns | {name: column for name, column in rare.items() if column.count(None) < len(rows)}


def _values(columns: dict[str, Sequence[Any]], start: int, stop: int) -> list[Any]:
    """Return the values of some rows as the statement takes them.

    Bytes as a bytearray: for each `bytes` sqlite3 looks for an adapter, in vain and for twice as long as a copy takes.
    """
    some = {name: column[start:stop] for name, column in columns.items()}
    some["data"] = [*map(bytearray, some["data"])]
    return list(chain.from_iterable(zip(*some.values(), strict=True)))
