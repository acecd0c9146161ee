"""Pictures of what was measured: `benchmarks/bars.py --json` or `edge-bridge bench --json` → SVG files.

    python benchmarks/plot.py results.json [--out docs/images]

Nothing but the standard library, the same bytes for the same results, and colours that can be read on light and on dark
pages. A row that is far beyond the others leaves its chart at the right; its figures stand beside it. Written are
speed.svg, cpu.svg, latency.svg and, where a queue was drained, drain.svg; what was not measured is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 1080, 450, 200, 48, 30
LINES_HEIGHT = 240
INK, FAINT = "#808890", "#80889055"  # between black and white
OURS, OTHERS = "#2f81f7", "#9a7b4f"
SHADES = (1.0, 0.65, 0.35)  # of three percentiles
TICKS = 5
DRAIN_STEPS = 40
BEYOND = 8  # times the median: what is larger leaves the chart, or nothing else could be seen in it
OUR_TITLES = ("bridge", "two bridges")


class Span(NamedTuple):
    """A row of a chart: values from left to right; the first is the bar, or each is a dot."""

    label: str
    values: tuple[float, ...]
    low: float = 0.0
    high: float = 0.0


def modes(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the modes that were measured in turn."""
    found: list[dict[str, Any]] = document.get("modes") or document.get("groups", {}).get("speed", [])
    return found


def bars(document: dict[str, Any], figure: str) -> list[Span]:
    """Return the median of a figure of each mode, and how far the runs were apart."""
    spans = []
    for mode in modes(document):
        values = [run[figure] for run in mode["runs"] if run[figure] is not None]
        if values:
            spans.append(Span(mode["title"], (mode["median"][figure],), min(values), max(values)))
    return spans


def percentiles(document: dict[str, Any]) -> list[Span]:
    """Return p50, p99 and p99.9 of each mode: publish → stored, and publish → delivered."""
    spans = []
    for mode in modes(document):
        for kind, words in (("stored", "stored"), ("latency", "delivered")):
            values = tuple(mode["median"].get(f"{kind}_{name}") for name in ("p50_ms", "p99_ms", "p999_ms"))
            if all(value is not None for value in values):
                spans.append(Span(f"{mode['title']} → {words}", values))
    return spans


def rates(curve: Sequence[Sequence[float]], steps: int = DRAIN_STEPS) -> list[tuple[float, float]]:
    """Return the seconds since the start, and how many a second arrived around then."""
    if len(curve) <= 1:
        return []
    begun, ended = curve[0][0], curve[-1][0]
    times = [begun + (ended - begun) * step / steps for step in range(steps + 1)]
    arrived = [_at(curve, time) for time in times]
    return [
        ((before + after) / 2, (more - some) / (after - before))
        for (before, after), (some, more) in zip(pairwise(times), pairwise(arrived), strict=True)
        if after > before
    ]


def _at(curve: Sequence[Sequence[float]], time: float) -> float:
    """Return how many had arrived at a time, on the line between the points around it."""
    for (before, some), (after, more) in pairwise(curve):
        if before <= time <= after:
            return some + (more - some) * ((time - before) / (after - before) if after > before else 1)
    return curve[-1][1]


def nice(most: float) -> float:
    """Return a step of the scale: 1, 2 or 5 times a power of ten, with some five of them up to the largest value."""
    rough = (most or 1) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


class Scale(NamedTuple):
    """From values to places."""

    most: float
    start: float
    length: float

    def at(self, value: float) -> float:
        return self.start + self.length * min(1, value / self.most)

    @property
    def ticks(self) -> list[float]:
        step = nice(self.most)
        return [step * number for number in range(round(self.most / step) + 1)]

    @classmethod
    def of(cls, values: Sequence[float], start: float, length: float) -> Scale:
        """Return a scale that ends at a tick; a value far beyond the others leaves it."""
        bound = BEYOND * statistics.median(values)
        most = max((value for value in values if value <= bound), default=0)
        step = nice(most)
        return cls(step * math.ceil((most or 1) / step - 1e-9), start, length)


def bar_chart(title: str, spans: Sequence[Span], digits: int = 0) -> str:
    """Return a row a bar, with a line from the least to the most of the runs."""
    scale = Scale.of([span.high for span in spans], LEFT, WIDTH - LEFT - RIGHT)
    parts = [*_frame(title, len(spans)), *_upright(scale, len(spans))]
    for number, span in enumerate(spans):
        y = TOP + number * ROW
        parts += [
            _text(LEFT - 10, y + 19, span.label, "end"),
            _bar(y + 6, scale.at(span.values[0]) - LEFT, span.label),
            _line(scale.at(span.low), y + ROW / 2, scale.at(span.high), y + ROW / 2, INK, 2),
            _text(scale.at(max(span.high, span.values[0])) + 8, y + 19, f"{span.values[0]:,.{digits}f}"),
        ]
    return _picture(parts, len(spans) * ROW)


def dot_chart(title: str, spans: Sequence[Span]) -> str:
    """Return a row of dots on a line each."""
    scale = Scale.of([max(span.values) for span in spans], LEFT, WIDTH - LEFT - RIGHT)
    parts = [*_frame(title, len(spans)), *_upright(scale, len(spans))]
    for number, span in enumerate(spans):
        y = TOP + number * ROW + ROW / 2
        parts += [
            _text(LEFT - 10, y + 4, span.label, "end"),
            _line(scale.at(min(span.values)), y, scale.at(max(span.values)), y, _colour(span.label), 2),
        ]
        parts += [
            f'<circle cx="{scale.at(value):.1f}" cy="{y:.1f}" r="5" fill="{_colour(span.label)}" fill-opacity="{shade}"'
            f' stroke="{_colour(span.label)}"/>'
            for value, shade in zip(span.values, SHADES, strict=True)
        ]
        parts.append(
            _text(scale.at(max(span.values)) + 10, y + 4, " / ".join(f"{value:,.1f}" for value in span.values))
        )
    return _picture(parts, len(spans) * ROW)


def line_chart(title: str, runs: Sequence[Sequence[tuple[float, float]]]) -> str:
    """Return a line a run: seconds to the right, rates upwards from 0."""
    points = [point for run in runs for point in run]
    across = Scale.of([x for x, _ in points], 90, WIDTH - 90 - 30)
    upwards = Scale.of([y for _, y in points], TOP + LINES_HEIGHT, -LINES_HEIGHT)
    parts = [_text(20, 26, title, size=15)]
    for tick in upwards.ticks:
        parts += [_line(90, upwards.at(tick), WIDTH - 30, upwards.at(tick), FAINT, 1)]
        parts += [_text(80, upwards.at(tick) + 4, f"{tick:,.0f}", "end")]
    parts += [_text(across.at(tick), TOP + LINES_HEIGHT + 20, f"{tick:g} s", "middle") for tick in across.ticks]
    for run in runs:
        line = " ".join(f"{across.at(x):.1f},{upwards.at(y):.1f}" for x, y in run)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{OURS}" stroke-width="2" stroke-opacity="0.7"/>')
    return _picture(parts, LINES_HEIGHT)


def _frame(title: str, rows: int) -> Iterator[str]:
    yield _text(20, 26, title, size=15)
    yield _line(LEFT, TOP, LEFT, TOP + rows * ROW, INK, 1)


def _upright(scale: Scale, rows: int) -> Iterator[str]:
    for tick in scale.ticks:
        yield _line(scale.at(tick), TOP, scale.at(tick), TOP + rows * ROW, FAINT, 1)
        yield _text(scale.at(tick), TOP + rows * ROW + 20, f"{tick:,.10g}", "middle")


def _colour(label: str) -> str:
    return OURS if label.startswith(OUR_TITLES) else OTHERS


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def _bar(y: float, width: float, label: str) -> str:
    return f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{ROW - 12}" fill="{_colour(label)}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _picture(parts: Sequence[str], height: int) -> str:
    whole = TOP + height + 36
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" width="{WIDTH}" height="{whole}"'
    return "\n".join([f'{start} font-family="sans-serif" fill="{INK}">', *parts, "</svg>", ""])


def pictures(document: dict[str, Any]) -> dict[str, str]:
    """Return each picture under the name of its file."""
    made = {}
    if speed := bars(document, "messages_per_second"):
        made["speed.svg"] = bar_chart("messages/s, median and least to most", speed)
    if cpu := bars(document, "cpu_us_per_message"):
        made["cpu.svg"] = bar_chart("CPU a message, µs, median and least to most", cpu, digits=1)
    if latencies := percentiles(document):
        made["latency.svg"] = dot_chart("publish → …, ms: p50 / p99 / p99.9 at a modest rate", latencies)
    if runs := [found for drain in document.get("drains", []) if (found := rates(drain["curve"]))]:
        rows = document["drains"][0]["rows"]
        made["drain.svg"] = line_chart(f"draining {rows:,} stored rows: rows/s since the start, a line a run", runs)
    return made


def main(words: list[str] | None = None) -> int:
    """Read, draw, write, and tell what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), metavar="DIR")
    args = parser.parse_args(words)
    made = pictures(json.loads(args.results.read_text(encoding="utf-8")))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (args.out / name).write_text(text, encoding="utf-8")
        print(args.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
