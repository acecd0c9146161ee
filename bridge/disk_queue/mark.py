"""The mark: how far the queue had come, in a small file beside it, written after each commit and never synced.

It costs one pwrite a commit. What it says was on the medium before it was written, so the truth may be ahead of it
(after a power cut) and never behind: rows that it knows and the database does not are gone, although SQLite finds
nothing wrong. It also tells a damaged file of ours from garbage that is somebody else's.
"""

from __future__ import annotations

import os
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK_SUFFIX = "-mark"
_LINE = re.compile(rb"edge-bridge mark: row (\d{20}) waiting (\d{20}) crc ([0-9a-f]{8})\n")


class Mark(NamedTuple):
    """The highest row id given out, and how many rows were waiting."""

    newest: int
    waiting: int


class MarkFile:
    """The mark of a queue that is open; `write` never fails, for it is only a note."""

    def __init__(self, file: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor: int | None = os.open(f"{file}{MARK_SUFFIX}", flags, 0o600)
        self._written: Mark | None = None

    def write(self, mark: Mark) -> None:
        """Note what was committed."""
        if mark != self._written and self._descriptor is not None:
            text = b"edge-bridge mark: row %020d waiting %020d" % mark
            with suppress(OSError):
                os.pwrite(self._descriptor, b"%b crc %08x\n" % (text, zlib.crc32(text)), 0)
                self._written = mark

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_mark(file: Path) -> Mark | None:
    """Return the mark of a database file; None if there is none that can be believed."""
    try:
        line = Path(f"{file}{MARK_SUFFIX}").read_bytes()
    except OSError:
        return None
    found = _LINE.fullmatch(line)
    if found is None or zlib.crc32(line.partition(b" crc ")[0]) != int(found[3], 16):
        return None
    return Mark(int(found[1]), int(found[2]))
