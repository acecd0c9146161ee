"""How the bench talks with its own processes: a JSON object a line, each command with exactly one answer.

A process says `{"ready": true, …}` once it can begin and ends when its standard input does, so that none of them
outlives the bench, whatever becomes of that.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def say(answer: dict[str, Any]) -> None:
    """Write one answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def hear() -> dict[str, Any] | None:
    """Wait for the next command; None at the end."""
    line = sys.stdin.readline()
    command: dict[str, Any] | None = json.loads(line) if line else None
    return command
