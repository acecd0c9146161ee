"""What the commands show: results on standard output, errors on standard error, each the same way everywhere.

Text goes through `printable` first: topics, file names and answers of servers are foreign, and terminals obey them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from bridge.errors import BridgeError, ConfigError
from bridge.log import printable


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
