"""Fail below 95 % of branches: `coverage` itself can only bound lines and branches together. Deletes its report.

python scripts/branch_coverage.py REPORT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PERCENT_MIN = 95

report = Path(sys.argv[1])
totals = json.loads(report.read_bytes())["totals"]
report.unlink()
percent = 100 * totals["covered_branches"] / totals["num_branches"]
print(f"branches: {totals['covered_branches']} of {totals['num_branches']}, {percent:.2f} % (at least {PERCENT_MIN})")
sys.exit(percent < PERCENT_MIN)
