"""What the process has given to its disks to write, from Linux's /proc: what wears flash out."""

from __future__ import annotations

from pathlib import Path

_IO = Path("/proc/self/io")


def written_bytes() -> int | None:
    """Return the bytes written since the process started, less what was deleted before it reached a disk; or None."""
    try:
        return parsed(_IO.read_text(encoding="ascii"))
    except OSError:  # not Linux, or not to be known here
        return None


def parsed(io: str) -> int | None:
    """Read /proc/PID/io, proc(5); None if it says nothing."""
    found = dict(line.split(": ") for line in io.splitlines())
    return int(found["write_bytes"]) - int(found["cancelled_write_bytes"]) if found else None
