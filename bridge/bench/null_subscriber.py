"""The null subscriber, a process of its own: takes every message, confirms it, and does nothing else.

The ceiling: no subscriber can be faster than broker and generator let this one be. It has the bridge's session and
window, confirms whole pieces with one write, and counts what came as the sink does.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time

from bridge.bench import mqtt
from bridge.bench.dialogue import hear, say
from bridge.bench.tally import Tally

_READ_BYTES = 256 * 1024
RECEIVE_MAXIMUM = 10_000  # the bridge's defaults
SESSION_EXPIRY_SECONDS = 604_800
_GATHER_SECONDS = 0.002  # larger pieces, a third of the CPU: it must not take from the broker what it shares with it


class NullSubscriber:
    """One subscribed connection."""

    def __init__(self, port: int, payload_bytes: int) -> None:
        self._shape = mqtt.Shape.of(payload_bytes)
        self._rest = b""
        self.tally = Tally()
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            mqtt.connect_5(
                b"bench-null-subscriber",
                receive_maximum=RECEIVE_MAXIMUM,
                session_expiry_seconds=SESSION_EXPIRY_SECONDS,
            )
        )
        self._skip_packet()
        self.socket.sendall(mqtt.subscribe_5(mqtt.TOPIC_FILTER))
        self._skip_packet()

    def take(self) -> None:
        """Read what there is, confirm and count whole publishes."""
        piece = self.socket.recv(_READ_BYTES)
        if not piece:
            raise ConnectionError("the broker closed the null subscriber's connection")
        at_ns = time.monotonic_ns()
        arrived = self._rest + piece
        whole = len(arrived) - len(arrived) % self._shape.packet_bytes
        publishes, self._rest = arrived[:whole], arrived[whole:]
        self.socket.sendall(self._shape.confirmations(publishes))
        self.tally.count(publishes, at_ns)

    def _skip_packet(self) -> None:
        """Read past a CONNACK or SUBACK; both are short."""
        _, length = self.socket.recv(2, socket.MSG_WAITALL)
        self.socket.recv(length, socket.MSG_WAITALL)


def main() -> int:
    """Subscribe, say ready, and take until standard input ends."""
    parser = argparse.ArgumentParser(prog="bridge.bench.null_subscriber")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, required=True)
    args = parser.parse_args()
    subscriber = NullSubscriber(args.port, args.payload_bytes)
    say({"ready": True})
    while True:
        readable, _, _ = select.select([subscriber.socket, sys.stdin], [], [])
        if subscriber.socket in readable:
            time.sleep(_GATHER_SECONDS)
            subscriber.take()
        if sys.stdin in readable:
            command = hear()
            if command is None:
                return 0
            say(subscriber.tally.answer(command))


if __name__ == "__main__":
    sys.exit(main())
