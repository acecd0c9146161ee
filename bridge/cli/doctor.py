"""`edge-bridge doctor`: everything a bridge stands on, looked at once; of each thing how it is and what to do.

It may be run at any time, beside a running bridge too: it changes nothing and takes nothing (`bridge.doctor`).
Exit status: 0 nothing failed, 1 something did, 2 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bridge import __version__
from bridge.cli.config import shown_value
from bridge.cli.output import print_json
from bridge.config import KEYS, Examined, Loaded, examine_environment, load_from_environment
from bridge.doctor import Grade, Line, as_json, collect, configuration, count, examine, pack, secrets_of
from bridge.errors import BridgeError, ConfigError, OperatorError
from bridge.log import printable

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {Grade.OK: "green", Grade.WARN: "bold yellow", Grade.FAIL: "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes beside `--config`."""
    parser.add_argument(
        "--json", action="store_true", help='print {"healthy", "ok", "warn", "fail", "lines": [{"check", "grade", …}]}'
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE", help="also write a tar.gz for support, without secrets and payloads"
    )


def execute(args: argparse.Namespace) -> int:
    """Look at everything, print the list, write the bundle if one is asked for."""
    examined = examine_environment(args.config)
    loaded = examined.loaded or _without_upload(args.config)
    lines = [*configuration(examined), *_look(examined, loaded, quietly=args.json)]
    if args.json:
        print_json(document(lines))
    else:
        _print(lines)
    if args.bundle:
        _write(args.bundle, _bundle(loaded, lines))
        if not args.json:
            print(f"wrote {args.bundle}: configuration, findings and counts, no secret and no payload; look it through")
    if examined.loaded is None:
        return OperatorError.exit_status
    return BridgeError.exit_status if count(lines, Grade.FAIL) else 0


def _without_upload(config: Path | None) -> Loaded | None:
    """Return what can be looked at where only [upload] is wrong."""
    try:
        return load_from_environment(config, needs_upload=False)
    except ConfigError:
        return None


def _look(examined: Examined, loaded: Loaded | None, *, quietly: bool) -> list[Line]:
    if loaded is None:
        return []
    looking = examine(loaded.settings, with_cloud=examined.loaded is not None)
    if quietly or not sys.stdout.isatty():
        return asyncio.run(looking)
    with _console().status("looking at broker, cloud, disk and queue …"):
        return asyncio.run(looking)


def document(lines: Sequence[Line]) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "healthy": not count(lines, Grade.FAIL),
        "version": __version__,
        **{grade.value: count(lines, grade) for grade in Grade},
        "lines": [
            {"check": line.check, "grade": line.grade.value, "found": line.found, "advice": line.advice}
            for line in lines
        ],
    }


def text(lines: Sequence[Line]) -> str:
    """Return the list without colours, each finding and each advice on a line of its own."""
    width = max(len(line.check) for line in lines)
    shown: list[str] = []
    for line in lines:
        shown.append(f"{line.grade.value:<4}  {line.check:<{width}}  {printable(line.found)}")
        if line.advice:
            shown.append(f"{'':<{width + 8}}→ {printable(line.advice)}")
    return "\n".join([*shown, "", summary(lines), ""])


def summary(lines: Sequence[Line]) -> str:
    """Return the last line: how it is in one sentence."""
    failed, warned = count(lines, Grade.FAIL), count(lines, Grade.WARN)
    if failed:
        return f"{failed} failed, {warned} to look at, {count(lines, Grade.OK)} fine"
    return f"nothing failed, {warned} to look at" if warned else f"all {len(lines)} fine"


def _print(lines: Sequence[Line]) -> None:
    if not sys.stdout.isatty():
        print(text(lines), end="")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(Text(line.grade.value, _STYLES[line.grade]), line.check, Text(printable(line.found)))
        if line.advice:
            table.add_row("", "", Text(f"→ {printable(line.advice)}", "dim" if line.grade is Grade.OK else ""))
    console = _console()
    console.print(table)
    worst = next((grade for grade in (Grade.FAIL, Grade.WARN) if count(lines, grade)), Grade.OK)
    console.print(Text(f"\n{summary(lines)}", _STYLES[worst]))


def _console() -> Console:
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no "→" shows "?" and not a traceback
    return Console(highlight=False)


def _bundle(loaded: Loaded | None, lines: Sequence[Line]) -> bytes:
    members = {"doctor.txt": text(lines).encode(), "doctor.json": as_json(document(lines))}
    if loaded is None:
        return pack(members, [])
    values = {path: {"value": shown_value(loaded, path), "source": loaded.sources[path]} for path in KEYS}
    members |= {"configuration.json": as_json(values)} | asyncio.run(collect(loaded.settings))
    return pack(members, secrets_of(loaded.settings))


def _write(file: Path, archive: bytes) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(archive)
    except OSError as error:
        hint = "give another name" if isinstance(error, FileExistsError) else "give a place that you may write to"
        raise OperatorError(f"{file} cannot be written: {error.strerror}", hint) from error
