"""`make promises` writes what the tests did, neither more nor less, and only into the rows whose tests were run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.harness import figures

SCRIPT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "scripts/promises.py"), run_name="promises")
REPORT = """<testsuites><testsuite>
<testcase classname="tests.acceptance.test_promise_01_kills" name="a" time="1.5"><properties>
  <property name="count lost" value="0"/><property name="count confirmed" value="1000"/>
  <property name="most open s" value="0.25"/><property name="least messages a second" value="2500"/>
</properties></testcase>
<testcase classname="tests.acceptance.test_promise_01_kills" name="b" time="2"><properties>
  <property name="count confirmed" value="234"/><property name="most open s" value="0.125"/>
  <property name="least messages a second" value="1200.5"/>
</properties></testcase>
<testcase classname="tests.acceptance.test_promise_02_cuts" name="a" time="1"/>
<testcase classname="tests.acceptance.test_promise_02_cuts" name="b" time="1"><failure>no</failure></testcase>
<testcase classname="tests.acceptance.test_promise_02_cuts" name="c" time="0"><error>no</error></testcase>
<testcase classname="tests.acceptance.test_promise_03_more.TestModel" name="d" time="3"><skipped/></testcase>
<testcase classname="tests.unit.test_other" name="e" time="9"/>
</testsuite></testsuites>"""
CELLS = {
    1: "passed, 2; 4 s; today: 0 lost, 1,234 confirmed, open s ≤ 0.25, messages a second ≥ 1,200",
    2: "**failed**, 2 of 3; 2 s; today",
    3: "not run (1 skipped); 3 s; today",
}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "report.xml").write_text(REPORT)
    return tmp_path / "report.xml"


def test_what_a_report_says_of_each_promise(report: Path) -> None:
    found = SCRIPT["results"](report)
    assert {number: result.cell("today") for number, result in found.items()} == CELLS


def test_only_rows_that_were_run_are_written_and_only_their_last_cell(report: Path) -> None:
    rows = [f"| {number} | fault | promise | [a](b), [c](d): more | as before |" for number in (1, 3, 4)]
    text = "\n".join(["| 1 | not this table |", SCRIPT["BEGIN"], "", *rows, SCRIPT["END"], "| 1 | nor this |", ""])
    now = SCRIPT["written"](text, SCRIPT["results"](report), "today")
    assert now == text.replace(rows[0], rows[0].replace("as before", CELLS[1])).replace(
        rows[1], rows[1].replace("as before", CELLS[3])
    )


def test_a_document_without_the_table_is_left_alone(report: Path) -> None:
    with pytest.raises(SystemExit, match="has no table"):
        SCRIPT["written"]("| 1 | other |", SCRIPT["results"](report), "today")


def test_the_files_of_a_promise_are_those_with_its_number() -> None:
    names = [Path(path).name for path in SCRIPT["files"]([2, 25])]
    assert names == [
        "test_promise_02_power_cut.py",
        "test_promise_25_half_open_broker_connection.py",
        "test_promise_25_half_open_cloud.py",
    ]
    assert {int(Path(path).name.split("_")[2]) for path in SCRIPT["files"]([])} == set(range(1, 41))


def test_figures_of_a_test_add_up_or_keep_the_worst() -> None:
    figures.taken()
    for number in (3, 1, 2):
        figures.count(rows_lost=number)
        figures.most(open_ms=number / 2)
        figures.least(rate=number)
    assert figures.taken() == [("count rows lost", "6"), ("most open ms", "1.5"), ("least rate", "1")]
    assert figures.taken() == []
