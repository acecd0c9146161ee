"""The naive bridge, a process of its own: what a user would write from the libraries' own documentation.

paho's callback puts each message into a `SQLiteAckQueue` as it comes out of the box; a thread gets, posts and acks, one
message at a time, or `--batch` of them. paho confirms each message when its callback returns, so what it stored is as
safe as what this bridge stores, but for the settings that its documentation does not mention.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import persistqueue

from bridge.bench.bare_paho import connected_client

_GET_SECONDS = 0.02


def post_for_ever(queue: persistqueue.SQLiteAckQueue, port: int, batch: int) -> None:
    """Get, post, ack."""
    cloud = http.client.HTTPConnection("127.0.0.1", port)
    while True:
        items = [queue.get()]
        with contextlib.suppress(persistqueue.Empty):
            while len(items) < batch:
                items.append(queue.get(timeout=_GET_SECONDS))
        cloud.request("POST", "/", b"[%b]" % b",".join(items))
        cloud.getresponse().read()
        for item in items:
            queue.ack(item)


def main() -> None:
    """Bridge until it is killed."""
    parser = argparse.ArgumentParser(prog="bridge.bench.naive")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sink-port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    args = parser.parse_args()
    queue = persistqueue.SQLiteAckQueue(str(args.folder), multithreading=True)
    client = connected_client(args.port, "bench-naive")

    def store(_client: Any, _user: Any, message: paho.MQTTMessage) -> None:
        queue.put(message.payload)

    client.on_message = store
    threading.Thread(target=post_for_ever, args=(queue, args.sink_port, args.batch), daemon=True).start()
    client.loop_forever()


if __name__ == "__main__":
    main()
