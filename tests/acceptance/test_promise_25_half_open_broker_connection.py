"""Promise 25, the broker's half: a connection that is open and dead is found within twice the keep-alive; 0 lost."""

from __future__ import annotations

import time

from tests.harness import figures, wait_until
from tests.harness.proxy import TcpProxy
from tests.harness.stage import Stage

KEEPALIVE_SECONDS = 3
TICK_SECONDS = 1.5  # the bridge looks at its keep-alive once a second


def test_a_half_open_connection_is_found_within_twice_the_keepalive_and_loses_nothing(stage: Stage) -> None:
    with TcpProxy(stage.broker.port) as proxy:
        stage.launch(settings={"mqtt.port": proxy.port, "mqtt.keepalive_seconds": KEEPALIVE_SECONDS})
        with stage.publisher(messages_per_second=500) as publisher:
            wait_until(lambda: stage.cloud.unique > 200)
            proxy.black_hole = True
            since = time.monotonic()
            wait_until(lambda: stage.log(part="broker", broken=True), 30, "found")
            found_seconds = time.monotonic() - since
            proxy.black_hole = False
            passed = len(publisher.confirmed)
            wait_until(lambda: stage.cloud.unique > passed, 30, "flowing again")
        stage.drain()
    figures.most(found_after_keep_alives=found_seconds / KEEPALIVE_SECONDS)
    assert found_seconds <= 2 * KEEPALIVE_SECONDS + TICK_SECONDS
    stage.audit(publisher).assert_kept(duplicates_max=0)
