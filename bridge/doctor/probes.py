"""The doctor's small looks at the machine: names, certificates, disk, clock of the disk. Each blocks.

Each runs in a daemon thread of its own, and nobody waits for it longer than its time limit, nor at the end of the
process: a resolver takes half a minute to give up, and a look at a dead NFS server never returns. They judge nothing,
and leave nothing behind: the file whose sync is timed has no name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from bridge.doctor.judge import Mount, Room

T = TypeVar("T")

_SYNCS, _SYNC_BYTES, _SYNCS_SECONDS = 9, 4096, 1.5
_MOUNTS = Path("/proc/self/mountinfo")
_LOG_BYTES = 64 << 10


async def in_thread(look: Callable[[], T], limit_seconds: float) -> T:
    """Run a look; TimeoutError if it does not return within the limit, and then it is left alone."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if found.done():  # given up meanwhile
            return
        if error:
            found.set_exception(error)
        else:
            found.set_result(cast("T", value))

    def run() -> None:
        value, failure = None, None
        try:
            value = look()
        except Exception as error:  # noqa: BLE001  the top of the thread; whoever waits raises it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: it took too long
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name="look", daemon=True).start()
    async with asyncio.timeout(limit_seconds):
        return await found


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name; OSError says why there is none."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def shown_certificate(host: str, port: int, limit_seconds: float) -> bytes:
    """Return the certificate that a server shows, in DER, whoever it is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: an expired certificate is what we want to see
    with (
        socket.create_connection((host, port), timeout=limit_seconds) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        return encrypted.getpeercert(binary_form=True) or b""


def own_certificate(file: Path) -> bytes:
    """Return the first certificate of a PEM file, in DER; ValueError if there is none."""
    text = file.read_text(encoding="ascii", errors="replace")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    if begin not in text or end not in text:
        raise ValueError("it holds no certificate")
    return ssl.PEM_cert_to_DER_cert(text[text.index(begin) : text.index(end) + len(end)])


def nearest(folder: Path) -> Path:
    """Return the folder, or what is there of the way to it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def room(folder: Path) -> Room:
    """Return the room on the disk of a folder."""
    found = os.statvfs(folder)
    return Room(
        found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
    )


def mount_of(folder: Path) -> Mount | None:
    """Return what a folder is mounted on; None where the system does not tell (only Linux does)."""
    try:
        table = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return mount_in(table, folder.resolve())


def mount_in(table: str, folder: Path) -> Mount | None:
    """Find a folder in a table such as /proc/self/mountinfo, as proc(5) describes it."""
    best: tuple[int, Mount] | None = None
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        own, of_kind = left.split(" "), right.split(" ")
        point = Path(own[4].encode("latin-1", "replace").decode("unicode_escape"))
        if folder.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            options = {*own[5].split(","), *of_kind[2].split(",")}
            best = (len(point.parts), Mount(of_kind[0], frozenset(options)))
    return best[1] if best else None


def sync_seconds(folder: Path) -> float:
    """Write a little and sync it, a few times, in a file without a name; return the median duration of a sync."""
    durations: list[float] = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        deadline = time.monotonic() + _SYNCS_SECONDS
        while len(durations) < _SYNCS and (not durations or time.monotonic() < deadline):
            file.write(os.urandom(_SYNC_BYTES))
            started_at = time.perf_counter()
            os.fsync(file.fileno())
            durations.append(time.perf_counter() - started_at)
    return statistics.median(durations)


def log_of(pid: int) -> bytes:
    """Return the end of a process's log if its standard error is a file; else nothing."""
    path = Path(f"/proc/{pid}/fd/2")
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as log:
            log.seek(-min(_LOG_BYTES, path.stat().st_size), os.SEEK_END)
            return log.read(_LOG_BYTES)
    except OSError:
        return b""
