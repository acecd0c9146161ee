"""What a process has used so far, from Linux's /proc; each figure is None where the system does not tell it.

The parsers are pure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from bridge.disk_queue import wear

_USER_TICKS, _SYSTEM_TICKS = 11, 12  # fields after the command's name, proc(5)


class Usage(NamedTuple):
    """Figures of one process, as totals since its start."""

    cpu_seconds: float | None = None
    rss_bytes: int | None = None
    rss_peak_bytes: int | None = None
    written_bytes: int | None = None  # handed to the file system's block layer; 0 on tmpfs

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read them all."""
        folder = Path("/proc") / str(pid)
        status = _text(folder / "status")
        return cls(
            cpu_seconds(_text(folder / "stat"), os.sysconf("SC_CLK_TCK")),
            status_bytes(status, "VmRSS"),
            status_bytes(status, "VmHWM"),
            wear.parsed(_text(folder / "io")),
        )

    @classmethod
    def sum(cls, usages: Sequence[Self]) -> Self:
        """Add the figures of several processes; one that is not told by all of them is not told at all."""
        columns = [[figure for figure in column if figure is not None] for column in zip(*usages, strict=True)]
        return cls(*(sum(column) if len(column) == len(usages) else None for column in columns))


def cpu_seconds(stat: str, ticks_a_second: int) -> float | None:
    """Read user and system time of /proc/PID/stat; the command's name in it may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / ticks_a_second if fields else None


def status_bytes(status: str, name: str) -> int | None:
    """Read one size of /proc/PID/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
