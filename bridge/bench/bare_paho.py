"""Bare paho, a process of its own: a subscriber as paho's documentation has it, with a callback that does nothing.

What any bridge written with that library must pay before it has done anything. Its session, window and count are those
of the null subscriber; counting happens afterwards, in the other thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.bench import mqtt
from bridge.bench.dialogue import hear, say
from bridge.bench.null_subscriber import RECEIVE_MAXIMUM, SESSION_EXPIRY_SECONDS
from bridge.bench.tally import Tally


def connected_client(port: int, client_id: str) -> paho.Client:
    """Return a client that is connected with the bridge's session and window, and subscribes when its loop runs."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum, properties.SessionExpiryInterval = RECEIVE_MAXIMUM, SESSION_EXPIRY_SECONDS

    def subscribe(*_: Any) -> None:
        client.subscribe(mqtt.TOPIC_FILTER.decode(), qos=1)

    client.on_connect = subscribe
    client.connect("127.0.0.1", port, properties=properties)
    return client


def main() -> int:
    """Subscribe, say ready, and take until standard input ends."""
    parser = argparse.ArgumentParser(prog="bridge.bench.bare_paho")
    parser.add_argument("--port", type=int, required=True)
    client = connected_client(parser.parse_args().port, "bench-bare-paho")
    arrived: list[bytes] = []

    def keep(_client: Any, _user: Any, message: paho.MQTTMessage) -> None:
        arrived.append(bytes(message.payload))

    client.on_message = keep
    client.loop_start()
    tally = Tally()
    say({"ready": True})
    while (command := hear()) is not None:
        count = len(arrived)
        tally.count(b"".join(arrived[:count]), time.monotonic_ns())
        del arrived[:count]
        say(tally.answer(command))
    client.loop_stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
