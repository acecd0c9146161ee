"""The byte stream of the broker, taken apart: PUBLISH packets for us, everything else untouched for paho.

At full speed nearly all bytes are QoS 1 publishes, and reading them one field a call is what makes paho slow. This
module splits them off in one tight loop; paho keeps connection, session, keep-alive, subscribe and publish.

Pure: bytes in, values out. Never reads a socket, never confirms. Holds its part of I5: a publish that cannot fit the
limit is skipped while it arrives instead of being collected, and reported as `TooLarge`.
"""

from __future__ import annotations

from typing import NamedTuple

from bridge.message import Publish

_PUBLISH, _QOS_MASK, _DUP, _QOS_1, _QOS_2 = 0x30, 0x06, 0x08, 0x02, 0x04
_HEADROOM_BYTES = 2 * 65536 + 64  # topic, ids and properties that may stand before a payload
_TOPICS_MAX = 4096  # topics whose decoded form is remembered


class MalformedError(ValueError):
    """The bytes are not MQTT; the connection cannot be used any further."""


class TooLarge(NamedTuple):
    """A publish above the limit; its payload was not kept."""

    topic: str
    packet_id: int
    payload_bytes: int


Item = Publish | TooLarge | bytes  # bytes: one whole packet of another kind


# MQTT 5, section 2.2.2.2: how long the value of each property is that a PUBLISH may carry.
_FIXED_BYTES = {0x01: 1, 0x02: 4, 0x23: 2}  # payload format, message expiry, topic alias
_EXPIRY, _CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION, _SUBSCRIPTION, _USER = 0x02, 0x03, 0x08, 0x09, 0x0B, 0x26


class Splitter:
    """Splits what one connection brings; feed it in order, with pieces cut anywhere."""

    def __init__(self, *, mqtt5: bool, payload_bytes_max: int) -> None:
        self._mqtt5 = mqtt5
        self._packet_bytes_max = payload_bytes_max + _HEADROOM_BYTES
        self._rest = b""
        self._skipping: TooLarge | None = None
        self._skip_bytes = 0
        self._topics: dict[bytes, str] = {}

    def feed(self, piece: bytes) -> list[Item]:
        """Return the packets that are complete now. Raises MalformedError."""
        items: list[Item] = []
        if self._skipping:
            piece = self._skip(piece, items)
        buffer = self._rest + piece if self._rest else piece
        size, at = len(buffer), 0
        while size - at >= 2:
            first = buffer[at]
            length, start = buffer[at + 1], at + 2
            if length > 127:
                length, start = _varint(buffer, at + 1)
                if not start:
                    break  # the length itself is not complete
            end = start + length
            if end > size:
                if length > self._packet_bytes_max:
                    at = self._begin_skip(buffer, first, start, end, at)
                break
            if first & 0xF0 == _PUBLISH:
                items.append(self._publish(buffer, first, start, end))
            else:
                items.append(buffer[at:end])
            at = end
        self._rest = buffer[at:] if at else buffer
        return items

    def _publish(self, buffer: bytes, first: int, at: int, end: int) -> Publish:
        if end - at < 2:
            raise MalformedError("a PUBLISH without a topic")
        topic_end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
        raw_topic = buffer[at + 2 : topic_end]
        topic = self._topics.get(raw_topic) or self._decode(raw_topic)
        at = topic_end
        packet_id = 0
        if first & _QOS_MASK:
            if first & _QOS_MASK != _QOS_1:
                raise MalformedError("a PUBLISH of a QoS that was not subscribed")
            if at + 2 > end:
                raise MalformedError("a PUBLISH that ends before its packet id")
            packet_id = buffer[at] << 8 | buffer[at + 1]
            at += 2
        user_id = content_type = expiry_seconds = None
        if self._mqtt5:
            if at >= end:
                raise MalformedError("a PUBLISH that ends before its properties")
            if buffer[at]:
                user_id, content_type, expiry_seconds, at = _properties(buffer, at, end)
            else:
                at += 1
        if at > end:
            raise MalformedError("a PUBLISH whose topic is longer than itself")
        return Publish(topic, buffer[at:end], packet_id, bool(first & _DUP), user_id, content_type, expiry_seconds)

    def _decode(self, raw_topic: bytes) -> str:
        if len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
        # A broker lets no invalid UTF-8 through; should one, the message is kept under a topic one can read.
        topic = self._topics[raw_topic] = raw_topic.decode("utf-8", "backslashreplace")
        return topic

    def _begin_skip(self, buffer: bytes, first: int, start: int, end: int, at: int) -> int:
        """Start to skip a packet once its topic and packet id are there; returns where the rest begins."""
        if first & 0xF0 != _PUBLISH:
            raise MalformedError(f"a packet of type {first >> 4} with {end - start} bytes")
        if len(buffer) - start < 2:
            return at
        topic_end = start + 2 + (buffer[start] << 8 | buffer[start + 1])
        if len(buffer) < topic_end + 2:
            return at
        packet_id = buffer[topic_end] << 8 | buffer[topic_end + 1] if first & _QOS_MASK else 0
        self._skipping = TooLarge(self._decode(buffer[start + 2 : topic_end]), packet_id, end - topic_end)
        self._skip_bytes = end - len(buffer)
        return len(buffer)

    def _skip(self, piece: bytes, items: list[Item]) -> bytes:
        if len(piece) < self._skip_bytes:
            self._skip_bytes -= len(piece)
            return b""
        rest = piece[self._skip_bytes :]
        if self._skipping:
            items.append(self._skipping)
        self._skipping, self._skip_bytes = None, 0
        return rest


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """Return (value, position behind it); position 0 if the buffer ends within it."""
    value = 0
    for i in range(4):
        if at + i >= len(buffer):
            return 0, 0
        byte = buffer[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise MalformedError("a length of more than four bytes")


def _properties(buffer: bytes, at: int, end: int) -> tuple[str | None, str | None, int | None, int]:
    """Read the properties of a PUBLISH; returns user property `id`, content type, expiry, where the payload begins."""
    length, at = _varint(buffer, at)
    stop = at + length
    if not at or stop > end:
        raise MalformedError("properties longer than their packet")
    user_id = content_type = expiry_seconds = None
    while at < stop:
        kind = buffer[at]
        at += 1
        if kind == _USER:
            name, at = _string(buffer, at, stop)
            value, at = _string(buffer, at, stop)
            if name == b"id" and user_id is None and value:
                user_id = value.decode("utf-8", "backslashreplace")
        elif kind in (_CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION):
            value, at = _string(buffer, at, stop)
            if kind == _CONTENT_TYPE:
                content_type = value.decode("utf-8", "backslashreplace")
        elif kind == _SUBSCRIPTION:
            _, at = _varint(buffer, at)
            at = at or stop + 1  # the buffer ended within the number
        elif kind in _FIXED_BYTES:
            start, at = at, at + _FIXED_BYTES[kind]
            expiry_seconds = int.from_bytes(buffer[start:at]) if kind == _EXPIRY else expiry_seconds
        else:
            raise MalformedError(f"a property 0x{kind:02x} that a PUBLISH cannot have")
    if at != stop:
        raise MalformedError("properties that do not end where they say")
    return user_id, content_type, expiry_seconds, stop


def _string(buffer: bytes, at: int, stop: int) -> tuple[bytes, int]:
    if at + 2 > stop:
        raise MalformedError("a string that ends within its length")
    end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
    if end > stop:
        raise MalformedError("a string longer than its properties")
    return buffer[at + 2 : end], end


def pubacks(packet_ids: list[int]) -> bytes:
    """Return the confirmations of these publishes, in this order, as one piece of bytes (valid in 3.1.1 and 5)."""
    return b"".join([b"\x40\x02" + packet_id.to_bytes(2) for packet_id in packet_ids])
