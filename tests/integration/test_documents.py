"""The documents against the project: links resolve, promises name their tests, commands and topics are told."""

from __future__ import annotations

import logging
import re
import sqlite3
import tomllib
from collections.abc import Mapping
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from bridge.cli import COMMANDS, main
from bridge.cli.queue import VERBS
from bridge.config.problems import KEYS, SECTIONS
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
FOLDERS = ("docs", "mosquitto", "examples", "benchmarks", "config")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
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


def test_the_commented_configuration_shows_the_defaults() -> None:
    text = re.sub(r"^#(?=\w+ = )", "", (ROOT / "config/bridge.toml").read_text(), flags=re.MULTILINE)
    shown = dict(_leaves(tomllib.loads(text)))
    defaults = {
        prefix + name: _as_in_a_file(field.get_default(call_default_factory=True))
        for prefix, section in SECTIONS.items()
        for name, field in section.model_fields.items()
        if prefix + name in KEYS and prefix + name not in {"device_id", "upload.url"}  # the host's name; none
    }
    assert {path: shown[path] for path in defaults} == defaults


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = [(f"{prefix}{name}", value) for name, value in table.items()]
    inner = [leaf for path, value in pairs if isinstance(value, dict) for leaf in _leaves(value, f"{path}.")]
    return pairs + inner


def _as_in_a_file(value: Any) -> Any:
    match value:
        case None:
            return ""
        case Enum():
            return value.value
        case Path():
            return str(value)
        case tuple():
            return list(value)
        case _:
            return value


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_key_that_a_document_names_is_there(document: Path) -> None:
    if document.name in {"ARCHITECTURE.md", "MUTATIONS.md"} or document.parent.name == "decisions":
        return  # these name modules, which are called like sections
    sections = "|".join({prefix.partition(".")[0] for prefix in SECTIONS if prefix})
    name = re.compile(rf"(?<![\w/.-])(?:{sections})\.[a-z_]+(?:\.[a-z_]+)?\b(?![\w(./])")
    assert [key for part in _code(document.read_text()) for key in name.findall(part) if key not in KEYS] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_a_document_gives_is_there_with_its_options(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in _commands(document.read_text()):
        words = re.split(r"[\s,]+", command)
        with pytest.raises(SystemExit) as ended:
            main([*(words[:2] if words[0] == "queue" and len(words) > 1 else words[:1]), "--help"])
        told = capsys.readouterr()
        assert ended.value.code == 0, command
        assert [word for word in words if word.startswith("--") and word != "--help" and word not in told.out] == []


def _commands(text: str) -> list[str]:
    """Return what stands behind `edge-bridge`, in code within the text and in blocks of it."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if language in {"", "sh"} for line in block.splitlines()]
    code = [*_code(text), *lines]
    given = re.compile(r"(?:^|[\s=(])edge-bridge ([a-z][^#|&;>()\\\]]*)")
    return [command.strip() for part in code for command in given.findall(part)]


def _code(text: str) -> list[str]:
    """Return the code within the text, also what goes on in the next line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(part.split()) for part in re.findall(r"`([^`]+)`", prose)]


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


def test_every_command_is_in_the_quick_reference() -> None:
    table = (ROOT / "docs/QUICK_REFERENCE.md").read_text().partition("## Commands")[2].partition("## ")[0]
    told = {word for code in _code(table) for word in code.removeprefix("edge-bridge ").split()[:1]}
    assert {name for group in COMMANDS.values() for name in group} - told == set()


def test_every_topic_of_the_bridge_that_a_document_names_is_one() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    assert set(re.findall(r"edge/buffer/(\w+)", text)) == {"status", "receipts"}


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
