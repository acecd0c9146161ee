"""The sink, a process of its own in the cloud's place: takes every post, says 200, and counts what was in it.

It answers first and counts after, so that its counting does not hold the contender up; nothing is stored. That it is
not the bottleneck is measured in every bench (`poster`), and its share of a core stands beside every result.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import time
from typing import cast

import zstandard

from bridge.bench.dialogue import hear, say
from bridge.bench.posts import ANSWER, Post, PostSplitter
from bridge.bench.tally import Tally


class Connection(asyncio.Protocol):
    """One connection of a contender."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._splitter = PostSplitter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if posts := self._splitter.feed(data):
            at_ns = time.monotonic_ns()
            self._transport.write(ANSWER * len(posts))
            for post in posts:
                self._tally.count(plain(post), at_ns)


def plain(post: Post) -> bytes:
    """Return the body as it was before its compression."""
    match post.encoding:
        case "gzip":
            return gzip.decompress(post.body)
        case "zstd":
            return zstandard.ZstdDecompressor().decompress(post.body)
        case _:
            return post.body


async def serve() -> None:
    """Listen on a free port, say which, and answer commands until standard input ends."""
    loop, tally, ended = asyncio.get_running_loop(), Tally(), asyncio.Event()
    server = await loop.create_server(lambda: Connection(tally), "127.0.0.1", 0)

    def answer() -> None:
        command = hear()
        if command is None:
            ended.set()
            loop.remove_reader(sys.stdin)
        else:
            say(tally.answer(command))

    loop.add_reader(sys.stdin, answer)
    say({"ready": True, "port": server.sockets[0].getsockname()[1]})
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve())
