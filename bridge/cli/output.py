"""What the commands show: results on standard output, errors on standard error, each the same way everywhere.

Text goes through `printable` first: topics, file names and answers of servers are foreign, and terminals obey them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bridge.errors import BridgeError, ConfigError
from bridge.log import printable

PROGRESS_AFTER_SECONDS = 1.0

Progress = Callable[[int, int], None]  # how much is done of how much; 0: nobody knows


@contextmanager
def progress(what: str, *, shows: bool = True) -> Iterator[Progress]:
    """Yield a bar on standard error: only on a terminal, and only if it takes longer than a second."""
    if not (shows and sys.stderr.isatty()):
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)
    began_at = time.monotonic()

    def show(done: int, of: int) -> None:
        if time.monotonic() - began_at > PROGRESS_AFTER_SECONDS:
            bar.start()
        bar.update(task, completed=done, total=of or None)

    try:
        yield show
    finally:
        bar.stop()


def print_error(error: BridgeError) -> None:
    """Print one line a problem, and the hint."""
    for line in error.problems if isinstance(error, ConfigError) else [error.message]:
        print(f"edge-bridge: error: {printable(line)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)


def print_json(value: object) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns of text under their titles, as wide as they need to be."""
    lines = [[printable(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for index, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        print(f"\x1b[1m{text}\x1b[0m" if index == 0 and sys.stdout.isatty() else text)
