"""The documents against the project: links resolve, promises name their tests, commands and topics are told."""

from __future__ import annotations

import logging
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bridge.cli import COMMANDS
from bridge.cli.queue import VERBS
from bridge.config.problems import KEYS
from bridge.disk_queue import FILE_NAME, DiskQueue
from bridge.events import (
    BrokerLost,
    CloudFailed,
    CloudPaused,
    ConflictSeen,
    Died,
    DiskTroubled,
    Dropped,
    Echoed,
    Event,
    Hung,
    QueueDamaged,
    Refused,
    RequestRefused,
    RowsMissing,
    SubscriptionGranted,
    SubscriptionRefused,
    Withheld,
)
from bridge.log import FaultLog
from bridge.loss import LossReason

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("mosquitto/*.md")])
TROUBLES: tuple[Event, ...] = (
    BrokerLost("cannot connect to 127.0.0.1:1883: Connection refused", 1.0),
    BrokerLost("127.0.0.1:1883 refused the connection: Not authorized", 1.0),
    BrokerLost("the connection to 127.0.0.1:1883 broke", 1.0),
    SubscriptionRefused("a/#", "Not authorized"),
    SubscriptionGranted("a/#", 0, 1),
    Withheld(1),
    Echoed("a"),
    CloudFailed("503", 1.0),
    CloudPaused("401", 60.0),
    *(DiskTroubled(state, "why") for state in ("full", "starved", "stalled", "blocked")),
    Hung("why"),
    QueueDamaged("why"),
    RowsMissing(1, 2),
    Dropped(1, "why"),
    Died(1, "why"),
    Refused(1, "a", "why"),
    ConflictSeen("a", "id"),
    RequestRefused("a", "why"),
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [target for target in targets if target and not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_anchors_resolve(document: Path) -> None:
    links = [link.partition("#") for link in LINK.findall(document.read_text()) if "://" not in link]
    aims = [(document.parent / path if path else document, anchor) for path, _, anchor in links if anchor]
    assert [(aim.name, anchor) for aim, anchor in aims if anchor not in _anchors(aim)] == []


def _anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text) for text in re.findall(r"^#+ (.+)$", prose, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_key_is_in_the_commented_configuration_and_no_other() -> None:
    section, told = "", list[str]()
    for line in (ROOT / "config/bridge.toml").read_text().splitlines():
        if table := re.match(r"\[([\w.]+)\]", line):
            section = f"{table[1]}."
        elif key := re.match(r"#?(\w+) = ", line):
            told.append(section + key[1])
    assert sorted(told) == sorted(KEYS)


def promise_rows() -> dict[int, list[str]]:
    """The table of the promises: number → its other cells."""
    table = re.search(
        r"<!-- results: make promises -->(.*)<!-- end of results -->",
        (ROOT / "docs/GUARANTEES.md").read_text(),
        re.DOTALL,
    )
    assert table
    rows = [line.strip("| ").split(" | ") for line in table[1].splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(number) for number, *_ in rows] == list(range(1, 41)), "each once, in order"
    return {int(number): cells for number, *cells in rows}


def test_every_promise_names_all_tests_of_its_own_which_are_called_after_it() -> None:
    for number, (_fault, _promise, tests, _result) in promise_rows().items():
        paths = [
            path
            for folder in ("integration", "acceptance")
            for path in ROOT.glob(f"tests/{folder}/test_promise_{number:02}_*.py")
        ]
        assert paths, f"promise {number} has no test"
        own = [target for target in LINK.findall(tests) if "/test_promise_" in target]
        assert sorted(own) == sorted(f"../{path.relative_to(ROOT)}" for path in paths)


def test_every_promise_tells_its_last_result_its_day_and_its_commit() -> None:
    result = re.compile(
        r"(passed|\*\*failed\*\*), \d+( of \d+)?( \(\d+ skipped\))?; \d+ s; \d{4}-\d\d-\d\d, [0-9a-f]{7,}.*"
    )
    assert [number for number, (*_, told) in promise_rows().items() if not result.fullmatch(told)] == []


def test_the_diagram_of_the_database_has_the_tables_and_columns_of_a_new_file(tmp_path: Path) -> None:
    DiskQueue(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as file:
        names = file.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        describe = "SELECT name, type, pk FROM pragma_table_info(?)"
        columns = {name: file.execute(describe, (name,)).fetchall() for (name,) in names}
    diagram = re.search(r"^erDiagram$(.*?)^```", (ROOT / "docs/ARCHITECTURE.md").read_text(), re.MULTILINE | re.DOTALL)
    assert diagram
    told = {
        table: re.findall(r"^\s+([A-Z]+) (\w+)( PK)?", body, re.MULTILINE)
        for table, body in re.findall(r"^    (\w+) \{\n(.*?)^    \}", diagram[1], re.MULTILINE | re.DOTALL)
    }
    assert {table: sorted((name, kind, bool(key)) for kind, name, key in body) for table, body in told.items()} == {
        table: sorted((name, kind, bool(key)) for name, kind, key in body) for table, body in columns.items()
    }


def test_every_invariant_is_cited_where_it_is_held() -> None:
    source = "\n".join(path.read_text() for path in ROOT.glob("bridge/**/*.py"))
    architecture = (ROOT / "docs/ARCHITECTURE.md").read_text()
    for number in range(1, 10):
        assert re.search(rf"\bI{number}\b", source), f"I{number} in the code"
        assert architecture.count(f"| I{number} |") == 1


def test_every_command_is_in_the_readme_or_the_documents() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    names = [name for group in COMMANDS.values() for name in group]
    assert [name for name in names if f"edge-bridge {name}" not in text] == []


@pytest.mark.parametrize("document", ["QUEUE.md", "QUICK_REFERENCE.md"])
def test_every_verb_of_the_queue_is_told(document: str) -> None:
    rows = re.findall(r"^\| (`edge-bridge queue [^|]*)", (ROOT / "docs" / document).read_text(), re.MULTILINE)
    told = {word for row in rows for word in re.findall(r"`(?:edge-bridge queue )?(\w+)", row)}
    assert set(VERBS) - told == set()


def test_every_reason_of_a_loss_and_every_address_of_the_page_is_told() -> None:
    ledger = (ROOT / "docs/QUEUE.md").read_text().partition("## The loss ledger")[2]
    assert [reason for reason in LossReason if f"`{reason}`" not in ledger] == []
    served = re.findall(r'router\.add_\w+\("([^"]+)"', (ROOT / "bridge/web/__init__.py").read_text())
    addresses = (ROOT / "docs/WEB.md").read_text().partition("## Addresses")[2]
    assert served
    assert [path for path in served if not re.search(rf"`(POST )?{path}`", addresses)] == []


@pytest.mark.parametrize("event", TROUBLES, ids=repr)
def test_every_trouble_that_the_log_tells_has_a_row_in_the_troubleshooting(event: Event) -> None:
    told = [line.message for line in FaultLog(lambda: 0.0).lines(event) if line.level >= logging.WARNING]
    assert told
    assert [message for message in told if not any(_means(symptom, message) for symptom in _symptoms())] == []


def test_every_symptom_of_the_troubleshooting_is_something_that_the_program_says() -> None:
    source = "\n".join(path.read_text() for path in ROOT.glob("bridge/**/*.py"))
    whole = re.sub(r'"\n\s+f?"', "", source)  # literals that go on in the next line
    log = [line.message for event in TROUBLES for line in FaultLog(lambda: 0.0).lines(event)]
    composed = "the queue in data is in use by process 7"  # by errors.QueueInUseError, of two texts
    said = [*log, composed, *whole.splitlines()]
    assert [symptom for symptom in _symptoms() if not any(_means(symptom, text) for text in said)] == []


def _symptoms() -> list[str]:
    """Return what the first column quotes of the log and of errors."""
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/TROUBLESHOOTING.md").read_text(), re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [text for text in quoted if " " in text]  # a single word is a name, such as /readyz


def _means(symptom: str, message: str) -> bool:
    return bool(re.search(".*".join(re.escape(part.strip()) for part in symptom.split("…")), message))


def test_every_decision_is_short_and_has_its_four_parts() -> None:
    for decision in ROOT.glob("docs/decisions/*.md"):
        text = decision.read_text()
        assert all(f"**{part}.**" in text for part in ("Question", "Choice", "Why", "Price")), decision.name
        assert len(text.splitlines()) <= 40, decision.name
