"""The table of the bench on terminals of any width: no figure is cut off."""

from __future__ import annotations

import io

from rich.console import Console

from bridge.cli.bench import table

ROWS = [
    ("ceiling: null subscriber", "51,821 (23,160–52,974)", "1.00", "1.9", "33", *"–––––"),
    (
        "bridge: power, none",
        "27,303 (11,497–34,166)",
        "0.53",
        "26.4",
        "91",
        "11.47",
        "0.0021",
        "7.1 / 12.4 / 19.3",
        "15.8 / 29.0 / 32.4",
        "0.25 / 56",
    ),
]


def rendered(columns: int) -> str:
    console = Console(width=columns, file=io.StringIO(), color_system=None)
    console.print(table(ROWS))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_on_a_wide_terminal_a_mode_is_one_line_with_all_its_figures() -> None:
    (line,) = (line for line in rendered(180).splitlines() if "bridge" in line)
    assert " ".join(line.split()) == " ".join(ROWS[1])


def test_on_a_narrow_terminal_cells_break_between_words_and_no_figure_is_cut() -> None:
    words = rendered(150).split()
    assert {word for row in ROWS for cell in row for word in cell.split()} <= set(words)


def test_on_the_narrowest_terminal_nothing_is_left_out() -> None:
    digits = sum(character.isdigit() for row in ROWS for cell in row for character in cell)
    titles_digits = sum(map(str.isdigit, "p50p99p99.9" * 2))
    shown = rendered(70)
    assert "…" not in shown
    assert sum(map(str.isdigit, shown)) == digits + titles_digits
