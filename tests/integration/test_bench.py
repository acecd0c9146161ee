"""`edge-bridge bench` within the test's process, and its own processes one by one. No figure is asserted here."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.bench import machine, measure, programs, trials
from bridge.bench.contenders import RIVALS, Bridge, Hindered, NullSubscriber, SideBySide, StockSubscriber
from bridge.bench.posts import post
from bridge.bench.predictions import Phase, payloads
from bridge.bench.programs import Program, Talker
from bridge.bench.results import Mode, Run
from bridge.cli import bench
from bridge.errors import FaultError
from tests.harness import REPOSITORY, wait_until
from tests.harness.bridge import child_environment
from tests.harness.command import Command
from tests.harness.mosquitto import Mosquitto

QUICK = ("--runs", "1", "--messages", "3000")

pytestmark = pytest.mark.usefixtures("mosquitto_installed")


def test_without_a_terminal_it_prints_a_plain_table_and_can_write_the_runs_to_a_file(
    edge_bridge: Command, tmp_path: Path
) -> None:
    quick = ("--latency-seconds", "1", "--latency-rate", "50", "--idle-seconds", "0")
    options = ("--compression", "none", "--durability", "crash", *quick)
    status, stdout, stderr = edge_bridge("bench", "--folder", str(tmp_path), *QUICK, *options, "--json", "runs.json")
    assert status == 0, stderr
    assert "\x1b" not in stdout + stderr
    row = next(line for line in stdout.splitlines() if "bridge: crash, none" in line)
    document = json.loads((tmp_path / "runs.json").read_text())
    assert f"{document['modes'][1]['runs'][0]['messages_per_second']:,}" in row
    assert document["modes"][1]["runs"][0]["latency"]["samples"] == 50


LOSING = Bridge("crash", "none", (("queue.overflow", "drop-newest"), ("queue.max_messages", 3)))


def test_messages_that_a_contender_loses_are_missing_from_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_STALL_SECONDS", 2.0)
    contenders = (NullSubscriber(), LOSING)
    plan = measure.Plan(contenders, 2000, 200, 1, latency_rate=1, latency_seconds=0, idle_seconds=0, folder=tmp_path)
    ceiling, losing = asyncio.run(measure.measure(plan, lambda *_: None, lambda: None))
    assert ceiling.runs[0].missing == 0
    assert 0 < losing.runs[0].missing < 2000


def test_bars_are_held_against_what_a_run_shows(tmp_path: Path) -> None:
    # The uploader lingers for 20 ms before its first post, so 300 messages are 15,000/s at most.
    quick = ("--only", "start", "round-trips", "--runs", "1", "--messages", "300", "--idle-seconds", "0.1")
    command = [sys.executable, "benchmarks/bars.py", *quick, "--folder", str(tmp_path), "--json", str(tmp_path / "j")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=False, timeout=90
    )
    verdicts = {bar["measure"]: bar for bar in json.loads((tmp_path / "j").read_text())["bars"]}
    assert verdicts["run → ready"]["value"] > 0, done.stderr
    assert verdicts["300 ms round trips, concurrency 8"]["is_met"] is False, "so few messages are no throughput"
    assert verdicts["drain of stored rows"]["is_met"] is None
    assert "MISSED" in done.stdout
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


def test_bars_tell_who_cannot_be_measured(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/bars.py", "--folder", str(tmp_path), "--mq-bridge", sys.executable]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot import mq_bridge\nhint: " in done.stderr


def test_bars_that_are_told_to_end_leave_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/bars.py", "--folder", str(tmp_path), "--only", "round-trips"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=child_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: list(tmp_path.glob("*/bridge.log")), 60, "the bridge is started")
            process.terminate()
            assert process.wait(30) == 143
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_to_end_while_a_program_is_being_started_ends_both(tmp_path: Path) -> None:
    """In the moment between its fork and asyncio's connecting of its pipes."""
    reached = []

    async def start() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        async with Program("cat", ["cat"], tmp_path, talks=True):
            reached.append("the program runs")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        programs.run(start())
    assert reached == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_receipts_are_measured(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/receipts.py", "--rate", "50", "--seconds", "0.5", "--folder", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("25 stored receipts at 50 messages/s"), done.stderr


def test_nobody_else_loses_anything_either(tmp_path: Path) -> None:
    near = Hindered(Bridge("crash", "none"), "20 ms", answer_after_ms=20)
    others = (*RIVALS, StockSubscriber(200), SideBySide("crash", "none"), near)
    plan = measure.Plan(others, 200, 300, 1, latency_rate=1, latency_seconds=0, idle_seconds=0, folder=tmp_path)
    modes = asyncio.run(measure.measure(plan, lambda *_: None, lambda: None))
    assert [(mode.runs[0].messages, mode.runs[0].missing) for mode in modes] == [(200, 0)] * len(others)


async def test_a_full_queue_is_drained_and_worked_on_top_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_SETTLE_SECONDS", 0.0)
    queue = tmp_path / "queue"
    queue.mkdir(mode=0o700)
    trials.fill(queue, 20_000, 200)
    bridge = replace(Bridge("crash", "none"), backlog=queue)
    drained = await trials.drain(tmp_path, bridge, 200, 20_000)
    assert (drained.missing, drained.duplicates) == (0, 0)
    assert 0 < drained.first_post_ms <= 1000 * drained.curve[-1][0]
    assert drained.curve[-1][1] == 20_000
    assert min(drained.rows_per_second, drained.first_tenth_rows_per_second, drained.last_tenth_rows_per_second) > 0
    worked = await trials.depth(tmp_path, bridge, 200, 20_000, 2000)
    assert worked.store_us_per_message is not None
    assert worked.deliver_us_per_message is not None


def test_where_a_sync_is_slow_a_message_is_stored_later(tmp_path: Path, strace_installed: None) -> None:
    slow = Hindered(Bridge("power", "none"), "100 ms a sync", wrapper=measure.delaying_syncs(100))
    plan = measure.Plan((slow,), 200, 200, 1, latency_rate=50, latency_seconds=1, idle_seconds=0, folder=tmp_path)
    ((mode),) = asyncio.run(measure.measure(plan, lambda *_: None, lambda: None))
    assert mode.runs[0].stored is not None
    assert mode.runs[0].stored.p50_ms > 50


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--payload-bytes", "10"), "too small"),
        (("--messages", "100000000"), "memory"),
        (("--messages", "none"), "not a number"),
        (("--compression", "lzma"), "lzma"),
        (("--folder", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--idle-seconds", "-1"), "is not a number of seconds"),
        (("--mq-bridge", sys.executable), "cannot import mq_bridge"),
        (("--mq-bridge", "/nowhere/python"), "cannot import mq_bridge"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    edge_bridge: Command, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    status, stdout, stderr = edge_bridge("bench", "--folder", str(tmp_path), *arguments)
    assert (status, stdout) == (2, "")
    assert complaint in stderr
    assert "hint: " in stderr


# ---- its own processes, one by one ----


class Part(subprocess.Popen[str]):
    """One of the bench's processes, asked by hand. Leaving the context ends its standard input."""

    def __init__(self, module: str, **options: object) -> None:
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        super().__init__(
            [sys.executable, "-m", f"bridge.bench.{module}", *words],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        assert self.stdout
        return dict(json.loads(self.stdout.readline()))

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        assert self.stdin
        self.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.stdin.flush()
        return self.hear()


def reported(part: Part, count: int) -> dict[str, Any]:
    """What it has counted, once all are there."""
    return wait_until(lambda: report if (report := part.ask("report"))["unique"] >= count else None) or {}


def test_a_sink_that_is_away_counts_nothing_and_says_so() -> None:
    with Part("sink") as sink, socket.create_connection(("127.0.0.1", sink.hear()["port"])) as caller:
        sink.ask("expect", phase=int(Phase.BACKLOG))
        body = b"".join(payloads(Phase.BACKLOG, 3, 100))
        for order, status_code in (("refuse", b" 503 "), ("accept", b" 200 ")):
            sink.ask(order)
            caller.sendall(post(b"/", body, ""))
            assert status_code in caller.recv(1000)
            assert sink.ask("report")["unique"] == (0 if order == "refuse" else 3)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_the_sink_counts_what_the_poster_posts(compression: str) -> None:
    with Part("sink") as sink:
        port = sink.hear()["port"]
        assert sink.ask("expect", phase=int(Phase.THROUGHPUT)) == {}
        with Part("poster", port=port, count=2500, payload_bytes=100, compression=compression) as poster:
            assert poster.hear() == {"ready": True}
            sent = poster.ask("post")
        report = reported(sink, 2500)
    assert (report["unique"], report["duplicates"]) == (2500, 0)
    assert sent["begun_ns"] < report["last_ns"]
    assert (sink.returncode, poster.returncode) == (0, 0)


def test_the_null_subscriber_counts_what_the_generator_publishes(mosquitto: Mosquitto) -> None:
    """More than a window at full speed, then some at a rate, stamped with when each was due."""
    with Part("null_subscriber", port=mosquitto.port, payload_bytes=100) as subscriber:
        assert subscriber.hear() == {"ready": True}
        for phase, count, rate in ((Phase.THROUGHPUT, 5000, 0), (Phase.LATENCY, 50, 200)):
            subscriber.ask("expect", phase=int(phase))
            options = {"port": mosquitto.port, "phase": int(phase), "count": count, "payload_bytes": 100, "rate": rate}
            with Part("generator", **options) as generator:
                generator.hear()
                sent = generator.ask("publish")
            assert (sent["confirmed"], generator.returncode) == (count, 0)
            assert reported(subscriber, count)["unique"] == count
            assert not rate or sent["ended_ns"] - sent["begun_ns"] >= (count - 1) / rate * 1e9
        latencies = subscriber.ask("latencies")["latencies_ns"]
    assert len(latencies) == 50
    assert min(latencies) > 0


@pytest.mark.parametrize("module", ["generator", "null_subscriber"])
def test_a_broker_that_goes_away_ends_them_with_its_name(mosquitto: Mosquitto, tmp_path: Path, module: str) -> None:
    more: dict[str, object] = {"phase": int(Phase.THROUGHPUT), "count": 10} if module == "generator" else {}

    async def ask_on(talker: Talker) -> None:
        while True:
            await talker.ask("publish" if more else "report")
            await asyncio.sleep(0.05)

    async def play() -> None:
        async with Talker(module, tmp_path, port=mosquitto.port, payload_bytes=100, **more) as talker:
            talker.check()
            mosquitto.stop()
            with pytest.raises(FaultError, match=f"{module} ended in the middle of the bench") as raised:
                await asyncio.wait_for(ask_on(talker), 20)
            assert "Connection" in raised.value.hint
            with pytest.raises(FaultError):
                talker.check()
            with pytest.raises(FaultError):
                await talker.ask("report")

    asyncio.run(play())


async def test_a_process_that_cannot_begin_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="poster ended") as raised:
        await Talker("poster", tmp_path, port=1).__aenter__()
    assert "the following arguments are required" in raised.value.hint


# ---- what is shown of it ----


def make_run(missing: int) -> Run:
    return Run(1000, missing, 0, 1.0, 1000 - missing, None, None, None, None, None, None, None, {}, 0.1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One mode that lost three messages, on a file system in memory."""
    alone = {"generator": {"messages_per_second": 5}, "sink": {"none": {"messages_per_second": 7}}}

    async def measure(*_: object) -> tuple[dict[str, Any], tuple[Mode, ...]]:
        return alone, (Mode("ceiling: null subscriber", {}, (make_run(3),)),)

    monkeypatch.setattr(bench, "_measure", measure)
    monkeypatch.setattr(machine, "file_system", lambda _: "tmpfs")


@pytest.mark.usefixtures("measured")
def test_lost_messages_and_a_disk_that_is_none_are_told_and_the_exit_status_is_1(edge_bridge: Command) -> None:
    shown = edge_bridge("bench")
    assert shown.exit_status == 1
    assert "3 messages did not arrive." in shown.stdout
    assert "The folder is in memory" in shown.stdout
    as_json = edge_bridge("bench", "--json", "-")
    assert as_json.exit_status == 1
    assert json.loads(as_json.stdout)["missing"] == 3


@pytest.mark.usefixtures("measured")
def test_results_that_cannot_be_written_are_told(edge_bridge: Command) -> None:
    shown = edge_bridge("bench", "--json", "/proc/nowhere/runs.json")
    assert shown.exit_status == 2
    assert "/proc/nowhere/runs.json cannot be written" in shown.stderr


def test_sigterm_ends_it_in_order(edge_bridge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    async def be_told_to_end(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(30)

    monkeypatch.setattr(measure, "measure_alone", be_told_to_end)
    assert edge_bridge("bench").exit_status == 143


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with bench._progress(2) as (tell, finished):
        tell("bridge: power, none", 40, 100)
        finished()
    assert "bridge: power, none" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_without_a_mosquitto_nothing_begins(
    edge_bridge: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    shown = edge_bridge(command)
    assert (shown.exit_status, shown.stdout) == (2, "")
    assert "mosquitto is not installed" in shown.stderr


def test_who_is_asked_nothing_ends_in_peace(mosquitto: Mosquitto) -> None:
    with Part("sink") as sink:
        port = sink.hear()["port"]
        with Part("poster", port=port, count=10, payload_bytes=100, compression="none") as poster:
            poster.hear()
        options = {"phase": int(Phase.THROUGHPUT), "count": 10, "payload_bytes": 100}
        with Part("generator", port=mosquitto.port, **options) as generator:
            generator.hear()
        assert sink.ask("report")["unique"] == 0
    assert (sink.returncode, poster.returncode, generator.returncode) == (0, 0, 0)
