"""Promise 20: a commit that ends while the bridge reconnects puts no PUBACK before the CONNECT.

The connection is cut again and again under load, so that commits end at every moment of a reconnect; a proxy keeps
the first bytes of each connection, and the broker's log has every packet that it found out of place.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.harness import wait_until
from tests.harness.bridge import StatusReader
from tests.harness.mosquitto import Mosquitto
from tests.harness.packets import CONNECT, packets
from tests.harness.proxy import TcpProxy
from tests.harness.stage import Gate, Stage, intake_connections

CUTS = 12
COMPLAINTS = ("protocol error", "malformed", "unknown packet identifier")


def first_packet(sent: bytes | bytearray) -> int:
    return next(kind for _, kind, _ in packets(sent))


def wait_connected(proxy: TcpProxy, times: int) -> None:
    wait_until(lambda: len(intake_connections(proxy)) == times, 20, f"connected {times} times")


def complaints(broker: Mosquitto) -> list[str]:
    return [line for line in broker.log.splitlines() if any(words in line for words in COMPLAINTS)]


def test_every_connection_begins_with_connect_however_often_it_is_cut(stage: Stage) -> None:
    moments = random.Random(20)
    with TcpProxy(stage.broker.port) as proxy:
        stage.launch(settings={"mqtt.port": proxy.port})
        with stage.publisher(messages_per_second=3000) as publisher:
            for cut in range(CUTS):
                wait_connected(proxy, cut + 1)
                stage.wait_arrivals(moments.randrange(1, 400))
                proxy.cut()
        stage.drain()
        assert len(intake_connections(proxy)) == CUTS + 1
        assert {first_packet(sent) for sent in proxy.first_bytes if sent} == {CONNECT}
        assert complaints(stage.broker) == []
    stage.audit(publisher).assert_kept(duplicates_max=0)


def test_a_commit_that_ends_in_the_middle_of_a_reconnect_confirms_nothing(
    tmp_path: Path, mosquitto_installed: None
) -> None:
    """The socket is there and the CONNECT is not: the new connection hangs in its TLS handshake for that long."""
    gate = Gate(tmp_path)
    with (
        Mosquitto(tmp_path / "mosquitto", tls=True) as broker,
        Stage(tmp_path / "stage", broker) as stage,
        TcpProxy(broker.tls_port) as proxy,
        StatusReader(stage.settings) as status,
    ):
        assert broker.certificates
        bridge = stage.bridge(
            gate.sabotage, settings={"mqtt.port": proxy.port, "mqtt.tls.ca": str(broker.certificates.ca)}
        ).start()
        wait_until(lambda: status.state == "online", what="online")
        publisher = stage.publish(50)
        wait_until(lambda: "at the gate" in bridge.stderr, what="the commit has begun")
        proxy.black_hole = True
        wait_until(lambda: proxy.black_hole)
        proxy.cut()
        wait_until(lambda: proxy.connections == 4, what="intake and status link are on their way again")
        gate.let_through(1000)
        wait_until(lambda: stage.cloud.unique == 50, what="stored and delivered")
        proxy.black_hole = False
        stage.drain()
        assert complaints(broker) == []
        stage.audit(publisher).assert_kept(duplicates_max=0)
