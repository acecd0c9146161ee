"""Promise 35: SIGTERM under load: exit 0 within the grace time, `offline` said, nothing lost, nothing twice."""

from __future__ import annotations

import time

import pytest

from tests.harness import figures, wait_until
from tests.harness.bridge import StatusReader
from tests.harness.cloud import Responder, accept, after, black_hole
from tests.harness.stage import Stage

GRACE_SECONDS = 3.0
# The cloud as it is during the stop, and whether the post under way can end within the grace time.
CLOUDS = {"quick": accept(), "slow": after(1.0, accept()), "silent": black_hole()}


@pytest.mark.parametrize("responder", CLOUDS.values(), ids=CLOUDS)
def test_sigterm_under_load_ends_in_order_and_loses_nothing(stage: Stage, responder: Responder) -> None:
    stage.cloud.always(responder)
    bridge = stage.launch(settings={"shutdown_grace_seconds": GRACE_SECONDS})
    with stage.publisher(messages_per_second=5000) as publisher, StatusReader(stage.settings) as status:
        wait_until(lambda: len(publisher.confirmed) > 5000 and stage.cloud.requests)
        asked_at = time.monotonic()
        bridge.terminate()
        assert bridge.wait() == 0
        stop_seconds = time.monotonic() - asked_at
        figures.most(stop_s=stop_seconds)
        assert stop_seconds < GRACE_SECONDS + 1, "and a second to say goodbye and close the file"
        wait_until(lambda: status.state == status.whole.get("state") == "offline", what="offline")
        wait_until(lambda: status.leaves["reason"] == "stopped", what="why, in a packet of its own")
        assert status.whole["reason"] == "stopped"
    stage.check_database()
    stage.cloud.always()
    stage.launch()
    stage.drain()
    stage.audit(publisher).assert_kept(duplicates_max=0)


def test_sigterm_while_it_starts_is_obeyed(stage: Stage) -> None:
    """Whatever has been reached by then; a signal is never swallowed."""
    bridge = stage.bridge().start()
    wait_until((stage.queue_path / "data.db").exists)
    bridge.terminate()
    assert bridge.wait() in {0, -15}
