"""Programs that a test stands on and a machine may not have."""

from __future__ import annotations

import os
import shutil

import pytest


def require(program: str, remedy: str, *, in_ci: bool) -> str:
    """Return the program's path. Missing, it skips the test; with `in_ci` it fails it where CI is set.

    `in_ci` says that .ci/run installs it.
    """
    if path := shutil.which(program):
        return path
    missing = f"{program} is not installed: {remedy}"
    if in_ci and os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
