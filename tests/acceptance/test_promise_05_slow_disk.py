"""Promise 5: on a disk whose syncs take 10 ms, an SD card, 1,000 messages/s pass and the connection stays up.

Groups grow with the time that a sync takes, so a slow disk costs latency and not throughput. The wait between a
publish and the bridge's confirmation is not looked at here: the publisher's PUBACK comes from the broker.
"""

from __future__ import annotations

import time

from tests.harness import wait_until
from tests.harness.bridge import StatusReader
from tests.harness.stage import Stage
from tests.harness.strace import delaying_syncs

SYNC_SECONDS = 0.010
MESSAGES = 5000
MESSAGES_PER_SECOND_MIN = 1000


def test_a_thousand_messages_a_second_pass_where_a_sync_takes_ten_milliseconds(
    stage: Stage, strace_installed: None
) -> None:
    bridge = stage.launch(wrapper=delaying_syncs(SYNC_SECONDS))
    started_at = time.monotonic()
    publisher = stage.publish(MESSAGES)
    stage.drain()
    seconds = time.monotonic() - started_at
    with StatusReader(stage.settings) as status:
        assert wait_until(lambda: status.whole)["broker"]["reconnects"] == 0
    assert MESSAGES / seconds >= MESSAGES_PER_SECOND_MIN, f"{MESSAGES / seconds:.0f} a second"
    bridge.terminate()
    assert bridge.wait() == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)
