"""The reserve: a file in the queue's folder whose room is given back when others have filled the disk.

On a disk without a free byte SQLite can neither write a delete nor write back its WAL, so a full queue could never
drain. The reserve is made while there is room, kept over restarts, released at the first "full", and made again by
housekeeping once there is twice its size. While it is released intake stores nothing (it would eat it up): the room
belongs to acks, deletes and the WAL. What the WAL got it keeps and writes over, so it lasts for any backlog.

Holds its part of I5: the database never has to grow by more than half a reserve when the WAL is written back, so the
reserve always covers that. The WAL itself may gather more, as long as it holds the same pages again and again: what is
written over there need not be written back, which is what wears flash out.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

RESERVE_NAME = "reserve"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_BYTES_MIN, _BYTES_MAX = 1 << 20, 16 << 20
_DISK_PARTS = 8  # an eighth of a very small disk
_CHUNK_BYTES = 1 << 20


class Reserve:
    """The reserve of one queue folder. `spent`: it was released, or there is no room for it; then the disk is full."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / RESERVE_NAME
        room = os.statvfs(folder)
        disk_bytes = room.f_blocks * room.f_frsize
        self.size_bytes = max(_BYTES_MIN, min(disk_bytes // _DISK_PARTS, _BYTES_MAX))
        self.spent = False

    @property
    def wanted_bytes(self) -> int:
        """Free space from which on it is made: twice its size, so that it does not come and go."""
        return 2 * self.size_bytes

    @property
    def growth_bytes_max(self) -> int:
        """What the database may have to grow by when the WAL is written back."""
        return self.size_bytes // 2

    @property
    def wal_bytes(self) -> int:
        """How much WAL is gathered before it is written back; on a full disk only what `release_into` made room for."""
        return self.growth_bytes_max if self.spent else 4 * self.size_bytes

    @property
    def held(self) -> bool:
        """Whether the file is there, whole; an earlier run may have made it."""
        try:
            return self._file.stat().st_size >= self.size_bytes
        except FileNotFoundError:
            return False

    def release(self) -> bool:
        """Give its room back; tells whether there was any."""
        self.spent = True
        try:
            self._file.unlink()
        except FileNotFoundError:
            return False
        return True

    def release_into(self, database: int, size_bytes: int, wal: Path) -> None:
        """Release it, and have the database, an open file, grow to this size and the WAL take half of the room.

        That is done before others can, or nearly so; if they did, what is left is what there is. SQLite goes by the
        number of pages in the database's header, not by its length; zeros behind the last frame of the WAL it reads
        as its end, and writes over them.
        """
        descriptor = os.open(wal, os.O_WRONLY | os.O_CLOEXEC)  # no lock of SQLite's is on this file
        try:
            if self.release():
                _grow(database, size_bytes)
                _grow(descriptor, self.growth_bytes_max)
        finally:
            os.close(descriptor)

    def keep(self, free_bytes: int) -> None:
        """Make it if it is not there and there is room."""
        if self.held:
            return
        self.spent = free_bytes < self.wanted_bytes
        if not self.spent:
            try:
                self._make()
            except OSError as error:
                self._file.unlink(missing_ok=True)
                self.spent = error.errno in NO_ROOM  # others were faster, or a quota; else go on without

    def _make(self) -> None:
        self._file.unlink(missing_ok=True)  # what a kill left half made
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, self.size_bytes)
        finally:
            os.close(descriptor)


def _grow(descriptor: int, size_bytes: int) -> None:
    """Lengthen a file by real blocks, if there is room."""
    length = os.fstat(descriptor).st_size
    if length < size_bytes:
        with suppress(OSError):
            os.posix_fallocate(descriptor, length, size_bytes - length)


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Have the file system set real blocks aside; where it cannot, write what no compression makes smaller."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        for offset in range(0, size_bytes, _CHUNK_BYTES):
            os.pwrite(descriptor, os.urandom(_CHUNK_BYTES), offset)
