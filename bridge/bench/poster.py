"""The poster, a process of its own: posts batches built before the clock starts to the sink, as fast as it answers.

Measures the sink alone, so that every bench says by itself that the sink was not what it measured.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import socket
import sys
import time

import zstandard

from bridge.bench.dialogue import hear, say
from bridge.bench.posts import ANSWER, post
from bridge.bench.predictions import Phase, events

_BATCH_MESSAGES = 1000  # the bridge's defaults, levels of compression too
_LEVEL = 1


def main() -> int:
    """Build, say ready, post all at the first command."""
    parser = argparse.ArgumentParser(prog="bridge.bench.poster")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, required=True)
    parser.add_argument("--compression", required=True)
    args = parser.parse_args()
    posts = batches(args.count, args.payload_bytes, args.compression)
    connection = socket.create_connection(("127.0.0.1", args.port))
    say({"ready": True})
    if hear() is not None:
        begun_ns = time.monotonic_ns()
        for one in posts:
            connection.sendall(one)
            connection.recv(len(ANSWER), socket.MSG_WAITALL)
        say({"begun_ns": begun_ns, "ended_ns": time.monotonic_ns()})
        hear()
    return 0


def batches(count: int, payload_bytes: int, compression: str) -> list[bytes]:
    """Return the requests that carry so many predictions, as the bridge would send them."""
    source = events(Phase.THROUGHPUT, count, payload_bytes)
    requests = []
    while batch := list(itertools.islice(source, _BATCH_MESSAGES)):
        body = b"[" + b",".join(batch) + b"]"
        encoding = "" if compression == "none" else compression
        requests.append(post(b"/", _compressed(body, encoding), encoding))
    return requests


def _compressed(body: bytes, encoding: str) -> bytes:
    match encoding:
        case "gzip":
            return gzip.compress(body, _LEVEL)
        case "zstd":
            return zstandard.ZstdCompressor(level=_LEVEL).compress(body)
        case _:
            return body


if __name__ == "__main__":
    sys.exit(main())
