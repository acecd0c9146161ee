"""`edge-bridge queue …`: look into the buffer and put a hand to it, while the bridge runs or when none does.

A running bridge holds the lock of its file, so it is asked through its control socket; without one the file is opened
here, under the same lock. Behind both is one table (`bridge.disk_queue.commands`), so the output is the same. What
destroys asks first, or takes `--yes`. docs/QUEUE.md describes `--json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bridge.cli import queue_repair
from bridge.cli.output import print_json
from bridge.cli.status import count, size
from bridge.disk_queue import FILE_NAME, STATES, DiskQueue, FolderLock, Request, Selection, answer
from bridge.errors import OperatorError, QueueInUseError
from bridge.log import printable
from bridge.loss import LossReason

WATCH_SECONDS = 2.0
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)?")
_UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}

Item = dict[str, Any]
Ask = Callable[[Request], tuple[list[Item], int | None]]
Options = argparse.ArgumentParser


class Verb(NamedTuple):
    """A command below `queue`."""

    purpose: str
    add_arguments: Callable[[Options], None]
    execute: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the commands below `queue`; each takes `--config` too."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name, verb in VERBS.items():
        its = verbs.add_parser(name, help=verb.purpose, description=f"{verb.purpose.capitalize()}.", allow_abbrev=False)
        its.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="configuration file")
        verb.add_arguments(its)


def execute(args: argparse.Namespace) -> int:
    """Run the command that was chosen."""
    return VERBS[args.verb].execute(args)


# --- reaching the queue ----------------------------------------------------------------------------------------------


@contextmanager
def reached(args: argparse.Namespace) -> Iterator[Ask]:
    """Yield what answers requests: the running bridge, or the file."""
    from bridge.config import load_from_environment
    from bridge.control import connect

    bounds = load_from_environment(args.config, needs_upload=False).settings.queue
    if conversation := connect(bounds.path):
        try:
            yield conversation.ask
        finally:
            conversation.close()
        return
    with _opened(bounds.path, bounds.max_bytes) as queue:

        def ask(request: Request) -> tuple[list[Item], int | None]:
            with queue.transaction():
                return tuple(answer(queue, request))  # type: ignore[return-value] # a Page is such a pair

        yield ask


@contextmanager
def _opened(folder: Path, max_bytes: int) -> Iterator[DiskQueue]:
    if not (folder / FILE_NAME).exists():
        raise OperatorError(
            f"there is no queue in {folder}", "is queue.path right? `edge-bridge config show` tells where it comes from"
        )
    try:
        lock = FolderLock(folder)
    except QueueInUseError as error:
        raise OperatorError(
            f"process {error.pid or '?'} holds the queue in {folder} and does not answer on its control socket",
            "is the bridge just starting or stopping? try again",
        ) from error
    try:
        queue = DiskQueue(folder, max_bytes=max_bytes)
        try:
            yield queue
        finally:
            queue.close()
    finally:
        lock.release()


def items(ask: Ask, command: str, selection: Selection) -> Iterator[Item]:
    """Yield the whole answer, a page in memory at a time."""
    after: int | None = 0
    while after is not None:
        page, after = ask(Request.of(command, selection, after))
        yield from page


# --- looking ---------------------------------------------------------------------------------------------------------


def _stats(args: argparse.Namespace) -> int:
    while True:
        with reached(args) as ask:
            (item,) = items(ask, "stats", Selection())
        if args.json:
            _print_line(item)
        else:
            _print_stats(item)
        if not args.watch:
            return 0
        time.sleep(WATCH_SECONDS)


def _print_stats(item: Item) -> None:
    oldest = f", the oldest since {item['oldest_at']}" if item["oldest_at"] else ""
    print(f"waiting    {count(item['ready'] + item['taken'])} ({count(item['taken'])} on their way){oldest}")
    print(f"delivered  {count(item['delivered'])} kept")
    print(f"dead       {count(item['dead'])}")
    print(f"size       {size(item['bytes'])}")
    print(f"lost       {count(item['lost'])} ever")
    for reason, messages in item["losses"].items():
        print(f"           {count(messages)} {reason}", flush=True)


def _list(args: argparse.Namespace) -> int:
    with reached(args) as ask:
        for number, item in enumerate(items(ask, "list", _selection(args))):
            if args.json:
                _print_line(item)
            else:
                _print_row(item, with_titles=number == 0)
    return 0


def _print_row(item: Item, *, with_titles: bool) -> None:
    line = "{:>8}  {:<9}  {:<24}  {:>9}  {:<36}  {}"
    if with_titles:
        print(line.format("row", "state", "received", "bytes", "id", "topic"))
    cells = (item["row"], item["state"], item["received_at"], item["bytes"], item["id"], item["topic"])
    why = f"  ({item['died']['reason']})" if item["died"] and item["state"] == "dead" else ""
    print(printable(line.format(*("–" if cell is None else cell for cell in cells)) + why))


def _show(args: argparse.Namespace) -> int:
    with reached(args) as ask:
        found = list(items(ask, "export", Selection(ids=(args.id,))))
    if not found:
        raise OperatorError(f"no row has the id {args.id!r}", "`edge-bridge queue list` shows the ids; --id takes one")
    for item in found:
        event = item.pop("event", None)
        print_json(item | ({"event": _parsed(event)} if event is not None else {}))
    return 0


def _parsed(event: str) -> Any:
    try:
        return json.loads(event)
    except ValueError:
        return event


def _losses(args: argparse.Namespace) -> int:
    with reached(args) as ask:
        for number, item in enumerate(items(ask, "losses", _selection(args))):
            if args.json:
                _print_line(item)
            else:
                _print_loss(item, with_titles=number == 0)
    return 0


def _print_loss(item: Item, *, with_titles: bool) -> None:
    line = "{:>6}  {:<24}  {:<12}  {:>8}  {:<32}  {}"
    if with_titles:
        print(line.format("loss", "until", "reason", "messages", "topic", "ids"))
    ids = ", ".join(item["ids"][:2]) + (f" … {item['ids'][-1]}" if len(item["ids"]) > 2 else "")  # noqa: PLR2004
    cells = (item["loss"], item["at"], item["reason"], item["messages"], item["topic"] or "–", ids or item["detail"])
    print(printable(line.format(*cells)))


def _export(args: argparse.Namespace) -> int:
    with reached(args) as ask:
        rows = items(ask, "export", _selection(args))
        if args.format == "ndjson":
            for item in rows:
                print(item.get("event") or json.dumps({"data_base64": item.get("event_base64", "")}))
        else:
            columns = ("row", "id", "state", "topic", "received_at", "event", "event_base64")
            table = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    return 0


# --- changing --------------------------------------------------------------------------------------------------------


def _change(command: str, done: str, *, destroys: bool) -> Callable[[argparse.Namespace], int]:
    def change(args: argparse.Namespace) -> int:
        selection = _selection(args)
        if command == "discard" and selection == Selection():
            raise OperatorError(
                "discard wants to know which rows", "select with --state, --id, --older-than, --topic or --reason"
            )
        with reached(args) as ask:
            request = Request.of(command, selection)
            if destroys and not args.yes and not _agreed(ask, request):
                print("nothing was changed")
                return 1
            rows = sum(item["rows"] for item in items(ask, command, selection))
        if args.json:
            _print_line({"rows": rows})
        else:
            print(f"{count(rows)} {'row' if rows == 1 else 'rows'} {done}")
        return 0

    return change


def _agreed(ask: Ask, request: Request) -> bool:
    if not sys.stdin.isatty():
        raise OperatorError(f"{request.command} destroys rows, and nobody is here to be asked", "add --yes to do it")
    rows = sum(1 for _ in items(ask, "list", request.selection))
    print(f"{request.command} {count(rows)} rows ({', '.join(request.selection.states)})? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


# --- options ---------------------------------------------------------------------------------------------------------


def _json_option(parser: Options) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _stats_options(parser: Options) -> None:
    _json_option(parser)
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_SECONDS:.0f} s, until Ctrl-C")


def _selection_options(parser: Options) -> None:
    _json_option(parser)
    parser.add_argument("--state", action="append", choices=STATES, help="rows in this state (may be repeated)")
    parser.add_argument("--id", action="append", help="the row with this event id (may be repeated)")
    parser.add_argument("--older-than", type=_seconds, metavar="AGE", help="received longer ago: 90s, 15min, 6h, 7d")
    parser.add_argument("--topic", metavar="FILTER", help="on topics that match this MQTT filter")
    parser.add_argument("--reason", help=f"dead for this reason; for losses: {', '.join(LossReason)}")


def _destroying_options(parser: Options) -> None:
    _selection_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _show_options(parser: Options) -> None:
    parser.add_argument("id", metavar="ID", help="event id, as `queue list` shows it")


def _export_options(parser: Options) -> None:
    _selection_options(parser)
    parser.add_argument(
        "--format", choices=("ndjson", "csv"), default="ndjson", help="ndjson (default) is an event a line"
    )


def _seconds(text: str) -> float:
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; such as 90s, 15min, 6h or 7d")
    return float(match[1]) * _UNIT_SECONDS[match[2] or "s"]


def _selection(args: argparse.Namespace) -> Selection:
    before = None if args.older_than is None else time.time() - args.older_than
    return Selection(tuple(args.state or ()), tuple(args.id or ()), before, args.topic, args.reason)


def _print_line(item: Item) -> None:
    print(json.dumps(item, ensure_ascii=False), flush=True)


VERBS = {
    "stats": Verb("how many rows wait, were delivered, are dead; what was ever lost", _stats_options, _stats),
    "list": Verb("the rows, oldest first", _selection_options, _list),
    "show": Verb("one row with its event, and why it died if it did", _show_options, _show),
    "losses": Verb("the loss ledger: which messages are gone, when and why", _selection_options, _losses),
    "requeue": Verb(
        "dead rows back into the queue, in their old place",
        _selection_options,
        _change("requeue", "are ready again", destroys=False),
    ),
    "discard": Verb(
        "give up waiting or dead rows; the loss ledger remembers them",
        _destroying_options,
        _change("discard", "discarded, they are in the loss ledger", destroys=True),
    ),
    "purge": Verb(
        "delete what is kept of delivered and dead rows",
        _destroying_options,
        _change("purge", "deleted", destroys=True),
    ),
    "export": Verb("the stored events, on standard output", _export_options, _export),
    "verify": Verb(
        "look the queue of a stopped bridge through: structure, checksums, counts",
        queue_repair.add_arguments,
        queue_repair.verify,
    ),
    "repair": Verb(
        "set a damaged file aside and salvage its rows into a new one",
        queue_repair.add_arguments,
        queue_repair.repair,
    ),
}
