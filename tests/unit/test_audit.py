"""`make audit` never says that all is well about a package that nobody could look up."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/audit.py"
LOCK = Path("some.lock")
SOUND = {"name": "orjson", "version": "3.11", "vulns": []}
FLAWED = {"name": "aiohttp", "version": "3.8", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.9"]}]}
UNKNOWN = {"name": "uvloop", "skip_reason": "Dependency not found on PyPI and could not be audited: uvloop (0.21)"}


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        ([SOUND, SOUND], 0, "no known vulnerability in 2 packages"),
        ([SOUND, FLAWED], 1, "aiohttp 3.8: PYSEC-1, mended by 3.9"),
        ([SOUND, UNKNOWN], 2, "NOT CHECKED, PyPI does not know them: uvloop"),
        ([FLAWED, UNKNOWN], 2, "aiohttp 3.8: PYSEC-1, mended by 3.9"),
    ],
)
def test_the_verdict_on_a_report(
    capsys: pytest.CaptureFixture[str], packages: list[dict[str, Any]], status: int, words: str
) -> None:
    judge = runpy.run_path(str(SCRIPT))["_judge"]
    assert judge(LOCK, packages) == status
    captured = capsys.readouterr()
    assert words in (captured.err if status else captured.out)
