"""The generator, a process of its own: QoS 1 publishes, built before the clock starts, over one raw socket.

At full speed it keeps a window of unconfirmed publishes under way and writes them in large pieces. At a rate it sends
each message when it is due and stamps it with that time, so that a generator held up makes latencies longer and
never hides them. It ends a phase when every publish is confirmed.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from typing import Any

from bridge.bench import mqtt
from bridge.bench.dialogue import hear, say
from bridge.bench.predictions import STAMP_AT, Phase, payloads, stamp

WINDOW = 2000
_PIECE = 500  # publishes in one write: the broker begins while the next piece is on its way
_GATHER_SECONDS = 0.001  # confirmations are read in large pieces too, which leaves more of the machine to the others
_READ_BYTES = 65_536
_NS = 1_000_000_000


class Publisher:
    """One connection to the broker, and how many publishes on it are confirmed."""

    def __init__(self, port: int, phase: Phase, count: int, payload_bytes: int) -> None:
        packets = [mqtt.publish(i, payload) for i, payload in enumerate(payloads(phase, count, payload_bytes))]
        self._count, self._packet_bytes = count, len(packets[0])
        self._stamp_at = self._packet_bytes - payload_bytes + STAMP_AT
        self._packets = bytearray().join(packets)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(mqtt.connect(b"bench-generator-%d" % phase))
        self._socket.recv(4, socket.MSG_WAITALL)
        self._answered_bytes = 0

    @property
    def confirmed(self) -> int:
        """How many publishes the broker has confirmed."""
        return self._answered_bytes // mqtt.PUBACK_BYTES

    def publish_all(self) -> None:
        """Publish as fast as the broker confirms."""
        sent, packets = 0, memoryview(self._packets)
        while self.confirmed < self._count:
            size = min(_PIECE, self._count - sent)
            has_room = 0 < size <= WINDOW - (sent - self.confirmed)
            if has_room:
                self._socket.sendall(packets[sent * self._packet_bytes : (sent + size) * self._packet_bytes])
                sent += size
            else:
                time.sleep(_GATHER_SECONDS)
            self._read(wait=not has_room)

    def publish_paced(self, per_second: float) -> None:
        """Publish each message when it is due."""
        begun_ns = time.monotonic_ns()
        for index in range(self._count):
            due_ns = begun_ns + int(index * _NS / per_second)
            while (early_ns := due_ns - time.monotonic_ns()) > 0:
                time.sleep(early_ns / _NS)
            start = index * self._packet_bytes
            stamp_at = start + self._stamp_at
            digits = stamp(due_ns)
            self._packets[stamp_at : stamp_at + len(digits)] = digits
            self._socket.sendall(memoryview(self._packets)[start : start + self._packet_bytes])
            self._read(wait=False)
        while self.confirmed < self._count:
            self._read(wait=True)

    def _read(self, *, wait: bool) -> None:
        if wait or select.select([self._socket], [], [], 0)[0]:
            answers = self._socket.recv(_READ_BYTES)
            if not answers:
                raise ConnectionError("the broker closed the generator's connection")
            self._answered_bytes += len(answers)


def main() -> int:
    """Build, say ready, and publish at each command until standard input ends."""
    args = _arguments()
    publisher = Publisher(args.port, Phase(args.phase), args.count, args.payload_bytes)
    say({"ready": True})
    if hear() is not None:
        say(_publish(publisher, args.rate))
        hear()
    return 0


def _publish(publisher: Publisher, rate: float) -> dict[str, Any]:
    begun_ns = time.monotonic_ns()
    if rate:
        publisher.publish_paced(rate)
    else:
        publisher.publish_all()
    return {"begun_ns": begun_ns, "ended_ns": time.monotonic_ns(), "confirmed": publisher.confirmed}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bridge.bench.generator")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--phase", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0, help="messages a second; 0 = as fast as it goes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
