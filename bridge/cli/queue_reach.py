"""How `edge-bridge queue` reaches the queue, and says which rows it means.

A running bridge holds the lock of its file, so it is asked through its control socket; without one the file is opened
here, under the same lock. Behind both is one table (`bridge.disk_queue.commands`), so the output is the same.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bridge.cli.output import Progress
from bridge.disk_queue import FILE_NAME, STATES, DiskQueue, FolderLock, Page, Request, Selection, answer
from bridge.errors import DiskFullError, OperatorError, QueueInUseError
from bridge.importer import Imported, Importer, Parcel
from bridge.loss import LossReason

if TYPE_CHECKING:
    from bridge.config import QueueSettings

_SPAN = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*(s|min|m|h|d|w)?")  # more digits are no age; some would be infinity
_UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}

Item = dict[str, Any]
Options = argparse.ArgumentParser
T = TypeVar("T")


class Reached(Protocol):
    """The queue, whoever holds it. `drains`: a bridge uploads meanwhile, so waiting for room makes sense."""

    @property
    def drains(self) -> bool: ...

    def ask(self, request: Request) -> Page:
        """Return one page of an answer."""

    def bring(self, lines: bytes) -> Imported:
        """Import a group of lines."""


class Stopped:
    """The queue of a stopped bridge, opened here."""

    drains = False

    def __init__(self, queue: DiskQueue, bounds: QueueSettings) -> None:
        self._queue, self._importer = queue, Importer(bounds)

    def ask(self, request: Request) -> Page:
        """Return one page of an answer."""
        return self._run(lambda queue: answer(queue, request))

    def bring(self, lines: bytes) -> Imported:
        """Import a group of lines."""
        parcel = Parcel.of(lines)
        return self._run(lambda queue: self._importer.store(queue, parcel))

    def _run(self, verb: Callable[[DiskQueue], T]) -> T:
        try:
            return self._commit(verb)
        except DiskFullError:
            self._queue.relieve()  # as the disk thread does: what deletes must work on a full disk
            return self._commit(verb)

    def _commit(self, verb: Callable[[DiskQueue], T]) -> T:
        with self._queue.transaction():
            result = verb(self._queue)
        self._queue.bound_wal()
        return result


@contextmanager
def reached(args: argparse.Namespace, *, makes: bool = False) -> Iterator[Reached]:
    """Yield the running bridge's queue, or the file; `makes`: a new one where there is none."""
    from bridge.config import load_from_environment
    from bridge.control import connect

    bounds = load_from_environment(args.config, needs_upload=False).settings.queue
    if conversation := connect(bounds.path):
        with closing(conversation):
            yield conversation
        return
    if not makes and not (bounds.path / FILE_NAME).exists():
        raise OperatorError(
            f"there is no queue in {bounds.path}",
            "is queue.path right? `edge-bridge config show` tells where it comes from",
        )
    with _opened(bounds) as queue:
        yield Stopped(queue, bounds)


@contextmanager
def _opened(bounds: QueueSettings) -> Iterator[DiskQueue]:
    try:
        lock = FolderLock(bounds.path)
    except QueueInUseError as error:
        raise OperatorError(
            f"process {error.pid or '?'} holds the queue in {bounds.path} and does not answer on its control socket",
            "is the bridge just starting or stopping? try again",
        ) from error
    try:
        with closing(DiskQueue(bounds.path, durability=bounds.durability, max_bytes=bounds.max_bytes)) as queue:
            yield queue
    finally:
        lock.release()


def pages(
    queue: Reached, command: str, selection: Selection, show: Progress = lambda _done, _of: None
) -> Iterator[Page]:
    """Yield the whole answer, a page in memory at a time; `show` hears how far it has come among all rows."""
    first, last = _rows(queue)
    after: int | None = 0
    while after is not None:
        page = queue.ask(Request.of(command, selection, after))
        yield page
        after = page.next
        show(last - first if after is None else after - first, last - first)


def items(
    queue: Reached, command: str, selection: Selection, show: Progress = lambda _done, _of: None
) -> Iterator[Item]:
    """Yield the items of the whole answer."""
    for page in pages(queue, command, selection, show):
        yield from page.items


def _rows(queue: Reached) -> tuple[int, int]:
    (item,) = queue.ask(Request.of("stats", Selection())).items
    return item["first_row"], item["last_row"]


# --- which rows ------------------------------------------------------------------------------------------------------


def json_option(parser: Options) -> None:
    """Declare `--json`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def selection_options(parser: Options) -> None:
    """Declare `--json` and what selects rows."""
    json_option(parser)
    parser.add_argument("--state", action="append", choices=STATES, help="rows in this state (may be repeated)")
    parser.add_argument("--id", action="append", help="the row with this event id (may be repeated)")
    parser.add_argument("--older-than", type=_seconds, metavar="AGE", help="received longer ago: 90s, 15min, 6h, 7d")
    parser.add_argument("--topic", metavar="FILTER", help="on topics that match this MQTT filter")
    parser.add_argument("--reason", help=f"dead for this reason; for losses: {', '.join(LossReason)}")


def selection_of(args: argparse.Namespace) -> Selection:
    """Return which rows are meant."""
    before = None if args.older_than is None else time.time() - args.older_than
    return Selection(tuple(args.state or ()), tuple(args.id or ()), before, args.topic, args.reason)


def _seconds(text: str) -> float:
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; such as 90s, 15min, 6h or 7d")
    return float(match[1]) * _UNIT_SECONDS[match[2] or "s"]
