"""benchmarks/bars.py: what is held against what, and when a bar is missed. Nothing is measured here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.bars import (
    BARS,
    FAR,
    GROUPS,
    GZIP,
    MQ_DIRECT,
    MQ_FILE,
    NAIVE,
    NEAR,
    NULL,
    PAHO,
    PAIR,
    POWER,
    SLOW,
    STOCK,
    Bar,
    Bench,
    Found,
    document,
    judge,
    others,
    table,
)
from bridge.bench.contenders import MqBridge, StockSubscriber
from bridge.bench.results import Latency, Mode, Run
from bridge.bench.trials import Depth, Drain, Start

RUN = Run(
    messages=1000,
    missing=0,
    duplicates=0,
    elapsed_seconds=0.02,
    messages_per_second=50_000,
    cpu_us_per_message=9.0,
    rss_peak_bytes=64 << 20,
    written_bytes_per_payload_byte=2.0,
    latency=Latency(500, 10.0, 20.0, 30.0, 31.0),
    stored=Latency(500, 5.0, 6.0, 7.0, 8.0),
    idle_cpu_percent=None,
    idle_rss_bytes=None,
    cores_busy={},
    load_average=0.1,
)


def mode(title: str, *rates: int, cpu: float = 9.0, syncs: float | None = None) -> Mode:
    runs = tuple(replace(RUN, messages_per_second=rate, cpu_us_per_message=cpu) for rate in rates)
    return Mode(title, {}, runs, syncs)


SPEED = (
    mode(NULL.title, 50_000),
    mode(STOCK, 40_000),
    mode(PAHO.title, 30_000, cpu=30.0),
    mode(NAIVE.title, 1000),
    mode(MQ_DIRECT, 40_000, cpu=20.0),
    mode(MQ_FILE, 35_000, cpu=22.0),
    mode(POWER.title, 48_000, syncs=0.001),
    mode(GZIP.title, 40_000),
    mode(NEAR.title, 47_000),
)
DRAIN = Drain(10, 0, 0, 500.0, 600.0, 90_000, 90_000, 89_000, 8.0, 70 << 20, ((0.6, 5), (0.7, 10)))
ALL = Found(
    {
        "speed": SPEED,
        "slow-disk": (mode(SLOW.title, 20_000),),
        "round-trips": (mode(FAR.title, 25_000),),
        "side-by-side": (mode(POWER.title, 48_000), mode(PAIR.title, 50_000)),
    },
    starts=(Start(700.0, 0.2, 50 << 20),),
    help_ms=(120.0,),
    drains=(DRAIN,),
    depths=(Depth(0, 100, 5.0, 4.0, 70 << 20), Depth(1000, 100, 5.5, 4.5, 70 << 20)),
)


def verdicts(found: Found) -> dict[str, bool | None]:
    return {bar.measure: judge(bar, found).is_met for bar in BARS}


def test_where_all_is_well_every_bar_is_met_and_each_one_is_measured() -> None:
    assert set(verdicts(ALL).values()) == {True}


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert set(verdicts(Found()).values()) == {None}
    assert table([judge(bar, Found()) for bar in BARS]).count("not measured") == len(BARS)


def test_each_group_has_its_act_and_the_titles_are_those_of_the_contenders() -> None:
    assert all(callable(getattr(Bench, group.replace("-", "_"))) for group in GROUPS)
    assert [MqBridge("python", through_file=one).title for one in (False, True)] == [MQ_DIRECT, MQ_FILE]
    assert StockSubscriber(1).title == STOCK


def test_a_ratio_is_taken_within_each_turn_and_to_the_faster_of_two_ceilings() -> None:
    modes = (mode(NULL.title, 50, 200), mode(STOCK, 100, 100), mode(POWER.title, 90, 190))
    assert Found({"speed": modes}).ratios(POWER.title, [NULL.title, STOCK]) == [0.9, 0.95]


def test_a_median_may_hide_a_slow_run_and_no_peak_of_memory() -> None:
    found = Found({"speed": (mode(POWER.title, 1, 50_000, 50_000),)})
    speed = Bar("speed", "≥", 40_000, lambda found: found.figures(POWER.title, "messages_per_second"))
    assert judge(speed, found).is_met
    assert not judge(replace(speed, is_worst=True), found).is_met


@pytest.mark.parametrize(("sign", "is_met"), [("≥", True), ("≤", True), ("<", False)])
def test_a_bar_that_is_just_reached(sign: str, is_met: bool) -> None:
    verdict = judge(Bar("one", sign, 1.0, lambda _: [1.0]), Found())
    assert (verdict.is_met, verdict.cells[3]) == (is_met, "ok" if is_met else "MISSED")


def test_the_table_shows_the_median_and_how_far_the_runs_were_apart() -> None:
    (row,) = table([judge(Bar("drain", "≥", 80_000, lambda _: [70_000, 90_000, 85_000], " rows/s"), Found())]).split(
        "\n"
    )[2:]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "drain",
        "≥ 80,000 rows/s",
        "85,000 rows/s (70,000–90,000)",
        "ok",
    ]


def test_the_document_is_json_and_counts_what_did_not_arrive() -> None:
    lossy = replace(ALL, drains=(replace(DRAIN, missing=3),))
    made = document(lossy, [judge(bar, ALL) for bar in BARS], {"cores": 2}, ["python", "benchmarks/bars.py"])
    read = json.loads(json.dumps(made))
    assert read["missing"] == 3
    assert read["groups"]["speed"][6]["median"]["messages_per_second"] == 48_000
    assert [bar["is_met"] for bar in read["bars"]] == [True] * len(BARS)


def test_what_has_no_bar_is_told_in_words() -> None:
    pair, empty, full = others(ALL)
    assert "50,000 messages/s, one: 48,000" in pair
    assert "on 0 waiting rows a message costs 5.0 µs to store, 4.0 µs to deliver" in empty
    assert "on 1,000 waiting rows" in full
