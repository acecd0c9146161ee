"""Medians, spreads, percentiles, the table and the document; what was not measured stays absent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bridge.bench.results import (
    ABSENT,
    TITLES,
    Latency,
    Mode,
    Run,
    document,
    latency,
    missing,
    percentile,
    rows,
    spread,
)

RUN = Run(
    messages=1000,
    missing=0,
    duplicates=0,
    elapsed_seconds=0.05,
    messages_per_second=20_000,
    cpu_us_per_message=12.5,
    rss_peak_bytes=64 << 20,
    written_bytes_per_payload_byte=2.25,
    latency=Latency(500, 10.0, 20.0, 30.0, 31.0),
    stored=Latency(500, 5.0, 6.0, 7.0, 8.0),
    idle_cpu_percent=0.25,
    idle_rss_bytes=48 << 20,
    cores_busy={"broker": 0.9},
    load_average=0.1,
)
NULL = replace(
    RUN,
    messages_per_second=40_000,
    written_bytes_per_payload_byte=None,
    latency=None,
    stored=None,
    idle_cpu_percent=None,
    idle_rss_bytes=None,
)
BLIND = replace(NULL, cpu_us_per_message=None, rss_peak_bytes=None)  # a system without /proc


def test_a_spread_is_median_least_and_most() -> None:
    assert spread([5.0, 1.0, 9.0, 2.0]) == (3.5, 1.0, 9.0)


def test_what_is_absent_is_left_out_of_a_spread_and_a_spread_of_nothing_is_nothing() -> None:
    assert spread([None, 4.0, None]) == (4.0, 4.0, 4.0)
    assert spread([None, None]) is None
    assert spread([]) is None


def test_a_zero_is_a_figure() -> None:
    assert spread([0.0, None]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.991, 100), (0.999, 100), (1.0, 100)]
)
def test_a_percentile_is_the_nearest_rank(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value


def test_latencies_are_sorted_and_told_in_milliseconds() -> None:
    samples_ns = [1_000_000 * value for value in range(1000, 0, -1)]
    assert latency(samples_ns) == Latency(1000, 500.0, 990.0, 999.0, 1000.0)


def test_no_samples_are_no_latency() -> None:
    assert latency([]) is None


def test_a_row_holds_medians_the_spread_of_the_rate_and_its_share_of_the_ceiling() -> None:
    faster = replace(RUN, messages_per_second=30_000, cpu_us_per_message=10.5)
    modes = (Mode("ceiling", {}, (NULL,)), Mode("bridge", {}, (RUN, faster), 0.004))
    top, bridge = rows(modes, "ceiling")
    assert len(top) == len(bridge) == len(TITLES)
    assert bridge == (
        "bridge",
        "25,000 (20,000–30,000)",
        "0.62",
        "11.5",
        "64",
        "2.25",
        "0.0040",
        "5.0 / 6.0 / 7.0",
        "10.0 / 20.0 / 30.0",
        "0.25 / 48",
    )
    assert top == ("ceiling", "40,000 (40,000–40,000)", "1.00", "12.5", "64", *[ABSENT] * 5)


def test_a_system_that_tells_nothing_gives_a_table_of_dashes_not_of_zeros() -> None:
    ((_, rate, share, *others),) = rows([Mode("ceiling", {}, (BLIND,))], "ceiling")
    assert (rate, share) == ("40,000 (40,000–40,000)", "1.00")
    assert set(others) == {ABSENT}


def test_without_the_ceiling_there_is_no_share_of_it() -> None:
    assert rows([Mode("bridge", {}, (RUN,))], "ceiling")[0][2] == ABSENT


def test_missing_messages_add_up_over_modes_and_runs() -> None:
    lossy = replace(RUN, missing=3)
    assert missing([Mode("a", {}, (RUN, lossy)), Mode("b", {}, (lossy,))]) == 6


def test_the_document_holds_every_run_and_the_medians_and_is_json() -> None:
    slower = replace(RUN, messages_per_second=10_000, latency=None)
    modes = [Mode("bridge", {"durability": "power"}, (RUN, slower)), Mode("blind", {}, (BLIND,))]
    made = document(modes, command=["edge-bridge", "bench"], environment={"cores": 2}, alone={})
    assert json.loads(json.dumps(made)) == made | {"modes": json.loads(json.dumps(made["modes"]))}
    bridge, blind = made["modes"]
    assert [run["messages_per_second"] for run in bridge["runs"]] == [20_000, 10_000]
    assert bridge["median"]["messages_per_second"] == 15_000
    assert bridge["median"]["latency_p99_ms"] == 20.0
    assert bridge["median"]["stored_p99_ms"] == 6.0
    assert blind["median"]["cpu_us_per_message"] is None
    assert made["missing"] == 0
