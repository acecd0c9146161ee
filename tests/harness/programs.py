"""Programs that a test stands on and a machine may not have."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

TOOLS = "scripts/setup.sh tools"


def require(program: str, remedy: str) -> str:
    """Return the program's path, first of all that beside this Python; `missing` where it is not there."""
    beside = Path(sys.executable).parent / program
    path = shutil.which(beside) or shutil.which(program)
    if path is None:
        missing(f"{program} is not installed: {remedy}")
    return path


def require_module(name: str) -> ModuleType:
    """Return the module, one of `TOOLS`; `missing` where it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"{name} is not installed: {TOOLS}")


def missing(words: str) -> NoReturn:
    """Skip the test on a laptop and fail it where CI is set: .ci/run installs what tests ask for."""
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)
