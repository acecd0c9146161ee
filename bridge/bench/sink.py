"""The sink, a process of its own in the cloud's place: takes every post, says 200, and counts what was in it.

It answers first and counts after, so that its counting does not hold the contender up; nothing is stored. That it is
not the bottleneck is measured in every bench (`poster`), and its share of a core stands beside every result.

It can be a far cloud, each of whose answers takes `--answer-after-ms`, and one that is away: from the command `refuse`
to the command `accept` every answer is 503, and nothing counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import sys
import time
from typing import Any, cast

import zstandard

from bridge.bench.dialogue import hear, say
from bridge.bench.posts import ANSWER, REFUSAL, Post, PostSplitter
from bridge.bench.tally import Tally


class Cloud:
    """What all connections share: the counts, and how posts are answered."""

    def __init__(self, answer_after_seconds: float) -> None:
        self.tally = Tally()
        self.answer_after_seconds = answer_after_seconds
        self.refuses = False

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Answer a command of the bench: `refuse`, `accept`, and those of the tally."""
        if command["do"] in {"refuse", "accept"}:
            self.refuses = command["do"] == "refuse"
            return {}
        return self.tally.answer(command)


class Connection(asyncio.Protocol):
    """One connection of a contender."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._splitter = PostSplitter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if posts := self._splitter.feed(data):
            at_ns = time.monotonic_ns()
            refuses = self._cloud.refuses
            self._answer((REFUSAL if refuses else ANSWER) * len(posts))
            for post in posts if not refuses else ():
                self._cloud.tally.count(plain(post), at_ns)

    def _answer(self, answers: bytes) -> None:
        if self._cloud.answer_after_seconds:
            asyncio.get_running_loop().call_later(self._cloud.answer_after_seconds, self._transport.write, answers)
        else:
            self._transport.write(answers)


def plain(post: Post) -> bytes:
    """Return the body as it was before its compression."""
    match post.encoding:
        case "gzip":
            return gzip.decompress(post.body)
        case "zstd":
            return zstandard.ZstdDecompressor().decompress(post.body)
        case _:
            return post.body


async def serve(answer_after_seconds: float) -> None:
    """Listen on a free port, say which, and answer commands until standard input ends."""
    loop, cloud, ended = asyncio.get_running_loop(), Cloud(answer_after_seconds), asyncio.Event()
    server = await loop.create_server(lambda: Connection(cloud), "127.0.0.1", 0)

    def answer() -> None:
        command = hear()
        if command is None:
            ended.set()
            loop.remove_reader(sys.stdin)
        else:
            say(cloud.answer(command))

    loop.add_reader(sys.stdin, answer)
    say({"ready": True, "port": server.sockets[0].getsockname()[1]})
    await ended.wait()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(prog="bridge.bench.sink")
    parser.add_argument("--answer-after-ms", type=float, default=0)
    asyncio.run(serve(parser.parse_args().answer_after_ms / 1000))


if __name__ == "__main__":
    main()
