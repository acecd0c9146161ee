"""Promise 4: at most two syncs a batch: one stores it, one acks it. At B = 200 that is far below 0.02 a message."""

from __future__ import annotations

from pathlib import Path

from tests.harness import figures
from tests.harness.stage import Stage
from tests.harness.strace import counting_syncs

BATCH_MESSAGES = 200
BATCHES = 100
ASIDE = 20  # syncs a second or so that no batch asks for: a checkpoint, a deletion of delivered rows
GROUP_MAX = 2000  # messages that are stored with one sync if they pile up: so many fewer syncs there may be
# Each batch is to be full, so nothing may go out by the clock.
SETTINGS = {
    "intake.batch_messages": BATCH_MESSAGES,
    "intake.linger_ms": 2000,
    "upload.batch_messages": BATCH_MESSAGES,
    "upload.linger_ms": 2000,
}


def test_a_full_batch_costs_two_syncs_at_most(stage: Stage, tmp_path: Path, strace_installed: None) -> None:
    log = tmp_path / "strace.log"
    bridge = stage.launch(wrapper=counting_syncs(log), settings=SETTINGS)
    before = len(log.read_text().splitlines())
    publisher = stage.publish(BATCHES * BATCH_MESSAGES, window=1000)
    stage.drain()
    bridge.terminate()
    assert bridge.wait() == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)
    syncs = sum("sync(" in line for line in log.read_text().splitlines()[before:])
    figures.most(syncs_a_batch=syncs / BATCHES, syncs_a_message=syncs / BATCHES / BATCH_MESSAGES)
    assert BATCHES * BATCH_MESSAGES / GROUP_MAX <= syncs <= 2 * BATCHES + ASIDE
