"""The operator's commands on the queue, one table behind the live and the offline way: a page of answers at a time.

`Request.parse` checks what was asked, away from the disk; `answer` is a verb that runs inside a transaction and
returns a page small enough not to hold up intake (I7). Whoever asks goes on with `after` until `next` is None.
What destroys writes the loss ledger in the same transaction (I9). Rows in flight are never touched.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from bridge.disk_queue.ledger import Entry
from bridge.disk_queue.queue import DiskQueue
from bridge.disk_queue.selection import STATES, Listed, Selection
from bridge.errors import OperatorError
from bridge.loss import LossReason
from bridge.topics import filter_fault, overlap

_ENTRIES = 200  # of the ledger in a page
_STEP_PAGES = 256  # given back to the file system at once: a MiB
_AFTER_MAX = 2**63 - 1  # more is no number of SQLite's
_NOT_UNDERSTOOD = "the request is not understood", "is the command of the same version as the bridge?"
Item = dict[str, Any]


class Page(NamedTuple):
    """Some of the answer, and after what to go on; None: that was all. `body`: bytes that are no JSON value."""

    items: list[Item]
    next: int | None
    body: bytes = b""


class Command(NamedTuple):
    """What a command does, and on rows of which states it may be used."""

    run: Callable[[DiskQueue, Selection, int], Page]
    states: tuple[str, ...] = STATES


class Request(NamedTuple):
    """One page of one command."""

    command: str
    selection: Selection
    after: int

    @classmethod
    def parse(cls, line: bytes) -> Request:
        """Read a request; OperatorError says what is wrong with it."""
        try:
            asked = orjson.loads(line)
            selection = Selection(**asked["selection"])
            request = cls(
                str(asked["command"]),
                Selection(
                    tuple(map(str, selection.states)),
                    tuple(map(str, selection.ids)),
                    None if selection.received_before is None else float(selection.received_before),
                    None if selection.topic is None else str(selection.topic),
                    None if selection.reason is None else str(selection.reason),
                ),
                int(asked["after"]),
            )
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise OperatorError(*_NOT_UNDERSTOOD) from error
        if not 0 <= request.after <= _AFTER_MAX:
            raise OperatorError(*_NOT_UNDERSTOOD)
        return request.checked()

    @classmethod
    def of(cls, command: str, selection: Selection, after: int = 0) -> Request:
        """Return a checked request."""
        return cls(command, selection, after).checked()

    def checked(self) -> Request:
        """Return the request with the states that its command is about; OperatorError if it makes no sense."""
        if self.command not in COMMANDS:
            raise OperatorError(f"the bridge does not know the command {self.command}", "are both of the same version?")
        allowed = COMMANDS[self.command].states
        if wrong := [state for state in self.selection.states if state not in allowed]:
            raise OperatorError(f"{self.command} is not for {wrong[0]} rows", f"--state takes {', '.join(allowed)}")
        if self.selection.topic is not None and (fault := filter_fault(self.selection.topic)):
            raise OperatorError(f"--topic {self.selection.topic!r}: {fault}", "it is an MQTT filter, such as cam/+/in")
        return self._replace(selection=self.selection._replace(states=self.selection.states or allowed))

    def line(self) -> bytes:
        """Return what `parse` reads."""
        asked = {"command": self.command, "selection": self.selection._asdict(), "after": self.after}
        return orjson.dumps(asked) + b"\n"


def answer(queue: DiskQueue, request: Request) -> Page:
    """Run one page of a command; call it inside a transaction."""
    return COMMANDS[request.command].run(queue, request.selection, request.after)


def requeue_dead(queue: DiskQueue, row_ids: Collection[int]) -> int:
    """Requeue those of these rows that are dead, and return how many were; call it inside a transaction."""
    dead = [row.row_id for row in queue.dead_rows() if row.row_id in row_ids]
    if dead:
        queue.requeue(dead)
    return len(dead)


# --- looking ---------------------------------------------------------------------------------------------------------


def _stats(queue: DiskQueue, _selection: Selection, _after: int) -> Page:
    counts, totals = queue.counts(), queue.ledger.totals()
    oldest = queue.oldest_received_at()
    item: Item = {name: getattr(counts, name) for name in STATES}
    item |= {"bytes": counts.size_bytes, "oldest_at": rfc3339(oldest), "losses": totals}
    item["first_row"], item["last_row"] = queue.row_range()
    item["lost"] = sum(number for reason, number in totals.items() if reason != LossReason.DEAD_REMOVED)
    return Page([item], None)


def _list(queue: DiskQueue, selection: Selection, after: int) -> Page:
    rows, following = queue.select(selection, after)
    return Page([_item(row) for row in rows], following)


def _export(queue: DiskQueue, selection: Selection, after: int) -> Page:
    rows, following = queue.select(selection, after)
    return Page([_item(row) | _event(row.data) for row in rows], following)


def _columns(queue: DiskQueue, selection: Selection, after: int) -> Page:
    """Return rows as columns, one item; the stored bytes follow one another in the body, `sizes` divides them."""
    rows, following = queue.select_columns(selection, after)
    times = {at: rfc3339(at) for at in set(rows.received_at)}
    item: Item = {
        "row": rows.row_ids,
        "id": rows.event_ids,
        "state": rows.states,
        "topic": rows.topics,
        "received_at": [times[at] for at in rows.received_at],
        "sizes": [len(data) for data in rows.data],
    }
    return Page([item], following, b"".join(rows.data))


def _lines(queue: DiskQueue, selection: Selection, after: int) -> Page:
    rows, following = queue.select_bare(selection, after)
    return Page([], following, ndjson(rows))


def _ids(queue: DiskQueue, _selection: Selection, after: int) -> Page:
    ids, following = queue.ids_without_index(after)
    return Page([{"ids": ids}], following)


def _losses(queue: DiskQueue, selection: Selection, after: int) -> Page:
    entries = queue.ledger.entries(after, _ENTRIES)
    following = entries[-1].loss_id if len(entries) == _ENTRIES else None
    return Page([_loss(entry) for entry in entries if _is_meant(entry, selection)], following)


def _is_meant(entry: Entry, selection: Selection) -> bool:
    """Tell whether an entry is selected; of its rows only ids, topic, reason and time are left."""
    return (
        (not selection.ids or not set(selection.ids).isdisjoint(entry.event_ids))
        and (selection.received_before is None or (entry.first_at or entry.at) < selection.received_before)
        and (selection.topic is None or (entry.topic is not None and overlap(selection.topic, entry.topic)))
        and (selection.reason is None or entry.reason == selection.reason)
    )


# --- changing --------------------------------------------------------------------------------------------------------


def _requeue(queue: DiskQueue, selection: Selection, after: int) -> Page:
    rows, following = queue.select(selection, after)
    if rows:
        queue.requeue([row.row_id for row in rows])
    return Page([{"rows": len(rows)}], following)


def _remove(queue: DiskQueue, selection: Selection, after: int) -> Page:
    rows, following = queue.select(selection, after)
    removers = {"ready": queue.discard, "dead": queue.remove_dead, "delivered": queue.remove_delivered}
    for state, remove in removers.items():
        if row_ids := [row.row_id for row in rows if row.state == state]:
            remove(row_ids)
    return Page([{"rows": len(rows)}], following)


def _compact(queue: DiskQueue, _selection: Selection, after: int) -> Page:
    """Give some pages back; `after`: how many of those that were free at the beginning are left (0: it begins)."""
    free, page_bytes = queue.free_pages()
    if not queue.gives_back:
        return Page([{"bytes": 0, "left_bytes": free * page_bytes, "possible": False}], None)
    left = min(after or free, free)
    given = queue.give_back_pages(min(_STEP_PAGES, left)) if left else 0
    following = left - given if given and left > given else None
    if following is None:
        queue.write_back_soon()
    item = {"bytes": given * page_bytes, "left_bytes": (left - given) * page_bytes, "possible": True}
    return Page([item], following)


COMMANDS = {
    "stats": Command(_stats),
    "list": Command(_list),
    "export": Command(_export),  # row by row; `columns` is quicker
    "columns": Command(_columns),
    "lines": Command(_lines),
    "ids": Command(_ids),
    "compact": Command(_compact),
    "losses": Command(_losses),
    "requeue": Command(_requeue, ("dead",)),
    "discard": Command(_remove, ("ready", "dead")),
    "purge": Command(_remove, ("delivered", "dead")),
}


# --- how it is shown -------------------------------------------------------------------------------------------------


def _item(row: Listed) -> Item:
    died = row.died and {**row.died._asdict(), "at": rfc3339(row.died.at)}
    return {
        "row": row.row_id,
        "id": row.event_id,
        "state": row.state,
        "topic": row.topic,
        "received_at": rfc3339(row.received_at),
        "settled_at": rfc3339(row.settled_at),
        "bytes": len(row.data),
        "died": died,
    }


def ndjson(rows: Sequence[bytes]) -> bytes:
    """Return an event a line; bytes that are no line of text become `{"data_base64":…}`."""
    body = b"\n".join(rows)
    if rows and all(rows) and body.count(b"\n") == len(rows) - 1 and _is_text(body):
        return body + b"\n"
    return b"".join(_line(row) for row in rows)


def _line(row: bytes) -> bytes:
    is_line = row and b"\n" not in row and _is_text(row)
    return row + b"\n" if is_line else b'{"data_base64":"%b"}\n' % base64.b64encode(row)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _event(data: bytes) -> Item:
    try:
        return {"event": data.decode()}
    except UnicodeDecodeError:
        return {"event_base64": base64.b64encode(data).decode()}


def _loss(entry: Entry) -> Item:
    return {
        "loss": entry.loss_id,
        "at": rfc3339(entry.at),
        "reason": entry.reason,
        "messages": entry.messages,
        "topic": entry.topic,
        "first_at": rfc3339(entry.first_at),
        "last_at": rfc3339(entry.last_at),
        "detail": entry.detail,
        "ids": entry.event_ids,
    }


def rfc3339(seconds: float | None) -> str | None:
    """Return a time as text; None for what no calendar has."""
    if seconds is None:
        return None
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
