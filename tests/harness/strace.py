"""System calls as strace saw them: who wrote what where, and which sync had returned by then."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = "recvfrom,sendto,write,pwrite64,pwritev,fsync,fdatasync"
# All that may change a file or a folder; `?` before what some machines do not have.
FILE_CALLS = (
    "openat,?open,?creat,openat2,write,writev,pwrite64,pwritev,pwritev2,copy_file_range,sendfile,fsync,fdatasync,"
    "sync_file_range,ftruncate,truncate,fallocate,?unlink,unlinkat,?rename,?renameat,renameat2,?mkdir,mkdirat,?rmdir,"
    "?link,linkat,?symlink,symlinkat"
)
STRING_BYTES_MAX = 1 << 20  # more than any one call here moves
SYNC_CALLS = frozenset({"fsync", "fdatasync"})
SYNCS = ",".join(sorted(SYNC_CALLS))
QUIET = ("strace", "-f", "-qq", "--seccomp-bpf")  # stops only at the calls that are looked at

_BEGAN = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_ENDED = re.compile(r"\) += (-?\d+)[^=\"]*$")
_STRING = r'"((?:[^"\\]|\\.)*)"'
_ARGUMENTS = re.compile(rf"(?:\d+<(.*?)>|(?:AT_FDCWD(?:<.*?>)?, )?{_STRING})(?=[,)]|$)(?:, {_STRING})?(.*)")
_UNFINISHED = " <unfinished ...>"


def watching(log: Path) -> tuple[str, ...]:
    """Return the wrapper that writes all that `calls` reads, with descriptors resolved to files and connections."""
    return (*QUIET, "-yy", "-s", str(STRING_BYTES_MAX), "-e", f"trace={CALLS}", "-o", str(log))


def recording_files(log: Path) -> tuple[str, ...]:
    """Return the wrapper that writes all that happens to files, for `calls` to read."""
    return (*QUIET, "-yy", "-s", str(STRING_BYTES_MAX), "-e", f"trace={FILE_CALLS}", "-o", str(log))


def counting_syncs(log: Path) -> tuple[str, ...]:
    """Return the wrapper that writes a line a sync and costs nothing else."""
    return (*QUIET, "-e", f"trace={SYNCS}", "-o", str(log))


def delaying_syncs(delay_seconds: float) -> tuple[str, ...]:
    """Return the wrapper that makes each sync take so much longer: a slow SD card."""
    inject = f"inject={SYNCS}:delay_exit={int(delay_seconds * 1e6)}"
    return (*QUIET, "-e", f"trace={SYNCS}", "-e", inject, "-o", "/dev/null")


def stalling_sync(number: int, seconds: float) -> tuple[str, ...]:
    """Return the wrapper that makes the N-th sync of each thread take so much longer, and no other."""
    inject = f"inject=fdatasync:delay_exit={int(seconds * 1e6)}:when={number}"
    return (*QUIET, "-e", "trace=fdatasync", "-e", inject, "-o", "/dev/null")


def failing(calls: str, error: str, when: str, files: Iterable[Path], log: Path) -> tuple[str, ...]:
    """Return the wrapper that fails these calls on these files, at the N-th of a thread (N) or from there on (N+).

    The log holds what failed.
    """
    paths = [word for file in files for word in ("-P", str(file))]
    inject = f"inject={calls}:error={error}:when={when}"
    return (*QUIET, *paths, "-e", f"trace={calls}", "-e", inject, "-e", "status=failed", "-o", str(log))


def injected(log: Path) -> int:
    """Return how many calls were made to fail."""
    return log.read_text().count("(INJECTED)")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: when it began and returned (in lines of the log), on which file or connection, and the bytes moved.

    `rest` is what strace wrote behind that: flags, lengths, offsets.
    """

    name: str
    began: int
    returned: int
    target: str
    data: bytes
    result: int
    rest: str


def calls(log: Path) -> Iterator[Call]:
    """Yield the calls in the order in which they returned."""
    open_calls: dict[str, tuple[int, str, str]] = {}
    with log.open(encoding="ascii") as lines:
        for number, raw in enumerate(lines):
            line = raw.rstrip("\n")
            if resumed := _RESUMED.match(line):
                began, name, text = open_calls.pop(resumed[1])
                text += resumed[2]
            elif begun := _BEGAN.match(line):
                began, name, text = number, begun[2], begun[3]
                if text.endswith(_UNFINISHED):
                    open_calls[begun[1]] = (number, name, text.removesuffix(_UNFINISHED))
                    continue
            else:
                continue  # signals, ends of threads
            if (ended := _ENDED.search(text)) and (arguments := _ARGUMENTS.match(text)):
                data, _ = codecs.escape_decode((arguments[3] or "").encode())
                target = arguments[1] or arguments[2]
                yield Call(name, began, number, target, data, int(ended[1]), arguments[4])
