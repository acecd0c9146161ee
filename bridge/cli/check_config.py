"""`edge-bridge check-config`: is the configuration right? It reads what `run` would read, and touches nothing else."""

from __future__ import annotations

import argparse

from bridge.cli.output import print_json
from bridge.config import Examined, examine_environment
from bridge.errors import ConfigError, OperatorError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes beside `--config`."""
    parser.add_argument(
        "--json", action="store_true", help='print {"valid": …, "file": …, "problems": [{"key", "problem"}]}'
    )


def execute(args: argparse.Namespace) -> int:
    """Say that the configuration is valid, or everything that is wrong with it; then the exit status is 2."""
    examined = examine_environment(args.config)
    source = str(examined.file) if examined.file else "no file, defaults and environment alone"
    if args.json:
        print_json(document(examined))
        return 0 if examined.loaded else OperatorError.exit_status
    if examined.loaded is None:
        raise ConfigError([str(problem) for problem in examined.problems], f"read from: {source}")
    print(f"the configuration is valid ({source})")
    return 0


def document(examined: Examined) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "valid": examined.loaded is not None,
        "file": str(examined.file) if examined.file else None,
        "problems": [{"key": problem.key, "problem": problem.text} for problem in examined.problems],
    }
