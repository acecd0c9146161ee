"""The documents against the project: links resolve, promises name their tests, commands and topics are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("mosquitto/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [target for target in targets if target and not (document.parent / target).exists()] == []


def test_every_promise_with_a_test_names_it() -> None:
    guarantees = (ROOT / "docs/GUARANTEES.md").read_text()
    tests = ROOT.glob("tests/acceptance/test_promise_*.py")
    assert [test.name for test in tests if f"tests/acceptance/{test.name}" not in guarantees] == []


def test_every_promise_is_listed_once() -> None:
    numbers = re.findall(r"^\| (\d+) \|", (ROOT / "docs/GUARANTEES.md").read_text(), re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, 41))


def test_every_invariant_is_cited_where_it_is_held() -> None:
    source = "\n".join(path.read_text() for path in ROOT.glob("bridge/**/*.py"))
    architecture = (ROOT / "docs/ARCHITECTURE.md").read_text()
    for number in range(1, 10):
        assert re.search(rf"\bI{number}\b", source), f"I{number} in the code"
        assert f"| I{number} |" in architecture


def test_every_command_is_in_the_readme_or_the_documents() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    names = [name for group in COMMANDS.values() for name in group]
    assert [name for name in names if f"edge-bridge {name}" not in text] == []


def test_every_decision_is_short_and_has_its_four_parts() -> None:
    for decision in ROOT.glob("docs/decisions/*.md"):
        text = decision.read_text()
        assert all(f"**{part}.**" in text for part in ("Question", "Choice", "Why", "Price")), decision.name
        assert len(text.splitlines()) <= 40, decision.name
