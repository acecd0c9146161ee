"""A bridge's time of day, shifted while it runs; libfaketime missing, a test skips on a laptop and fails in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LIBRARIES = (
    "usr/lib/*/faketime/libfaketimeMT.so.1",
    "usr/lib*/faketime/libfaketimeMT.so.1",
    "opt/homebrew/lib/*MT.so*",
)


class Clock:
    """What a bridge started with `variables` reads as the time of day is shifted by what stands in a file.

    Time since the start stays true, as on a real machine whose clock is set. Stop such a bridge in order: killed, it
    would leave libfaketime's shared memory behind.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.shift("+0")

    def shift(self, by: str) -> None:
        """`+1h`, `-3650d`, or `@1970-01-01 00:10:00` for an absolute time from which it goes on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(by + "\n")
        fresh.replace(self._file)

    @property
    def variables(self) -> dict[str, str]:
        found = [str(path) for pattern in LIBRARIES for path in Path("/").glob(pattern)]
        if not found:
            missing = "libfaketime is not installed: apt-get install faketime"
            pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
        return {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # CPython waits for its interpreter lock in steps of 5 ms of the steady clock. libfaketime shifts those
            # deadlines, too (until its #503): after a jump ahead a bridge would spin, after one back it would starve.
            "FAKETIME_WAIT_MS": "5",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
