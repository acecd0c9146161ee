"""`edge-bridge demo`: the whole way on this machine, with an outage and a kill, and what was lost at the end.

Only shows; what happens is `bridge.demo`'s. On a terminal one screen that is drawn anew in place, otherwise a line
now and then. Results on standard output; with `--json` these are one object, and all the rest goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.cli.output import print_json
from bridge.errors import OperatorError
from bridge.log import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from bridge.demo.acts import Act
    from bridge.demo.stage import Stage
    from bridge.demo.story import Outcome, Snapshot

MESSAGES_DEFAULT = 12_000
MESSAGES_MIN, MESSAGES_MAX = 200, 100_000
LINE_SECONDS = 2.0
_FRAMES_PER_SECOND = 10
_BAR_COLUMNS = 38

_EPILOG = """\
needs: mosquitto, and scikit-learn (pip install 'edge-bridge[demo]'; in the repository, make setup brings both)

--json prints one object:
  ok                            whether nothing was lost and the bridge stopped in order: the exit status says it too
  published                     messages that the broker confirmed to the cameras (PUBACK)
  stored                        of these, the ones whose ids are in the bridge's queue file
  delivered                     different ids that the cloud has
  duplicated                    events that the cloud was sent again, and recognised by their id
  lost                          published, and not delivered
  unexpected                    delivered, and never published
  altered                       delivered with another payload than was published
  backlog_max                   most rows that waited on the disk at once
  outage_seconds                how long the cloud was away, and
  published_in_outage           what was published meanwhile
  drain_seconds                 from the cloud's return until it had everything published before it
  kills                         times that the bridge was killed with SIGKILL
  bridge_down_seconds           how long it was down, and
  published_while_bridge_down   what was published meanwhile
  bridge_exit_status            of its orderly stop at the end
  accuracy                      share of right answers of the classifier, on images it was not trained on
  seconds                       the whole demo

exit status: 0 nothing was lost   1 something was, or a program failed   2 something for you to change
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--messages", type=_messages, default=MESSAGES_DEFAULT, metavar="N", help="predictions (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="which images are learnt and which asked about")
    parser.add_argument("--json", action="store_true", help="print the result as JSON; the rest to standard error")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work in this new folder, and leave logs and data there"
    )


def execute(args: argparse.Namespace) -> int:
    """Play it; 0 only if nothing was lost."""
    from bridge.demo.stage import Stage, StageError

    console = _console(to_stderr=args.json)
    with _folder(args.keep) as folder, Stage(folder, args.messages) as stage:
        in_place = console.is_terminal and not console.is_dumb_terminal
        screen = Screen(console, stage.web_port) if in_place else Lines(console)
        try:
            with screen:
                outcome = asyncio.run(_play(stage, args.messages, args.seed, screen))
        except StageError as error:
            for line in error.log_lines:
                print(f"  | {printable(line)}", file=sys.stderr)
            raise
    if args.json:
        print_json(outcome.to_json())
    else:
        console.print(report(outcome))
    if args.keep:
        console.print(f"Kept in {args.keep}: the logs, the queue, and what the cloud has.", markup=False)
    return 0 if outcome.is_good else 1


async def _play(stage: Stage, messages: int, seed: int, screen: Screen | Lines) -> Outcome:
    """Play the story; signals that ask to end, end it: whoever holds the stage cleans up."""
    from bridge.demo.story import Story

    loop, playing = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, playing.cancel if playing else loop.stop)
    try:
        return await Story(stage, messages, seed, screen).run()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _messages(text: str) -> int:
    if not (text.isascii() and text.isdigit() and MESSAGES_MIN <= int(text) <= MESSAGES_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {MESSAGES_MIN} to {MESSAGES_MAX}")
    return int(text)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Give a folder to work in: a passing one, or the one that was asked for."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="edge-bridge-demo-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise OperatorError(
            f"{keep} cannot be made: {os.strerror(error.errno or 0)}", "give --keep a folder that does not exist yet"
        ) from error
    yield keep


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a terminal that has no "●" shows "?" and not a traceback
    return Console(file=stream, highlight=False)


# ---- without a terminal ----


class Lines:
    """A line for each act, and for the state of things now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_at = time.monotonic()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def begin(self, act: Act) -> None:
        """Say what happens now."""
        self._say(f"{act.title}. {act.words}")

    def end(self, result: str) -> None:
        """Say how it went."""
        self._say(f"  → {result}")

    def show(self, snapshot: Snapshot) -> None:
        """Say where everything is, unless something was said a moment ago."""
        if time.monotonic() - self._said_at >= LINE_SECONDS:
            self._say(
                f"  {snapshot.seconds:3.0f} s  published {snapshot.published:,}, stored {snapshot.stored:,},"
                f" waiting {snapshot.waiting:,}, delivered {snapshot.delivered:,}; {_presence(snapshot)}"
            )

    def _say(self, line: str) -> None:
        self._said_at = time.monotonic()
        self._console.print(line, markup=False, soft_wrap=True)


def _presence(snapshot: Snapshot) -> str:
    bridge, cloud = ("here" if is_there else "away" for is_there in (snapshot.bridge_is_there, snapshot.cloud_is_there))
    return f"bridge {bridge}, cloud {cloud}"


# ---- on a terminal ----


class Screen:
    """One view of it all, drawn anew in place."""

    def __init__(self, console: Console, web_port: int) -> None:
        from rich.live import Live

        self._web_port = web_port
        self._results: dict[Act, str] = {}
        self._act: Act | None = None
        self._snapshot: Snapshot | None = None
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=_FRAMES_PER_SECOND, redirect_stderr=False
        )

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._act = None
        self._live.stop()

    def begin(self, act: Act) -> None:
        """Mark the act as running."""
        self._act = act

    def end(self, result: str) -> None:
        """Mark it as done."""
        if self._act is not None:
            self._results[self._act] = result

    def show(self, snapshot: Snapshot) -> None:
        """Take what the next frame shows."""
        self._snapshot = snapshot

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        snapshot, act = self._snapshot, self._act
        if snapshot is None:
            return ""
        if act is None:  # all programs are gone: what is left to see is what was
            return Group(_head(snapshot), "", _bars(snapshot), "", self._acts(act))
        head = _head(snapshot, f"   its page: http://127.0.0.1:{self._web_port}/")
        words = Text(act.words, "italic")
        return Group(head, "", _chain(snapshot), "", _bars(snapshot), "", self._acts(act), "", words)

    def _acts(self, current: Act | None) -> RenderableType:
        from rich.text import Text

        from bridge.demo.acts import Act

        table = _grid()
        for act in Act:
            if act in self._results:
                table.add_row(Text("✓", "green"), act.title, Text(self._results[act], "dim"))
            elif act is current:
                table.add_row(Text("▸", "bold yellow"), Text(act.title, "bold"), "")
            else:
                table.add_row(" ", Text(act.title, "dim"), "")
        return table


def _grid() -> Table:
    from rich.table import Table

    return Table.grid(padding=(0, 2, 0, 0))


def _head(snapshot: Snapshot, remark: str = "") -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    line.add_row(Text.assemble(("edge-bridge demo", "bold"), (remark, "dim")), Text(f"{snapshot.seconds:.0f} s", "dim"))
    return line


def _chain(snapshot: Snapshot) -> Text:
    from rich.text import Text

    arrow = (" ──▶ ", "dim")
    return Text.assemble(
        _station("cameras", is_there=True),
        arrow,
        _station("broker", is_there=True),
        arrow,
        _station("bridge and disk", is_there=snapshot.bridge_is_there),
        arrow,
        _station("cloud", is_there=snapshot.cloud_is_there),
    )


def _station(name: str, *, is_there: bool) -> Text:
    from rich.text import Text

    return Text(f"● {name}", "green") if is_there else Text(f"■ {name} away", "bold red")


def _bars(snapshot: Snapshot) -> RenderableType:
    table = _grid()
    table.add_column()
    table.add_column()
    table.add_column(justify="right", min_width=7)
    table.add_column(style="dim")
    for name, number, style, remark in (
        ("published", snapshot.published, "cyan", f"of {snapshot.messages:,}"),
        ("on disk", snapshot.stored, "blue", ""),
        ("delivered", snapshot.delivered, "green", ""),
        ("waiting", snapshot.waiting, "yellow", f"at most {snapshot.waiting_max:,}"),
    ):
        table.add_row(name, _bar(number / snapshot.messages, style), f"{number:,}", remark)
    return table


def _bar(share: float, style: str) -> Text:
    from rich.text import Text

    filled = round(_BAR_COLUMNS * min(1.0, share))
    return Text.assemble(("━" * filled, style), ("─" * (_BAR_COLUMNS - filled), "dim"))


# ---- the end ----


def report(outcome: Outcome) -> RenderableType:
    """Return the count and what was measured, for people."""
    from rich.console import Group
    from rich.text import Text

    tally = outcome.tally
    table = _grid()
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, number, meaning in (
        ("published", tally.published, "confirmed by the broker to the cameras"),
        ("stored", tally.stored, "ids in the bridge's queue file"),
        ("delivered", tally.delivered, "ids at the cloud"),
        ("duplicated", tally.duplicated, "sent again under the same id, and recognised by it"),
        ("lost", tally.lost, "published, not delivered"),
        *((("unexpected", tally.unexpected, "delivered, never published"),) if tally.unexpected else ()),
        *((("altered", tally.altered, "delivered with another payload"),) if tally.altered else ()),
    ):
        table.add_row(name, f"{number:,}", meaning)
    return Group("", table, "", *(Text(line) for line in _measured(outcome)), "", _verdict(outcome))


def _measured(outcome: Outcome) -> Iterator[str]:
    yield (
        f"Cloud away for {outcome.outage_seconds:.1f} s, up to {outcome.backlog_max:,} rows on disk, "
        f"drained {outcome.drain_seconds:.1f} s after its return."
    )
    meanwhile = f"{outcome.published_while_bridge_down:,} published meanwhile"
    yield f"Bridge dead for {outcome.bridge_down_seconds:.1f} s, {meanwhile}."
    yield f"The classifier was right in {outcome.accuracy:.1%}. {outcome.seconds:.0f} s in all."


def _verdict(outcome: Outcome) -> Text:
    from rich.text import Text

    if outcome.is_good:
        return Text("Nothing was lost.", "bold green")
    if outcome.tally.is_sound:
        return Text(f"Nothing was lost, but the bridge ended with {outcome.bridge_exit_status}.", "bold red")
    return Text("The count does not come out even: this is a defect, please report it.", "bold red")


__all__ = ["add_arguments", "execute", "report"]
