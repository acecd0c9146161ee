"""`edge-bridge queue export|import|compact`: events out of a queue and into one, and room back to the file system.

All three go through the queue a page, a group or a step at a time, so memory stays flat however long it is.
"""

from __future__ import annotations

import argparse
import binascii
import fcntl
import hashlib
import importlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

from bridge.cli.output import Progress, print_error, progress
from bridge.cli.queue_reach import (
    Options,
    Reached,
    items,
    json_option,
    pages,
    reached,
    selection_of,
    selection_options,
)
from bridge.cli.status import count, size
from bridge.disk_queue import Page, Request, Selection
from bridge.errors import FaultError, OperatorError
from bridge.importer import GROUP_BYTES, GROUP_LINES, LINE_BYTES_MAX
from bridge.message import event_id

COLUMNS = ("row", "id", "state", "topic", "received_at", "event", "event_base64")
_PARQUET_ROWS, _PARQUET_BYTES = 10_000, 16 << 20  # in a row group, whichever comes first
QUOTE = '"'
_SPECIAL = re.compile(r'[,"\r\n]')
_PIPE_BYTES = 1 << 20  # what Linux lets anybody have (pipe(7)); with its 64 KiB both ends sleep half of the time
_FAULTS_SHOWN = 20
_WAIT_SECONDS = 0.5  # between tries while the queue has no room

Write = Callable[[Reached, Selection, IO[bytes], Progress], None]
Numbered = tuple[int, bytes]  # a line and its number
Column = list[Any]
Columns = tuple[Column, ...]


# --- out -------------------------------------------------------------------------------------------------------------


def export_options(parser: Options) -> None:
    """Declare what `export` takes."""
    selection_options(parser)
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="ndjson", help="ndjson (default) is an event a line"
    )
    parser.add_argument("--output", metavar="FILE", default="-", help="a file (mode 0600) instead of standard output")


def export_events(args: argparse.Namespace) -> int:
    """Write the selected events."""
    write = FORMATS[args.format]
    shows = args.output != "-" or not sys.stdout.isatty()
    with reached(args) as queue, _sink(args.output) as sink, progress("export", shows=shows) as show:
        write(queue, selection_of(args), sink, show)
        sink.flush()
    return 0


@contextmanager
def _sink(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        with suppress(OSError, AttributeError):  # no pipe, or not Linux's
            fcntl.fcntl(sys.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield sys.stdout.buffer
        return
    try:
        with open(name, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            yield file
    except OSError as error:
        raise OperatorError(f"{name} cannot be written: {error.strerror}", "choose another --output") from error


def _write_ndjson(queue: Reached, selection: Selection, sink: IO[bytes], show: Progress) -> None:
    for page in _ahead(queue, pages(queue, "lines", selection, show)):
        sink.write(page.body)


def _ahead(queue: Reached, coming: Iterator[Page]) -> Iterator[Page]:
    """Yield the pages; a running bridge is asked for the next one while this one is written, so both work at once."""
    if not queue.drains:  # nobody works but we, and a connection of SQLite belongs to one thread
        yield from coming
        return
    with ThreadPoolExecutor(1, "export") as reader:
        following = reader.submit(next, coming, None)
        while (page := following.result()) is not None:
            following = reader.submit(next, coming, None)
            yield page


def _write_csv(queue: Reached, selection: Selection, sink: IO[bytes], show: Progress) -> None:
    sink.write(f"{','.join(COLUMNS)}\n".encode())
    for page in _ahead(queue, pages(queue, "columns", selection, show)):
        sink.write(_csv_lines(*_columns(page)).encode())


def _columns(page: Page) -> Columns:
    """Return the columns of a page, those of `COLUMNS` in order."""
    (item,) = page.items
    ends = list(accumulate(item["sizes"], initial=0))
    names = (item[name] for name in COLUMNS[:-2])
    if page.body.isascii():
        text = page.body.decode("ascii")
        return *names, [text[start:end] for start, end in pairwise(ends)], [None] * len(item["sizes"])
    parts = [page.body[start:end] for start, end in pairwise(ends)]
    texts = [_text(part) for part in parts]
    bare = [_base64(part) if text is None else None for part, text in zip(parts, texts, strict=True)]
    return *names, texts, bare


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _csv_lines(*columns: Column) -> str:
    """Return what the csv module would write, but for quotes that need not be, in a third of its time."""
    rows, own_ids, states, topics, times, events, bare = columns
    quoted = [f'"{event.replace(QUOTE, QUOTE + QUOTE)}"' if event else "" for event in events]
    cells = zip(rows, _cells(own_ids), states, _cells(topics), _cells(times), quoted, _cells(bare), strict=True)
    lines = [
        f"{row},{own_id},{state},{topic},{at},{event},{other}\n"
        for row, own_id, state, topic, at, event, other in cells
    ]
    return "".join(lines)


def _cells(column: Column) -> Column:
    """Return short texts as cells, with quotes where one of them has to have them; None is an empty one."""
    cells = [cell or "" for cell in column] if None in column else column
    if _SPECIAL.search("".join(cells)) is None:
        return cells
    return [f'"{cell.replace(QUOTE, QUOTE + QUOTE)}"' for cell in cells]


def _write_parquet(queue: Reached, selection: Selection, sink: IO[bytes], show: Progress) -> None:
    arrow, parquet = _pyarrow()
    if sink.isatty():
        raise OperatorError("parquet is not for a terminal", "add --output FILE")
    schema = arrow.schema([(name, arrow.int64() if name == "row" else arrow.string()) for name in COLUMNS])
    group: list[Any] = []
    with parquet.ParquetWriter(sink, schema, use_dictionary=["state", "topic"]) as writer:
        for page in _ahead(queue, pages(queue, "columns", selection, show)):
            group.append(arrow.table(list(_columns(page)), schema))
            if (
                sum(table.num_rows for table in group) >= _PARQUET_ROWS
                or sum(table.nbytes for table in group) >= _PARQUET_BYTES
            ):
                writer.write_table(arrow.concat_tables(group))
                group.clear()
        if group:
            writer.write_table(arrow.concat_tables(group))


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise OperatorError(
            "parquet needs pyarrow, which is not installed here", "`pip install pyarrow`, or --format ndjson"
        ) from error


FORMATS: dict[str, Write] = {"ndjson": _write_ndjson, "csv": _write_csv, "parquet": _write_parquet}


# --- in --------------------------------------------------------------------------------------------------------------


def import_options(parser: Options) -> None:
    """Declare what `import` takes."""
    json_option(parser)
    parser.add_argument(
        "file", metavar="FILE", help="a CloudEvent a line, as `export` writes them; - is standard input"
    )


def import_events(args: argparse.Namespace) -> int:
    """Bring events in; 0 if every line was taken or is there already."""
    tally: Counter[str] = Counter()
    with _source(args.file) as source, reached(args, makes=True) as queue, progress("import") as show:
        known = _ids_without_index(queue)
        size_bytes = os.fstat(source.fileno()).st_size
        for group in _groups(source, tally):
            new = [(number, line) for number, line in group if _id(line) not in known]
            tally["skipped"] += len(group) - len(new)
            _bring(queue, new, tally)
            tally["bytes"] += sum(len(line) for _, line in group)
            show(tally["bytes"], size_bytes)
    names = ("stored", "skipped", "dropped", "refused")
    if args.json:
        print(json.dumps({name: tally[name] for name in names}))
    else:
        print(", ".join(f"{count(tally[name])} {name}" for name in names if tally[name] or name == "stored"))
    return 1 if tally["refused"] else 0


@contextmanager
def _source(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below; what goes wrong later is not the opening
    except OSError as error:
        raise OperatorError(f"{name} cannot be read: {error.strerror}", "- is standard input") from error
    with file:
        yield file


def _groups(source: IO[bytes], tally: Counter[str]) -> Iterator[list[Numbered]]:
    """Yield the lines that are not empty, some at a time; one that no memory should hold is told and passed over."""
    group: list[Numbered] = []
    group_bytes = number = 0
    while line := source.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            _refuse(number, f"it is longer than {LINE_BYTES_MAX >> 20} MiB", tally)
            while line and not line.endswith(b"\n"):
                line = source.readline(LINE_BYTES_MAX)
            continue
        if line.strip():
            group.append((number, line.rstrip(b"\r\n")))
            group_bytes += len(line)
        if len(group) >= GROUP_LINES or group_bytes >= GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
    if group:
        yield group


def _bring(queue: Reached, lines: list[Numbered], tally: Counter[str]) -> None:
    """Bring a group in, in smaller parts where there is little room, and wait where there is none."""
    step = len(lines)
    while lines:
        part = lines[:step]
        done = queue.bring(b"\n".join(line for _, line in part))
        if done.waits and step > 1:
            step //= 2
            continue
        if done.waits:
            _wait(queue, done.waits, tally)
            continue
        tally.update(stored=done.stored, skipped=done.skipped, dropped=done.dropped)
        for index, words in done.faults:
            _refuse(part[index][0], words, tally)
        lines, step = lines[step:], 2 * step


def _wait(queue: Reached, reason: str, tally: Counter[str]) -> None:
    if not queue.drains:
        raise FaultError(
            f"no room in the queue: {reason} ({count(tally['stored'])} stored)",
            "start the bridge, so that it drains, and import again: what is stored is skipped",
        )
    if not tally["waited"]:
        print(f"waiting for room in the queue: {reason}", file=sys.stderr)
    tally["waited"] += 1
    time.sleep(_WAIT_SECONDS)


def _refuse(number: int, words: str, tally: Counter[str]) -> None:
    tally["refused"] += 1
    if tally["refused"] <= _FAULTS_SHOWN:
        print_error(FaultError(f"line {number}: {words}"))
    elif tally["refused"] == _FAULTS_SHOWN + 1:
        print_error(FaultError("more lines were not taken; only their number is told"))


class IdSet:
    """Ids, sixteen bytes each: the queue's rows are bounded, and so is this."""

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(4096)]

    def add(self, own_id: str) -> None:
        """Remember an id."""
        digest, bucket = self._place(own_id)
        bucket += digest

    def __contains__(self, own_id: str | None) -> bool:
        if own_id is None:
            return False
        digest, bucket = self._place(own_id)
        return digest in bucket

    def _place(self, own_id: str) -> tuple[bytes, bytearray]:
        digest = hashlib.blake2b(own_id.encode(errors="surrogatepass"), digest_size=16).digest()
        return digest, self._buckets[int.from_bytes(digest[:2]) % len(self._buckets)]


def _ids_without_index(queue: Reached) -> IdSet:
    """Return the ids that the bridge made: only producers' own have an index, by which `bring` finds them."""
    known = IdSet()
    for item in items(queue, "ids", Selection()):
        for own_id in item["ids"]:
            known.add(own_id)
    return known


def _id(line: bytes) -> str | None:
    try:
        return event_id(line)
    except (ValueError, TypeError, KeyError):  # then it is refused with its number
        return None


# --- room ------------------------------------------------------------------------------------------------------------


def compact(args: argparse.Namespace) -> int:
    """Give free pages back, step by step."""
    given = 0
    with reached(args) as queue, progress("compact") as show:
        after: int | None = 0
        while after is not None:
            page = queue.ask(Request.of("compact", Selection(), after))
            (item,), after = page.items, page.next
            if not item["possible"] and item["left_bytes"]:
                raise OperatorError(
                    "this file was made by persist-queue and cannot be made smaller; its free room is used again",
                    "to have it smaller: stop the bridge, `queue export`, move data.db* away, `queue import`",
                )
            given += item["bytes"]
            show(given, given + item["left_bytes"])
    if args.json:
        print(json.dumps({"bytes": given}))
    else:
        print(f"{size(given)} given back to the file system")
    return 0
