"""A disk so small that a test can fill it: a tmpfs in a mount namespace of its own; the test sees it through /proc.

It is gone with the process that keeps it, whatever becomes of the test, and needs root or user namespaces. Where a
container has neither, its /dev/shm serves if that is small enough (Docker makes it 64 MB).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

SIZE = "8m"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  not for a file of a fixed name
SHARED_BYTES_MAX = 256 << 20
_KEEP = f'mount -t tmpfs -o size={SIZE},mode=700 none "$1" && echo mounted && exec cat'


class SmallDisk:
    """`fill()` leaves not a byte, `clear()` takes the filler away again.

    `folder` lies on it, as the test sees it; `inside` is the same folder for a program behind `wrapper`.
    """

    def __init__(self, mount_point: Path) -> None:
        self.inside = mount_point
        self.wrapper: tuple[str, ...] = ()
        self._keeper: subprocess.Popen[bytes] | None = None
        self.folder = Path()

    @property
    def free_bytes(self) -> int:
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize

    def fill(self) -> None:
        """Have another process write until nothing more goes in."""
        command = ["/bin/sh", "-c", 'cat /dev/zero >> "$1"', "sh", str(self.folder / "filler")]
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False)

    def clear(self) -> None:
        (self.folder / "filler").unlink()

    def __enter__(self) -> Self:
        self.inside.mkdir(parents=True)
        if not (self._mounted("-m", "-m") or self._mounted("-Urm", "-Um", "--preserve-credentials") or self._shared()):
            pytest.skip("no small disk: mounting and user namespaces are not permitted, and /dev/shm is large")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is None:
            shutil.rmtree(self.folder)
        else:
            self._keeper.communicate(timeout=10)

    def _mounted(self, unshare: str, *enter: str) -> bool:
        command = ["unshare", unshare, "sh", "-c", _KEEP, "sh", str(self.inside)]
        try:
            keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            return False
        assert keeper.stdout
        if not keeper.stdout.readline():
            keeper.communicate()
            return False
        self._keeper = keeper
        self.folder = Path(f"/proc/{keeper.pid}/root{self.inside}")
        self.wrapper = ("nsenter", "-t", str(keeper.pid), *enter)
        return True

    def _shared(self) -> bool:
        if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).total > SHARED_BYTES_MAX:
            return False
        self.folder = self.inside = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
        return True
