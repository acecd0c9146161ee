"""benchmarks/plot.py: which figures are drawn, where, and that the same results give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.plot import BEYOND, Scale, Span, bar_chart, bars, main, nice, percentiles, pictures, rates

SVG = "{http://www.w3.org/2000/svg}"


def mode(title: str, rate: int, p50: float | None) -> dict[str, Any]:
    latency = {
        f"latency_{name}": p50 and p50 * factor for name, factor in (("p50_ms", 1), ("p99_ms", 2), ("p999_ms", 3))
    }
    return {
        "title": title,
        "runs": [{"messages_per_second": rate + more, "cpu_us_per_message": None} for more in (-100, 0, 100)],
        "median": {"messages_per_second": rate, "cpu_us_per_message": None, **latency},
    }


DOCUMENT = {
    "groups": {"speed": [mode("ceiling: null subscriber", 50_000, None), mode("bridge: power & <none>", 48_000, 9.0)]},
    "drains": [{"rows": 1000, "curve": [[0.5, 0], [1.0, 500], [1.5, 1000]]}],
}


def texts(picture: str) -> list[str]:
    return [found.text or "" for found in ET.fromstring(picture).iter(f"{SVG}text")]  # noqa: S314 - ours


@pytest.mark.parametrize(("most", "step"), [(8, 2), (50_000, 10_000), (0.9, 0.2), (101, 50), (0, 0.2)])
def test_a_scale_goes_by_ones_twos_and_fives(most: float, step: float) -> None:
    assert nice(most) == pytest.approx(step)


def test_a_scale_ends_at_a_tick_behind_the_largest_value() -> None:
    scale = Scale.of([90, 101], 10, 100)
    assert (scale.most, scale.ticks, scale.at(75)) == (150, [0, 50, 100, 150], 60)


def test_a_value_far_beyond_the_others_leaves_the_scale() -> None:
    scale = Scale.of([10, 10, 10, 10 * BEYOND + 1], 0, 100)
    assert (scale.most, scale.at(1000)) == (10, 100)


def test_each_mode_has_its_median_and_its_spread_and_what_is_not_measured_is_left_out() -> None:
    assert bars(DOCUMENT, "messages_per_second")[1] == Span("bridge: power & <none>", (48_000,), 47_900, 48_100)
    assert bars(DOCUMENT, "cpu_us_per_message") == []
    assert percentiles(DOCUMENT) == [Span("bridge: power & <none> → delivered", (9.0, 18.0, 27.0))]


def test_what_edge_bridge_bench_writes_is_drawn_as_well() -> None:
    assert list(pictures({"modes": DOCUMENT["groups"]["speed"]})) == ["speed.svg", "latency.svg"]  # type: ignore[index]


def test_a_steady_drain_is_a_level_line() -> None:
    found = rates([[2.0, 100], [3.0, 1100], [4.0, 2100]], steps=4)
    assert [time for time, _ in found] == pytest.approx([2.25, 2.75, 3.25, 3.75])
    assert [rate for _, rate in found] == pytest.approx([1000] * 4)
    assert rates([[2.0, 100]]) == []


def test_a_picture_tells_its_figures_whatever_the_titles_are_made_of() -> None:
    shown = texts(bar_chart("speed", bars(DOCUMENT, "messages_per_second")))
    assert {"speed", "bridge: power & <none>", "48,000", "60,000"} <= set(shown)


def test_the_files_are_written_and_the_same_results_give_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps(DOCUMENT))
    written = []
    for folder in ("one", "two"):
        assert main([str(results), "--out", str(tmp_path / folder)]) == 0
        written.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert set(written[0]) == {"speed.svg", "latency.svg", "drain.svg"}
    assert written[0] == written[1]
    assert "drain.svg" in capsys.readouterr().out
