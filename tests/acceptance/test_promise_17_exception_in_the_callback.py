"""Promise 17: an exception in the message callback is noticed within 1 s; never a silent dead reader."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from tests.harness import figures
from tests.harness.stage import Stage

NOTICE_SECONDS_MAX = 1.0


@pytest.mark.parametrize("call", [1, 20])
def test_an_exception_in_the_callback_ends_the_bridge_by_the_name_of_its_task(stage: Stage, call: int) -> None:
    bridge = stage.launch(f"raise-at={call}")
    with stage.publisher(messages_per_second=500) as publisher:
        assert bridge.wait() == 1
        raised = re.search(r"^raised at ([\d.]+)$", bridge.stderr, re.MULTILINE)
        assert raised, bridge.stderr
        (died,) = stage.log("task broker died")
        noticed_seconds = datetime.fromisoformat(died["at"]).timestamp() - float(raised[1])
        figures.most(noticed_after_s=max(0.001, noticed_seconds))
        assert noticed_seconds < NOTICE_SECONDS_MAX
        assert "task broker died: RuntimeError('sabotage')" in bridge.stderr.splitlines()[-2]
        stage.launch()
    stage.drain()
    stage.audit(publisher).assert_kept(duplicates_max=1000)
