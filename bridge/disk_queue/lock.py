"""The lock of the queue's folder: one process at a time, and the next one hears whose it is."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from bridge.disk_queue.faults import os_error
from bridge.disk_queue.file import FILE_NAME, sync_folder
from bridge.disk_queue.reserve import RESERVE_NAME
from bridge.errors import QueueInUseError

LOCK_NAME = "bridge.lock"
SOCKET_NAME = "control.sock"  # the control socket's place; it knows the rest (bridge.control)
_OURS = (FILE_NAME, LOCK_NAME, SOCKET_NAME, RESERVE_NAME)


class FolderLock:
    """The lock of a queue's folder: held by one process, released by the kernel when that dies.

    Take it before MQTT: two clients with one client id throw each other out for ever. Raises QueueInUseError with
    the holder's pid, another BridgeError if the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            _make_folder(folder)
            if all(path.name.startswith(_OURS) for path in folder.iterdir()):
                with suppress(PermissionError):  # a volume that belongs to somebody else, and we may write to it
                    folder.chmod(0o700)  # ours alone; a folder with other things in it keeps its mode
            self._fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.fchmod(self._fd, 0o600)  # also one that was there before
        except OSError as error:
            hint = "make it a folder that this user may write to, or set queue.path to another one"
            raise os_error(error, f"the queue folder {folder}", hint) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 20, 0).strip()
            os.close(self._fd)
            raise QueueInUseError(str(folder), int(pid) if pid.isdigit() else None) from error
        os.ftruncate(self._fd, 0)
        with suppress(OSError):  # a full disk: the lock holds without saying whose it is
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the folder back; the queue's file must be closed, or SQLite's own locks would go with our look at it."""
        with suppress(OSError):
            _leave_to_owner(self._folder)
        os.close(self._fd)


def holder_of(folder: Path) -> int | None:
    """Return the process id that the last one to lock the folder left there; it takes no lock to say so."""
    with suppress(OSError, ValueError):
        return int((folder / LOCK_NAME).read_text(encoding="ascii"))
    return None


def _leave_to_owner(folder: Path) -> None:
    """Give what root made in a user's folder to that user: else the user's bridge could not open its own queue."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for path in folder.iterdir():
        if path.name.startswith(_OURS):
            with suppress(OSError):
                _give(path, owner)


def _give(path: Path, owner: os.stat_result) -> None:
    """Change the owner of a file that root made; of no other, for the user may have put a link in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == 0 and found.st_nlink == 1:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make the folder where it is missing; its name is on the medium before a row in it can be."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)
