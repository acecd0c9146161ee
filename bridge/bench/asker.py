"""The asker, a process of its own: publishes at a rate, and asks the bridge for a receipt of each message.

MQTT 5 request/response: each publish names the topic for its answer, and a number that comes back with it. A latency is
from the time a message was *due* to the arrival of its receipt, as the generator's are: that includes the way of the
receipt through the broker, so it is a little more than publish → stored.
"""

from __future__ import annotations

import argparse
import re
import select
import socket
import sys
import time

from bridge import wire
from bridge.bench import mqtt
from bridge.bench.dialogue import hear, say
from bridge.bench.predictions import Phase, payloads
from bridge.message import Request
from bridge.topics import RECEIPTS_TOPIC

_RESPONSE_TOPIC = f"{RECEIPTS_TOPIC}/bench/asker"
_MARK = b"bench-receipt-%09d"
_MARKED = re.compile(rb"bench-receipt-(\d{9})")
_MARK_BYTES = len(_MARK % 0)
_READ_BYTES = 65_536
_RECEIVE_MAXIMUM = 65_535
_PATIENCE_SECONDS = 10.0  # for the last receipts
_NS = 1_000_000_000


class Asker:
    """One connection to the broker, and how long each receipt took so far."""

    def __init__(self, port: int, count: int, payload_bytes: int) -> None:
        topic = mqtt.string(mqtt.TOPIC)
        self._packets = [
            wire.publish(
                topic,
                payload,
                wire.request_properties(Request(_RESPONSE_TOPIC, _MARK % index)),
                index % mqtt.PACKET_IDS + 1,
            )
            for index, payload in enumerate(payloads(Phase.RECEIPTS, count, payload_bytes))
        ]
        self._rest = b""
        self._due_ns: list[int] = []
        self.latencies_ns: dict[int, int] = {}
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in (
            mqtt.connect_5(b"bench-asker", receive_maximum=_RECEIVE_MAXIMUM, session_expiry_seconds=0),
            mqtt.subscribe_5(_RESPONSE_TOPIC.encode(), qos=0),  # nothing to confirm, so nothing else to write
        ):
            self._socket.sendall(packet)
            _, length = self._socket.recv(2, socket.MSG_WAITALL)
            self._socket.recv(length, socket.MSG_WAITALL)

    def publish_paced(self, per_second: float) -> None:
        """Publish each message when it is due, and wait for the receipts of all."""
        begun_ns = time.monotonic_ns()
        for index, packet in enumerate(self._packets):
            due_ns = begun_ns + int(index * _NS / per_second)
            while (early_ns := due_ns - time.monotonic_ns()) > 0:
                self._read(early_ns / _NS)
            self._due_ns.append(due_ns)
            self._socket.sendall(packet)
        end_ns = time.monotonic_ns() + int(_PATIENCE_SECONDS * _NS)
        while len(self.latencies_ns) < len(self._packets) and time.monotonic_ns() < end_ns:
            self._read(_PATIENCE_SECONDS)

    def _read(self, seconds: float) -> None:
        if not select.select([self._socket], [], [], seconds)[0]:
            return
        piece = self._socket.recv(_READ_BYTES)
        if not piece:
            raise ConnectionError("the broker closed the asker's connection")
        at_ns = time.monotonic_ns()
        arrived = self._rest + piece
        for found in _MARKED.findall(arrived):
            index = int(found)
            self.latencies_ns.setdefault(index, at_ns - self._due_ns[index])
        self._rest = arrived[1 - _MARK_BYTES :]  # less than a mark: none is found twice


def main() -> int:
    """Build, say ready, and publish at the first command."""
    parser = argparse.ArgumentParser(prog="bridge.bench.asker")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    args = parser.parse_args()
    asker = Asker(args.port, args.count, args.payload_bytes)
    say({"ready": True})
    if hear() is not None:
        asker.publish_paced(args.rate)
        say({"latencies_ns": list(asker.latencies_ns.values())})
        hear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
