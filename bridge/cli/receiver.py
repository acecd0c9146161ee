"""`edge-bridge receiver`: the reference cloud end, on this machine.

Only reads arguments and prints one line; the work is `bridge.receiver`'s.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from bridge.errors import OperatorError
from bridge.receiver.app import ReceiverOptions, run

PORT_DEFAULT = 8088
PORT_MAX = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--port", type=_port, default=PORT_DEFAULT, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("receiver-data"),
        metavar="DIR",
        help="where to keep events (default: %(default)s)",
    )
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token", help="bearer token that senders must have; other users can see it in `ps`")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="file that holds the token")
    parser.add_argument("--allow-faults", action="store_true", help="let PUT /faults make it fail on purpose")


def execute(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; the first line on standard output says where."""
    options = ReceiverOptions(
        folder=args.data,
        host=args.host,
        port=args.port,
        token=_token(args.token, args.token_file),
        allow_faults=args.allow_faults,
    )
    asyncio.run(run(options, _announce))
    return 0


def _announce(url: str) -> None:
    print(f"receiver listening on {url}", flush=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= PORT_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number (0 to {PORT_MAX})")
    return int(text)


def _token(given: str | None, path: Path | None) -> str | None:
    if path is not None:
        try:
            given = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"the token file {path} can not be read: {error}", "check --token-file") from error
    if given == "":
        raise OperatorError("the token is empty", "leave the option out to take events from everybody")
    return given
