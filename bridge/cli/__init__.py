"""Where people come in: `edge-bridge COMMAND`.

One table says which commands there are; the module of a command is imported when that command is chosen, so that
`--help` costs nothing. A command module has `add_arguments(parser)` and `execute(args) -> exit status`; `--config` is
declared here for those that take it. Every error of the project is caught here, once: a line a problem and a hint on
standard error, never a traceback. Exit status 0 fine, 1 unhealthy or failed, 2 something for the operator to change.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from bridge import __version__
from bridge.errors import BridgeError, OperatorError, shortage

INTERRUPTED = 130  # as shells report SIGINT
PIPE_CLOSED = 141  # as shells report SIGPIPE
GC_ALLOCATIONS = 20_000  # rows on their way are many and in no cycle: Python's 700 would have it look all the time


class Command(NamedTuple):
    """A command: its module below `bridge.cli`, what it is for, and whether it takes `--config`."""

    module: str
    purpose: str
    takes_config: bool = True


COMMANDS = {
    "See it work": {
        "demo": Command(
            "demo", "the whole way on this machine, with an outage and a kill; counts what was lost", takes_config=False
        ),
    },
    "Operate": {
        "run": Command("run", "the bridge itself, until SIGTERM or Ctrl-C"),
        "queue": Command("queue", "look into the buffer, bring back what is dead, see what was lost"),
        "doctor": Command(
            "doctor", "what is wrong and what to do: broker, cloud, certificates, disk, queue, all at once"
        ),
        "status": Command("status", "how the bridge is: broker, cloud, queue, load"),
    },
    "Configure": {
        "check-config": Command("check_config", "whether the configuration is right; all problems at once"),
        "config": Command("config", "every key there is (schema), each value and where it came from (show)"),
    },
    "Develop": {
        "receiver": Command("receiver", "a cloud end to test against, and to copy", takes_config=False),
        "bench": Command("bench", "how many messages a second this machine carries", takes_config=False),
    },
}
_BY_NAME = {name: command for group in COMMANDS.values() for name, command in group.items()}

_FRAME = """\
edge-bridge {version}
Carries predictions from a local MQTT broker to the cloud through a disk queue, and loses none.

usage: edge-bridge COMMAND [options]
       edge-bridge COMMAND --help
       edge-bridge --version

{commands}

Configuration
  --config FILE, else $BRIDGE_CONFIG, else config/bridge.toml, else /etc/edge-bridge/bridge.toml; over that
  the environment: BRIDGE_<SECTION>__<KEY>, as in BRIDGE_UPLOAD__URL=https://cloud.example/ingest

Exit status
  0 fine   1 unhealthy or failed   2 something for you to change
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
    except BridgeError as error:
        from bridge.cli.output import print_error

        print_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return PIPE_CLOSED
    except Exception as error:  # noqa: BLE001  the top of the program
        return _tell_internal(error)
    return status


def _run(arguments: list[str]) -> int:
    first, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if first in {"-h", "--help"}:
        print(overview(), end="")
        return 0
    if first in {"-V", "--version"}:
        print(f"edge-bridge {__version__}")
        return 0
    command = _BY_NAME.get(first)
    if command is None:
        raise _no_command(first)
    gc.set_threshold(GC_ALLOCATIONS, 10, 10)  # before the imports: they too make much that stays
    module = importlib.import_module(f"bridge.cli.{command.module}")
    parser = Parser(
        prog=f"edge-bridge {first}",
        description=f"{command.purpose[0].upper()}{command.purpose[1:]}.",
        allow_abbrev=False,
    )
    if command.takes_config:
        parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file; see edge-bridge --help")
    module.add_arguments(parser)
    args = parser.parse_strictly(rest)
    status: int = module.execute(args)
    return status


def overview() -> str:
    """Return what `edge-bridge --help` shows."""
    width = max(map(len, _BY_NAME))
    groups = (
        "\n".join([title, *(f"  {name:<{width}}   {command.purpose}" for name, command in group.items())])
        for title, group in COMMANDS.items()
    )
    return _FRAME.format(version=__version__, commands="\n\n".join(groups))


def _no_command(word: str) -> OperatorError:
    if not word:
        return OperatorError("a command is missing", "`edge-bridge --help` lists them; `edge-bridge demo` shows it all")
    if word.startswith("-"):
        return OperatorError(
            f"there is no option {word} before a command", "options stand behind the command: edge-bridge --help"
        )
    near = difflib.get_close_matches(word, _BY_NAME, n=1)
    advice = f"did you mean `edge-bridge {near[0]}`? " if near else ""
    return OperatorError(f"there is no command {word!r}", f"{advice}`edge-bridge --help` lists them")


def _tell_internal(error: Exception) -> int:
    """Tell of a mistake of ours, in one line; the traceback only for who asked for it."""
    from bridge.cli.output import print_error
    from bridge.config import wants_traceback

    if wants_traceback():
        raise error
    if short := shortage(error, "the process"):
        print_error(short)
        return short.exit_status
    hint = "this is a fault in edge-bridge: please report it; with BRIDGE_DEBUG=1 it shows the traceback"
    print_error(BridgeError(f"internal error: {type(error).__name__}: {error}", hint))
    return BridgeError.exit_status


class Parser(argparse.ArgumentParser):
    """argparse, but bad arguments are an `OperatorError` like any other, with the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise OperatorError(message, f"`{self.prog} --help` shows what it takes")

    def parse_strictly(self, arguments: list[str]) -> argparse.Namespace:
        """Parse, and refuse what is left over."""
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            options = re.findall(r"(?<!\S)--[\w-]+", self.format_help())
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
            advice = f"did you mean {near[0]}? " if near else ""
            raise OperatorError(
                f"{unknown[0]!r} is not understood", f"{advice}`{self.prog} --help` shows what it takes"
            )
        return args
