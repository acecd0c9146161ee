"""From the bytes on the wire to the bytes of the body: `Content-Encoding` taken off, never beyond a bound.

A few kilobytes of gzip can stand for gigabytes (I5), so decoding stops at the bound instead of measuring afterwards.
A body that ends in the middle of a compressed frame is refused: half an upload must not look like a whole one.

Pure: bytes in, bytes or a `Refusal` out.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import zstandard

ENCODINGS = ("gzip", "zstd")
_GZIP = 16 + zlib.MAX_WBITS
_ZSTD_WINDOW_BYTES_MAX = 8 << 20  # RFC 9659: what an HTTP client may expect a recipient to support
_ZSTD_STEP_BYTES = 128  # four bytes of zstd can stand for 128 KiB, so it is fed in steps that yield 4 MiB at most


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request as a whole is not taken; nothing of it was stored."""

    status_code: int
    error: str


def decode(raw: bytes, encoding: str, body_bytes_max: int) -> bytes | Refusal:
    """Return the body behind a `Content-Encoding`, at most `body_bytes_max` long."""
    match encoding.strip().lower():
        case "" | "identity":
            body: bytes | None = raw
        case "gzip" | "x-gzip":
            body = _gunzip(raw, body_bytes_max)
        case "zstd":
            body = _unzstd(raw, body_bytes_max)
        case unknown:
            return Refusal(415, f"Content-Encoding {unknown!r} is not understood; use gzip, zstd or none")
    if body is None:
        return Refusal(400, f"the body is not complete, valid {encoding}")
    if len(body) > body_bytes_max:
        return Refusal(413, f"the body is larger than {body_bytes_max} bytes")
    return body


def _gunzip(raw: bytes, body_bytes_max: int) -> bytes | None:
    body = bytearray()
    while raw:  # gzip allows several members one after the other
        member = zlib.decompressobj(_GZIP)
        try:
            body += member.decompress(raw, body_bytes_max + 1 - len(body))
        except zlib.error:
            return None
        if len(body) > body_bytes_max:
            break
        if not member.eof:
            return None
        raw = member.unused_data
    return bytes(body)


def _unzstd(raw: bytes, body_bytes_max: int) -> bytes | None:
    body = bytearray()
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    frame = decompressor.decompressobj()
    for start in range(0, len(raw), _ZSTD_STEP_BYTES):
        step = raw[start : start + _ZSTD_STEP_BYTES]
        while step:
            if frame.eof:  # zstd allows several frames one after the other
                frame = decompressor.decompressobj()
            try:
                body += frame.decompress(step)
            except zstandard.ZstdError:
                return None
            step = frame.unused_data
        if len(body) > body_bytes_max:
            return bytes(body)
    return bytes(body) if frame.eof or not raw else None
