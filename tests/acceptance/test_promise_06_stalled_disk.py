"""Promise 6: a disk that stalls costs no connection and no message; memory is bounded, /readyz says 503.

The stall is three times the keep-alive: a bridge whose loop waited for the disk (I7) would be thrown out by then. In
the long tests it is a sync that takes thirty seconds, and nothing of the bridge is changed for it.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.harness import figures, free_port, wait_until
from tests.harness.bridge import BridgeProcess, StatusReader
from tests.harness.stage import Gate, Stage, readiness
from tests.harness.strace import stalling_sync

KEEPALIVE_SECONDS = 2
STALL_SECONDS = 3 * KEEPALIVE_SECONDS
GROWTH_KIB_MAX = 48 << 10
MESSAGES = 30_000  # three times the window
LONG_SECONDS, LONG_AT_SYNC = 30, 40  # the opening makes fewer syncs, and under load the disk thread soon made so many


def resident_kib(bridge: BridgeProcess) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{bridge.pid}/status").read_text())
    assert found
    return int(found[1])


def test_a_disk_that_stalls_costs_no_connection_no_message_and_bounded_memory(stage: Stage, tmp_path: Path) -> None:
    gate, web_port = Gate(tmp_path), free_port()
    settings = {"web.port": web_port, "mqtt.keepalive_seconds": KEEPALIVE_SECONDS}
    bridge = stage.launch(gate.sabotage, settings=settings)
    assert readiness(web_port)[0] == 200
    before_kib = resident_kib(bridge)
    publisher = stage.publish(MESSAGES)
    wait_until(lambda: "at the gate" in bridge.stderr)
    stalled_at = time.monotonic()
    wait_until(lambda: readiness(web_port)[0] == 503, what="unready")
    assert "disk stalled" in readiness(web_port)[1]
    wait_until(lambda: time.monotonic() - stalled_at > STALL_SECONDS, STALL_SECONDS + 5)
    growth_kib = resident_kib(bridge) - before_kib
    figures.most(growth_MiB=growth_kib / 1024)
    assert growth_kib < GROWTH_KIB_MAX
    gate.let_through(1000)
    stage.drain()
    wait_until(lambda: readiness(web_port)[0] == 200, what="ready again")
    with StatusReader(stage.settings) as status_now:
        assert wait_until(lambda: status_now.whole)["broker"]["reconnects"] == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)


@pytest.mark.soak
def test_a_sync_of_thirty_seconds_costs_no_connection_no_message_and_bounded_memory(
    stage: Stage, strace_installed: None
) -> None:
    web_port = free_port()
    settings = {"web.port": web_port, "mqtt.keepalive_seconds": LONG_SECONDS // 3}
    bridge = stage.launch(wrapper=stalling_sync(LONG_AT_SYNC, LONG_SECONDS), settings=settings)
    before_kib = resident_kib(bridge)
    with stage.publisher(messages_per_second=1000) as publisher:
        wait_until(lambda: readiness(web_port)[0] == 503, 30, "unready")
        stalled_at = time.monotonic()
        assert "disk stalled" in readiness(web_port)[1]
        arrived = stage.cloud.unique
        wait_until(lambda: readiness(web_port)[0] == 200, LONG_SECONDS + 5, "ready again")
        assert time.monotonic() - stalled_at > LONG_SECONDS / 2, "it was that sync"
        growth_kib = resident_kib(bridge) - before_kib
        wait_until(lambda: stage.cloud.unique > arrived, what="flowing again")
    stage.drain()
    figures.most(growth_MiB=growth_kib / 1024)
    assert growth_kib < GROWTH_KIB_MAX
    with StatusReader(stage.settings) as status_now:
        assert wait_until(lambda: status_now.whole)["broker"]["reconnects"] == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)
