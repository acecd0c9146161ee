"""`edge-bridge status`: how the bridge is, read from the broker's retained status object.

It asks the broker, not the bridge, so it works from any machine that reaches the broker and still answers when the
bridge is dead: then it shows the will. It changes nothing. Whoever may write to the topic decides what comes, so
whatever comes is shown as text without control characters, and what is missing in it as a dash.

Exit status: 0 the bridge is online, 1 it is not or nobody knows, 2 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bridge.errors import FaultError
from bridge.log import printable
from bridge.monitor import RETRY_SECONDS, Source, first, flatten, parse
from bridge.status import NEARLY_FULL, Leaf, State, Tree

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from bridge.config import MqttSettings

STALE_SECONDS = 30.0  # six intervals as shipped
BAR_COLUMNS = 24

Leaves = dict[str, Leaf]

MARKS = {State.ONLINE: ("●", "bold green"), State.DEGRADED: ("▲", "bold yellow"), State.OFFLINE: ("■", "bold red")}
CLOUD_STYLES = {"online": "green", "throttled": "yellow", "offline": "yellow", "paused": "red"}
ALARMING_COUNTERS = frozenset({"conflict", "dead", "dropped", "refused"})
COUNTER_COLUMNS = (
    ("received", "stored", "delivered"),
    ("duplicate", "conflict", "dead"),
    ("dropped", "refused", "salvaged"),
)


# ---- the command ----


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes beside `--config`."""
    parser.add_argument("--watch", action="store_true", help="stay and show every change, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print the status object as JSON, one a line")


def execute(args: argparse.Namespace) -> int:
    """Run the command; raises what `bridge.cli` turns into a line and a hint."""
    from bridge.broker import watch_topic
    from bridge.config import load_from_environment

    settings = load_from_environment(args.config, needs_upload=False).settings
    where = f"{settings.status.topic} at {broker_name(settings.mqtt)}"
    source = partial(watch_topic, settings.mqtt, settings.status.topic)
    if not args.watch:
        return asyncio.run(show_once(source, where, as_json=args.json))
    try:
        asyncio.run(follow(source, where, as_json=args.json))
    except KeyboardInterrupt:
        return 0
    return 1


def broker_name(mqtt: MqttSettings) -> str:
    """Return where the broker is, for people."""
    return mqtt.host if mqtt.transport == "unix" else f"{mqtt.host}:{mqtt.port}"


async def show_once(source: Source, where: str, *, as_json: bool) -> int:
    """Print the retained status object; the exit status says whether the bridge is online."""
    payload = await first(source)
    if not payload:
        raise FaultError(
            f"no status is retained on {where}",
            "is a bridge running there (edge-bridge run), and with the same status.topic?",
        )
    status_tree = parse(payload, where)
    if as_json:
        _print_json(status_tree)
    else:
        _console().print(view(status_tree, time.time()))
    return 0 if status_tree["state"] == State.ONLINE.value else 1


async def follow(source: Source, where: str, *, as_json: bool) -> None:
    """Show every publication; a broker that goes away after the first one is waited for. Ends by cancellation only."""
    screen = _Lines(as_json=as_json) if as_json or not sys.stdout.isatty() else _Screen(where)
    seen = False
    with screen:
        while True:
            try:
                async with aclosing(source()) as publications:
                    async for payload in publications:
                        if payload:  # an empty one only says that somebody cleared the topic
                            screen.show(parse(payload, where))
                            seen = True
            except FaultError as error:
                if not seen:
                    raise
                screen.lost(error.message)
            await asyncio.sleep(RETRY_SECONDS)


def _print_json(status_tree: Tree) -> None:
    print(orjson.dumps(status_tree).decode(), flush=True)


def _console() -> Console:
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no "●" shows "?" and not a traceback
    return Console(highlight=False)


class _Lines:
    """Every publication below the last one: for pipes and files."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, status_tree: Tree) -> None:
        if self._as_json:
            _print_json(status_tree)
        else:
            _console().print(view(status_tree, time.time()))

    def lost(self, error: str) -> None:
        print(f"{error}; trying again", file=sys.stderr, flush=True)


class _Screen:
    """One view that is drawn anew in place: for a terminal."""

    def __init__(self, where: str) -> None:
        from rich.live import Live

        self._status_tree: Tree | None = None
        self._note = f"waiting for the first status on {where}"
        # drawn once a second too, because ages grow while nothing is published
        self._live = Live(get_renderable=self._draw, console=_console(), refresh_per_second=1, redirect_stderr=False)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, status_tree: Tree) -> None:
        self._status_tree, self._note = status_tree, ""
        self._live.refresh()

    def lost(self, error: str) -> None:
        self._note = f"{error}; trying again"
        self._live.refresh()

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [view(self._status_tree, time.time())] if self._status_tree else []
        return Group(*parts, Text(printable(self._note), "yellow")) if self._note else Group(*parts)


# ---- the view ----


def view(status_tree: Tree, wall_seconds: float) -> RenderableType:
    """Return the table for people, as seen at this time."""
    from rich.console import Group
    from rich.table import Table

    leaves = dict(flatten(status_tree))
    sections = Table.grid(padding=(0, 2))
    sections.add_column(style="cyan", min_width=8)
    sections.add_column(overflow="fold")
    for name, section in (("broker", _broker), ("cloud", _cloud), ("queue", _queue)):
        if name in status_tree:  # the will brings the header only
            for index, line in enumerate(section(leaves, wall_seconds)):
                sections.add_row("" if index else name, line)
    if "messages" in status_tree:
        sections.add_row("messages", _messages(leaves))
    if "load" in status_tree:
        sections.add_row("load", _load(leaves))
    body: list[RenderableType] = ["", sections] if sections.rows else []
    return Group(*_head(leaves, wall_seconds), *body)


def _head(leaves: Leaves, wall_seconds: float) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    state = _word(leaves, "state")
    mark, style = MARKS.get(State(state), ("?", "bold")) if state in set(State) else ("?", "bold")
    name = Text.assemble((f"{mark} {state}", style), "   ", (_word(leaves, "bridge_id"), "bold"))
    uptime = _number(leaves, "uptime_seconds")
    about = f"   edge-bridge {_word(leaves, 'version')}" + ("" if uptime is None else f", up {span(uptime)}")
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    line.add_row(name.append(about, "dim"), _age(leaves, wall_seconds))
    reason = leaves.get("reason")
    return [line, Padding(Text(str(reason), style.removeprefix("bold ")), (0, 0, 0, 2))] if reason else [line]


def _age(leaves: Leaves, wall_seconds: float) -> Text:
    from rich.text import Text

    at = _time(leaves, "at")
    if at is None:
        return Text("")
    age_seconds = max(0.0, wall_seconds - at)
    return Text(f"{span(age_seconds)} ago", "yellow" if age_seconds > STALE_SECONDS else "dim")


def _broker(leaves: Leaves, _: float) -> list[Text]:
    connected = leaves.get("broker/connected") is True
    word = ("connected", "green") if connected else ("not connected", "red")
    return [_facts(word, _plural(leaves, "broker/reconnects", "reconnect"))]


def _cloud(leaves: Leaves, wall_seconds: float) -> list[Text]:
    state = _word(leaves, "cloud/state")
    success, attempt = _time(leaves, "cloud/last_success_at"), _time(leaves, "cloud/next_attempt_at")
    p50, p99 = (_number(leaves, f"cloud/latency_ms/{name}") for name in ("p50", "p99"))
    lines = [
        _facts(
            (state, CLOUD_STYLES.get(state, "")),
            None if attempt is None else _until(attempt - wall_seconds),
            "no success yet" if success is None else f"last success {span(max(0.0, wall_seconds - success))} ago",
        )
    ]
    if p50 is not None and p99 is not None:
        lines.append(_facts(f"a post takes {p50:,.1f} ms (p50), {p99:,.1f} ms (p99)"))
    if leaves.get("cloud/last_error") and state == "online":  # otherwise it is the reason, at the top
        lines.append(_facts(f"last error: {_word(leaves, 'cloud/last_error')}"))
    return lines


def _until(seconds: float) -> str:
    return f"next attempt in {span(seconds)}" if seconds >= 1 else "next attempt now"


def _queue(leaves: Leaves, _: float) -> list[RenderableType]:
    ready, taken = _number(leaves, "queue/ready"), _number(leaves, "queue/taken")
    oldest = _number(leaves, "queue/oldest_age_seconds")
    full, empty = _number(leaves, "queue/full_in_seconds"), _number(leaves, "queue/empty_in_seconds")
    dead = _number(leaves, "queue/dead")
    return [
        _facts(
            f"{count(None if ready is None or taken is None else ready + taken)} waiting",
            f"{count(taken)} of them on their way" if taken else None,
            None if oldest is None else f"the oldest for {span(oldest)}",
        ),
        _facts(
            f"{count(_number(leaves, 'queue/delivered'))} delivered and kept",
            (f"{count(dead)} dead", "yellow" if dead else ""),
        ),
        _room(leaves),
        _facts(
            f"{size(_number(leaves, 'queue/disk_free_bytes'))} free on the disk",
            None if full is None else (f"full in {span(full)}", "yellow"),
            None if empty is None else (f"empty in {span(empty)}", "green"),
        ),
    ]


def _room(leaves: Leaves) -> Text:
    from rich.text import Text

    used, limit = _number(leaves, "queue/bytes") or 0.0, _number(leaves, "queue/limit_bytes")
    if not limit:
        return _facts(size(used), "no bound")
    filled = min(BAR_COLUMNS, round(BAR_COLUMNS * used / limit))
    style = "green" if used < NEARLY_FULL * limit else "yellow"
    bar = Text.assemble(("━" * filled, style), ("─" * (BAR_COLUMNS - filled), "dim"), " ")
    return bar.append_text(_facts(f"{100 * used / limit:.0f} %", f"{size(used)} of {size(limit)}"))


def _messages(leaves: Leaves) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    columns: list[RenderableType] = []
    for names in COUNTER_COLUMNS:
        pairs = Table.grid(padding=(0, 2))
        pairs.add_column(style="dim")
        pairs.add_column(justify="right")
        for name in names:
            number = _number(leaves, f"messages/{name}")
            pairs.add_row(name, Text(count(number), "yellow" if number and name in ALARMING_COUNTERS else ""))
        columns.append(pairs)
    table.add_row(*columns)
    return table


def _load(leaves: Leaves) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for _ in range(3):
        table.add_column(justify="right", min_width=8)
    table.add_row("per second", "[dim]1 min[/]", "[dim]5 min[/]", "[dim]15 min[/]")
    for direction in ("received", "delivered"):
        rates = (_number(leaves, f"load/{direction}/{window}") for window in ("1min", "5min", "15min"))
        table.add_row(direction, *("–" if rate is None else f"{rate:,.2f}" for rate in rates))
    return table


def _facts(*facts: str | tuple[str, str] | None) -> Text:
    from rich.text import Text

    return Text.assemble((" · ", "dim")).join(Text.assemble(fact) for fact in facts if fact is not None)


# ---- leaves and words ----


def count(number: float | None) -> str:
    """Return a number of things, as in `12,345`."""
    return "–" if number is None else f"{number:,.0f}"


def size(byte_count: float | None) -> str:
    """Return a size, as in `1.5 GiB`."""
    if byte_count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if byte_count < 1024:  # noqa: PLR2004 - what the unit is about
            return f"{byte_count:.0f} {unit}" if unit == "B" else f"{byte_count:.1f} {unit}"
        byte_count /= 1024
    return f"{byte_count:.1f} TiB"


def span(seconds: float) -> str:
    """Return a duration in its two largest units, as in `3 h 20 min`."""
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    whole = int(seconds)
    parts = [
        (whole % above // unit, name) for (name, unit), above in zip(units, (10**12, 86_400, 3_600, 60), strict=True)
    ]
    first = next((index for index, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {name}" for number, name in parts[first : first + 2] if number) or "0 s"


def _plural(leaves: Leaves, path: str, noun: str) -> str:
    number = _number(leaves, path)
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def _number(leaves: Leaves, path: str) -> float | None:
    value = leaves.get(path)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _word(leaves: Leaves, path: str) -> str:
    value = leaves.get(path)
    return "–" if value is None else str(value)


def _time(leaves: Leaves, path: str) -> float | None:
    try:
        return datetime.fromisoformat(str(leaves.get(path))).timestamp()
    except ValueError:
        return None
