"""Known vulnerabilities of what the locks name, asked of PyPI by pip-audit: `make audit`.

No part of the tests: its answer changes from day to day, and it needs the network. pip-audit ends with 1 for what it
found and for what it could not do alike, and with 0 for packages that PyPI did not know, so its report is read.

Exit status: 0 none known, 1 some are, 2 something could not be checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = ("requirements/runtime.lock", "requirements/development.lock", "requirements/tools.lock")
# The locks have every package with its hash: nothing is resolved, and nothing installed but pip-audit itself.
OPTIONS = ("--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json")


def main() -> int:
    return max(_audit(Path(lock)) for lock in LOCKS)


def _audit(lock: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        uv = str(Path(sys.executable).with_name("uv"))
        asked = [uv, "tool", "run", "--quiet", "pip-audit", *OPTIONS, f"--requirement={lock}", f"--output={report}"]
        ran = subprocess.run(asked, capture_output=True, text=True, check=False)
        text = report.read_text(encoding="utf-8") if report.exists() else ""
    if not text:
        last = (ran.stderr.strip().splitlines() or ["no reason given"])[-1].strip()
        return _say(lock, 2, f"NOTHING WAS CHECKED, pip-audit could not be had or could not ask PyPI: {last}")
    return _judge(lock, json.loads(text)["dependencies"])


def _judge(lock: Path, packages: list[dict[str, Any]]) -> int:
    for package in packages:
        for flaw in package.get("vulns", []):
            better = ", ".join(flaw["fix_versions"]) or "no version yet"
            _say(lock, 1, f"{package['name']} {package['version']}: {flaw['id']}, mended by {better}")
    if unknown := [package["name"] for package in packages if "skip_reason" in package]:
        return _say(lock, 2, f"NOT CHECKED, PyPI does not know them: {', '.join(unknown)}")
    if any(package["vulns"] for package in packages):
        return _say(lock, 1, "vulnerable; `make lock` takes newer versions")
    return _say(lock, 0, f"no known vulnerability in {len(packages)} packages")


def _say(lock: Path, status: int, words: str) -> int:
    (sys.stderr if status else sys.stdout).write(f"audit: {lock}: {words}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
