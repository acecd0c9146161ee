"""`edge-bridge queue …`: look into the buffer and put a hand to it, while the bridge runs or when none does.

`queue_reach` finds the queue, live or offline; `queue_transfer` moves events out and in, `queue_repair` mends. What
destroys asks first, or takes `--yes`. docs/QUEUE.md describes `--json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bridge.cli import queue_repair, queue_transfer
from bridge.cli.output import print_json, progress
from bridge.cli.queue_reach import Item, Options, Reached, items, json_option, reached, selection_of, selection_options
from bridge.cli.status import count, size
from bridge.disk_queue import Request, Selection
from bridge.errors import OperatorError
from bridge.log import printable

WATCH_SECONDS = 2.0


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


# --- looking ---------------------------------------------------------------------------------------------------------


def _stats(args: argparse.Namespace) -> int:
    while True:
        with reached(args) as queue:
            (item,) = items(queue, "stats", Selection())
        if args.json:
            _print_line(item)
        else:
            _print_stats(item)
        sys.stdout.flush()
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
        print(f"           {count(messages)} {reason}")


def _list(args: argparse.Namespace) -> int:
    with reached(args) as queue:
        for number, item in enumerate(islice(items(queue, "list", selection_of(args)), args.limit)):
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
    with reached(args) as queue:
        found = list(items(queue, "export", Selection(ids=(args.id,))))
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
    with reached(args) as queue:
        for number, item in enumerate(items(queue, "losses", selection_of(args))):
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


# --- changing --------------------------------------------------------------------------------------------------------


def _change(command: str, done: str, *, destroys: bool) -> Callable[[argparse.Namespace], int]:
    def change(args: argparse.Namespace) -> int:
        selection = selection_of(args)
        if command == "discard" and selection == Selection():
            raise OperatorError(
                "discard wants to know which rows", "select with --state, --id, --older-than, --topic or --reason"
            )
        with reached(args) as queue:
            request = Request.of(command, selection)
            if destroys and not args.yes and not _agreed(queue, request):
                print("nothing was changed")
                return 1
            with progress(command) as show:
                rows = sum(item["rows"] for item in items(queue, command, selection, show))
        if args.json:
            _print_line({"rows": rows})
        elif rows:
            print(f"{count(rows)} {'row' if rows == 1 else 'rows'} {done}")
        else:
            print("no row was changed; what is on its way to the cloud is never touched")
        return 0

    return change


def _agreed(queue: Reached, request: Request) -> bool:
    if not sys.stdin.isatty():
        raise OperatorError(f"{request.command} destroys rows, and nobody is here to be asked", "add --yes to do it")
    with progress("counting") as show:
        rows = sum(1 for _ in items(queue, "list", request.selection, show))
    print(f"{request.command} {count(rows)} rows ({', '.join(request.selection.states)})? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


# --- options ---------------------------------------------------------------------------------------------------------


def _stats_options(parser: Options) -> None:
    json_option(parser)
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_SECONDS:.0f} s, until Ctrl-C")


def _list_options(parser: Options) -> None:
    selection_options(parser)
    parser.add_argument("--limit", type=_rows, metavar="ROWS", help="the first so many of them")


def _rows(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows; such as 20")
    return min(int(text), sys.maxsize)


def _destroying_options(parser: Options) -> None:
    selection_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _show_options(parser: Options) -> None:
    json_option(parser)
    parser.add_argument("id", metavar="ID", help="event id, as `queue list` shows it")


def _print_line(item: Item) -> None:
    print(json.dumps(item, ensure_ascii=False))


VERBS = {
    "stats": Verb("how many rows wait, were delivered, are dead; what was ever lost", _stats_options, _stats),
    "list": Verb("the rows, oldest first", _list_options, _list),
    "show": Verb("one row with its event, and why it died if it did", _show_options, _show),
    "losses": Verb("the loss ledger: which messages are gone, when and why", selection_options, _losses),
    "requeue": Verb(
        "dead rows back into the queue, in their old place",
        selection_options,
        _change("requeue", "ready again", destroys=False),
    ),
    "discard": Verb(
        "give up waiting or dead rows; the loss ledger remembers them",
        _destroying_options,
        _change("discard", "discarded and in the loss ledger", destroys=True),
    ),
    "purge": Verb(
        "delete what is kept of delivered and dead rows",
        _destroying_options,
        _change("purge", "deleted", destroys=True),
    ),
    "export": Verb(
        "the stored events, on standard output or into a file",
        queue_transfer.export_options,
        queue_transfer.export_events,
    ),
    "import": Verb(
        "events that `export` wrote, into this queue; what it holds already is skipped",
        queue_transfer.import_options,
        queue_transfer.import_events,
    ),
    "compact": Verb("give the room of deleted rows back to the file system", json_option, queue_transfer.compact),
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
