"""The sink's half of HTTP: bytes of one connection → the posts in them. As little as the bench needs.

Pure. A post without Content-Length is an error: every contender sends whole batches.
"""

from __future__ import annotations

from typing import NamedTuple

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"


class Post(NamedTuple):
    """One request: its body, and how that is compressed (empty: not)."""

    encoding: str
    body: bytes


class PostSplitter:
    """Splits what one connection brings, cut anywhere."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._body_start = 0  # 0: the head is not complete yet
        self._body_bytes = 0
        self._encoding = ""

    def feed(self, piece: bytes) -> list[Post]:
        """Return the posts that are complete now."""
        self._buffer += piece
        posts = []
        while self._body_start or self._read_head():
            end = self._body_start + self._body_bytes
            if len(self._buffer) < end:
                break
            posts.append(Post(self._encoding, bytes(self._buffer[self._body_start : end])))
            del self._buffer[:end]
            self._body_start = 0
        return posts

    def _read_head(self) -> bool:
        end = self._buffer.find(_HEAD_END)
        if end < 0:
            return False
        fields = dict(line.partition(":")[::2] for line in self._buffer[:end].decode("latin-1").lower().split("\r\n"))
        self._body_bytes = int(fields["content-length"])
        self._encoding = fields.get("content-encoding", "").strip()
        self._body_start = end + len(_HEAD_END)
        return True


def post(path: bytes, body: bytes, encoding: str) -> bytes:
    """Return a request as a contender would send it."""
    head = b"POST %b HTTP/1.1\r\nHost: sink\r\nContent-Length: %d\r\n" % (path, len(body))
    return head + (b"Content-Encoding: %b\r\n" % encoding.encode() if encoding else b"") + b"\r\n" + body
