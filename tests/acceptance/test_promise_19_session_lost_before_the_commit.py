"""Promise 19: when the broker loses the session while messages wait for their commit, no stale PUBACK is sent.

The new session gives the same packet ids to other messages: a confirmation that crossed over would confirm messages
that are not stored (I1). A gate before the disk holds the commit for exactly as long as it takes to get there.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from tests.harness import wait_until
from tests.harness.bridge import StatusReader
from tests.harness.ledger import audit
from tests.harness.mosquitto import Mosquitto
from tests.harness.packets import PUBACK, packets
from tests.harness.proxy import TcpProxy
from tests.harness.stage import Gate, Stage, identified, intake_connections

MESSAGES = 50


def other(number: int) -> tuple[str, bytes]:
    """Messages that come after the loss, from a second publisher."""
    name = f"later-{number}"
    return name, orjson.dumps({"frame": name, "prediction_id": name})


def confirmations(connection: bytes) -> int:
    return sum(kind == PUBACK for _, kind, _ in packets(connection))


def test_a_commit_that_outlives_its_session_confirms_nothing_and_all_comes_again(
    tmp_path: Path, mosquitto_installed: None
) -> None:
    gate = Gate(tmp_path)
    with (
        Mosquitto(tmp_path / "mosquitto", options={"persistence": "false"}) as broker,
        TcpProxy(broker.port) as proxy,
        Stage(tmp_path / "stage", broker) as stage,
    ):
        # All of one publisher's messages are to be one group.
        settings = {"mqtt.port": proxy.port, "intake.linger_ms": 2000, "intake.batch_messages": MESSAGES}
        bridge = stage.launch(gate.sabotage, settings=settings)
        earlier = stage.publish(MESSAGES, payload=identified)
        wait_until(lambda: bridge.stderr.count("at the gate") == 1, what="the commit has begun")
        broker.kill()
        broker.start()  # it knows no session any more
        bridge.wait_ready()
        wait_until(lambda: len(intake_connections(proxy)) == 2, what="connected anew")
        later = stage.publish(MESSAGES, payload=other)
        gate.let_through()  # the commit of the earlier ones, whose packet ids are now those of the later ones
        wait_until(lambda: bridge.stderr.count("at the gate") == 2, what="the next commit has begun")
        assert [confirmations(sent) for sent in intake_connections(proxy)] == [0, 0]
        with StatusReader(bridge.settings) as status:  # the alarm counter
            wait_until(lambda: (status.whole or {}).get("broker", {}).get("stale_confirms") == MESSAGES, what="counted")
        bridge.kill()
        stage.launch()
        stage.drain()
        stored = [orjson.loads(one.data)["data"]["frame"] for seen in stage.cloud.stored.values() for one in seen]
        published = earlier.confirmed | later.confirmed
        audit({*published, "sentinel-1"}, published, stored).assert_kept(duplicates_max=0)
