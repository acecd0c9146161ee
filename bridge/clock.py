"""This boot, and how long it has lasted: what tells when something came although nobody knew the time of day.

Beside the way of a message. A board without a clock battery starts in 1970, or at the day its system was built, until
NTP sets its clock. Seconds since the boot are right all the while, so what came then can be dated afterwards, as long
as the boot is the same. Never waits for the clock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class Boot(NamedTuple):
    """One run of this machine: an id that no other has, and the seconds since it began."""

    id: str
    seconds: Callable[[], float]


def this_boot() -> Boot:
    """Return the boot that we are in; where the system does not name it, it is as long as this process."""
    with suppress(OSError):
        return Boot(_BOOT_ID_FILE.read_text(encoding="ascii").strip(), _seconds_since_boot)
    return Boot(f"process-{secrets.token_hex(8)}", time.monotonic)


def _seconds_since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # Linux, as is the file: goes on in suspend, unlike monotonic
