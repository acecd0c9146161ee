"""Run the tests of the promises and write their results into the table of docs/GUARANTEES.md.

    python scripts/promises.py               # all of them, but for the long ones
    python scripts/promises.py 7 38          # these
    python scripts/promises.py --long 38     # with the long ones (`make soak`)

A row gets what its own tests did: passed or failed, how many, how long, when, at which commit, and what they measured
(tests/harness/figures.py). Rows that are not run keep their last result. The exit status is pytest's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.harness.figures import joined  # noqa: E402  the place of the tests is known only now

GUARANTEES = ROOT / "docs" / "GUARANTEES.md"
BEGIN, END = "<!-- results: make promises -->", "<!-- end of results -->"
FOLDERS = ("tests/integration", "tests/acceptance")
_MODULE = re.compile(r"\btest_promise_(\d+)_")
_ROW = re.compile(r"\| (\d+) \|")
_DIGITS_FROM = 100.0  # larger figures are told without a fraction
_SIGNS = {"most": " ≤", "least": " ≥"}


@dataclass
class Result:
    """What the tests of one promise did; `figures`: (kind, name) → value."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    figures: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, case: ET.Element) -> None:
        """Count one test of a report."""
        kinds = {child.tag for child in case}
        self.outcomes[next((kind for kind in ("failure", "error", "skipped") if kind in kinds), "passed")] += 1
        self.seconds += float(case.get("time", "0"))
        for figure in case.iterfind("properties/property"):
            kind, _, name = figure.get("name", "").partition(" ")
            value = float(figure.get("value", "0"))
            self.figures[kind, name] = joined(kind, self.figures.get((kind, name)), value)

    def cell(self, when: str) -> str:
        """Say it in one cell of the table."""
        failed = self.outcomes["failure"] + self.outcomes["error"]
        ran = failed + self.outcomes["passed"]
        word = f"**failed**, {failed} of {ran}" if failed else f"passed, {ran}"
        if not ran:
            word = "not run"
        skipped = f" ({self.outcomes['skipped']} skipped)" if self.outcomes["skipped"] else ""
        told = [_told(kind, name, value) for (kind, name), value in self.figures.items()]
        return f"{word}{skipped}; {self.seconds:.0f} s; {when}{': ' if told else ''}{', '.join(told)}"


def _told(kind: str, name: str, value: float) -> str:
    number = f"{value:,.0f}" if value >= _DIGITS_FROM or value.is_integer() else f"{value:.2g}"
    return f"{number} {name}" if kind == "count" else f"{name}{_SIGNS[kind]} {number}"


def results(report: Path) -> dict[int, Result]:
    """Return what a report of pytest (--junit-xml) says of each promise."""
    found: dict[int, Result] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  pytest wrote it a moment ago
        if module := _MODULE.search(case.get("classname", "")):
            found.setdefault(int(module[1]), Result()).add(case)
    return found


def written(text: str, found: dict[int, Result], when: str) -> str:
    """Return the document with the last cell of these rows replaced."""
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{GUARANTEES} has no table between {BEGIN} and {END}")
    return before + begin + "\n".join(_line(line, found, when) for line in table.split("\n")) + end + after


def _line(line: str, found: dict[int, Result], when: str) -> str:
    row = _ROW.match(line)
    result = found.get(int(row[1])) if row else None
    return line if result is None else f"{line.rsplit(' | ', 1)[0]} | {result.cell(when)} |"


def files(numbers: Iterable[int]) -> list[str]:
    """Return the test files of these promises, or of all."""
    wanted = set(numbers)
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("test_promise_*.py"))]
    return [str(path) for path in paths if not wanted or int(path.name.split("_")[2]) in wanted]


def commit() -> str:
    """Return the commit that is tested, and whether more than that."""
    git = ("git", "-C", str(ROOT))
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!docs"], check=False).returncode
    return head.stdout.strip() + (" and changes" if changed else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="promises; none: all")
    parser.add_argument("--long", action="store_true", help="also the tests of `make soak`")
    asked = parser.parse_args(arguments)
    when = f"{datetime.now(UTC):%Y-%m-%d}, {commit()}" + (", with the long tests" if asked.long else "")
    workers = ("-n", os.environ.get("WORKERS", "3"), "--dist", "loadfile", "--no-loadscope-reorder")
    long = ("-m", "soak or not soak", "--timeout=0") if asked.long else ()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *workers, *long, f"--junit-xml={report}", *files(asked.numbers)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        GUARANTEES.write_text(written(GUARANTEES.read_text(), results(report), when))
    return status


if __name__ == "__main__":
    sys.exit(main())
