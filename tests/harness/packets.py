"""MQTT packets out of a stream, by a few lines that share nothing with the bridge."""

from __future__ import annotations

from collections.abc import Iterator

CONNECT, PUBLISH, PUBACK, SUBSCRIBE = 0x10, 0x30, 0x40, 0x80


def packets(stream: bytes | bytearray) -> Iterator[tuple[int, int, bytes]]:
    """Yield (offset of its end, type, body) of each whole packet."""
    at = 0
    while at + 2 <= len(stream):
        start, length, shift = at + 1, 0, 0
        while True:
            if start >= len(stream):
                return
            digit = stream[start]
            length |= (digit & 0x7F) << shift
            shift, start = shift + 7, start + 1
            if digit < 0x80:
                break
        if start + length > len(stream):
            return
        yield start + length, stream[at] & 0xF0, bytes(stream[start : start + length])
        at = start + length


def packet_id(kind: int, body: bytes) -> int:
    """Return the packet id of a PUBACK or of a PUBLISH at QoS 1."""
    at = 2 + int.from_bytes(body[:2], "big") if kind == PUBLISH else 0
    return int.from_bytes(body[at : at + 2], "big")
