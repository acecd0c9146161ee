"""Promise 34: dripping, endless and exploding answers are cut off; they cost neither time, nor memory, nor a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import figures, wait_until
from tests.harness.cloud import Exchange, Responder, answer, drip, endless, gzip_bomb
from tests.harness.cloud_stage import CloudStage, shared_stage

TIMEOUT_SECONDS = 0.7
SLACK_SECONDS = 2.0
RSS_KIB_MAX = 10 * 1024


def endless_head() -> Responder:
    """Begin an answer and never come to the end of its head."""

    async def respond(exchange: Exchange) -> None:
        await exchange.send_raw(b"HTTP/1.1 200 OK\r\n")
        while True:
            await exchange.send_raw(b"X-More: and more\r\n" * 100)

    return respond


def endless_results() -> Responder:
    """Answer row by row, about rows that nobody sent, for ever."""

    async def respond(exchange: Exchange) -> None:
        head = b'HTTP/1.1 207 Multi-Status\r\nContent-Type: application/json\r\n\r\n{"results":['
        await exchange.send_raw(head)
        while True:
            await exchange.send_raw(b'{"id":"nobody","status":201},' * 100)

    return respond


def memory_kib(stage: CloudStage, field: str) -> int:
    status = Path(f"/proc/{stage.bridge.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":"))


def forget_peak(stage: CloudStage) -> None:
    """Let VmHWM begin anew at what is resident now (proc(5), clear_refs)."""
    Path(f"/proc/{stage.bridge.pid}/clear_refs").write_text("5")


RESPONDERS = {
    "dripping": drip(100),
    "endless": endless(),
    "endless head": endless_head(),
    "endless results": endless_results(),
    "exploding": gzip_bomb(),
    "exploding 503": gzip_bomb(status=503),
    "8 MB of white space": answer(200, {"Content-Type": "application/json"}, b" " * (8 << 20)),
    "8 MB of text": answer(200, {"Content-Type": "application/json"}, b'{"note":"' + b"x" * (8 << 20)),
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudStage]:
    """One bridge for all of them, warmed up."""
    with shared_stage(tmp_path_factory.mktemp("answers"), {"timeout_seconds": TIMEOUT_SECONDS}) as stage:
        stage.publish_numbered(300)
        stage.wait_settled(300)
        yield stage


@pytest.mark.parametrize("name", RESPONDERS)
def test_an_answer_without_end_is_cut_and_acks_nothing(stage: CloudStage, name: str) -> None:
    before, delivered = len(stage.cloud.requests), stage.messages["delivered"]
    stage.cloud.always(RESPONDERS[name])
    forget_peak(stage)
    resident = memory_kib(stage, "VmRSS")
    stage.publish_numbered(10)
    wait_until(lambda: len(stage.cloud.requests) >= before + 3, 10, "asked again, twice")
    growth_kib = memory_kib(stage, "VmHWM") - resident
    figures.most(growth_MiB=growth_kib / 1024)
    assert growth_kib < RSS_KIB_MAX
    first, second, third = stage.cloud.requests[before : before + 3]
    assert max(second.at - first.at, third.at - second.at) < TIMEOUT_SECONDS + SLACK_SECONDS
    assert stage.messages["delivered"] == delivered
    stage.cloud.always()
    stage.hang_up()
    stage.wait_settled(delivered + 10)
    stage.audit().assert_kept(duplicates_max=0)
