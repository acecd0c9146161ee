"""Promise 6: a disk that stalls costs no connection and no message; memory is bounded, /readyz says 503.

The stall is three times the keep-alive: a bridge whose loop waited for the disk (I7) would be thrown out by then.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.harness import free_port, wait_until
from tests.harness.bridge import BridgeProcess, StatusReader
from tests.harness.stage import Gate, Stage, readiness

KEEPALIVE_SECONDS = 2
STALL_SECONDS = 3 * KEEPALIVE_SECONDS
GROWTH_KIB_MAX = 48 << 10
MESSAGES = 30_000  # three times the window


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
    assert resident_kib(bridge) - before_kib < GROWTH_KIB_MAX
    gate.let_through(1000)
    stage.drain()
    wait_until(lambda: readiness(web_port)[0] == 200, what="ready again")
    with StatusReader(stage.settings) as status_now:
        assert wait_until(lambda: status_now.whole)["broker"]["reconnects"] == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)
