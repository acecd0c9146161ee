"""Which tests were skipped, and why: reports of several runs taken together, as a test may run in one of them only.

python scripts/not_run.py REPORT.xml…     those of `pytest --junitxml`
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from xml.etree import ElementTree as ET


def main() -> int:
    ran: set[str] = set()
    skipped: dict[str, str] = {}
    for name in sys.argv[1:]:
        for case in ET.parse(name).iter("testcase"):  # noqa: S314 - our own file
            test = f"{case.get('classname', '')}.{case.get('name', '')}"
            if (found := case.find("skipped")) is None:
                ran.add(test)
            else:
                skipped[test] = found.get("message", "")
    for line in told({test: why for test, why in skipped.items() if test not in ran}, len(ran)):
        print(line)
    return 0


def told(left_out: dict[str, str], ran: int) -> Iterable[str]:
    """Yield a line for each reason, and its tests below it."""
    yield f"{ran} tests were run, {len(left_out) or 'none'} skipped"
    for why in sorted(set(left_out.values())):
        yield f"  {why}"
        yield from sorted(f"    {test}" for test, reason in left_out.items() if reason == why)


if __name__ == "__main__":
    sys.exit(main())
