"""The machine that was measured: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bridge import __version__
from bridge.bench.stage import mosquitto
from bridge.errors import OperatorError

_PACKAGES = ("aiohttp", "orjson", "paho-mqtt", "persist-queue", "uvloop", "zstandard")
_MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}


def describe(folder: Path) -> dict[str, Any]:
    """Return versions, cores and the file system of the folder that the queue is written to."""
    return {
        "edge_bridge": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "sqlite": _output(sys.executable, "-c", "import sqlite3; print(sqlite3.sqlite_version)"),
        "mosquitto": _mosquitto_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "file_system": file_system(folder),
    }


def mq_bridge_version(python: str) -> str:
    """Return which mq-bridge this Python has; OperatorError if it has none."""
    ask = "import mq_bridge; from importlib.metadata import version; print(version('mq-bridge'))"
    try:
        return subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise OperatorError(
            f"{python} cannot import mq_bridge",
            "python -m venv DIR && DIR/bin/pip install mq-bridge, then --mq-bridge DIR/bin/python",
        ) from error


def is_in_memory(environment: dict[str, Any]) -> bool:
    """Tell whether the queue was on no disk at all, so that an fsync costs nothing."""
    return environment["file_system"] in _MEMORY_FILE_SYSTEMS


def file_system(folder: Path) -> str | None:
    """Return the type of the file system that the folder is on, where the system tells it."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return type_of_mount(mounts, str(folder.resolve()))


def type_of_mount(mounts: list[str], folder: str) -> str | None:
    """Find the mount that a folder is on: the longest that is above it, and of two alike the later."""
    found = [(len(fields[1]), at, fields[2]) for at, line in enumerate(mounts) if (fields := line.split(" "))[1:]]
    above = [one for one in found if _is_above(mounts[one[1]].split(" ")[1], folder)]
    return max(above)[2] if above else None


def _is_above(mount: str, folder: str) -> bool:
    return mount in {"/", folder} or folder.startswith(f"{mount}/")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _mosquitto_version() -> str | None:
    found = re.search(r"version (\S+)", _output(mosquitto(), "-h"))
    return found[1] if found else None


def _processor() -> str | None:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip()
