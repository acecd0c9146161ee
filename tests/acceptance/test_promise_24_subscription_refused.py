"""Promise 24: a bridge whose subscription the broker refuses is not ready, and says which filter, within 5 s."""

from __future__ import annotations

from pathlib import Path

from tests.harness import free_port, wait_until
from tests.harness.bridge import StatusReader
from tests.harness.mosquitto import Mosquitto
from tests.harness.stage import Stage, readiness

REFUSED = "secret/#"
SECONDS_MAX = 5


def test_a_refused_filter_is_named_by_status_readiness_and_log_and_the_others_flow(
    tmp_path: Path, mosquitto_installed: None
) -> None:
    web_port = free_port()
    settings = {"mqtt.topics": [REFUSED, "edge/predictions/#"], "web.port": web_port, "status.interval_seconds": 60}
    with (
        Mosquitto(tmp_path / "mosquitto", refused_filters=(REFUSED,)) as broker,
        Stage(tmp_path / "stage", broker) as stage,
        StatusReader(stage.settings) as status,
    ):
        bridge = stage.bridge(settings=settings).start()
        wait_until(lambda: status.whole.get("broker", {}).get("connected"), what="connected")
        wait_until(lambda: status.state == "degraded", SECONDS_MAX, "degraded")
        wait_until(lambda: REFUSED in status.leaves.get("reason", ""), SECONDS_MAX, "named")
        wait_until(lambda: readiness(web_port)[0] == 503 and REFUSED in readiness(web_port)[1], SECONDS_MAX)
        assert [line["level"] for line in stage.log(REFUSED)] == ["error"]
        publisher = stage.publish(100)
        stage.drain()
        stage.audit(publisher).assert_kept(duplicates_max=0)
        assert bridge.running
