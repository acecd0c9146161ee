"""The byte stream of the broker, taken apart: PUBLISH packets for us, everything else untouched for paho.

The other way it puts together the packets of which there are many: publishes and confirmations.

At full speed nearly all bytes are QoS 1 publishes, and reading them one field a call is what makes paho slow. This
module splits them off in one tight loop; paho keeps connection, session, keep-alive, subscribe and publish.

Pure: bytes in, values out. Never reads a socket, never confirms. Holds its part of I5: a publish that cannot fit the
limit is skipped while it arrives instead of being collected, and reported as `TooLarge`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bridge.message import Publish, Request, new_publish

_PUBLISH, _QOS_MASK, _DUP, _QOS_1, _QOS_2 = 0x30, 0x06, 0x08, 0x02, 0x04
_HEADROOM_BYTES = 2 * 65536 + 64  # topic, ids and properties that may stand before a payload
_NOTHING_KNOWN = (None, None, None, None)
_TOPICS_MAX = 4096  # topics whose decoded form is remembered


class MalformedError(ValueError):
    """The bytes are not MQTT; the connection cannot be used any further."""


class TooLarge(NamedTuple):
    """A publish above the limit; its payload was not kept."""

    topic: str
    packet_id: int
    payload_bytes: int
    request: Request | None = None


Item = Publish | TooLarge | bytes  # bytes: one whole packet of another kind


# MQTT 5, section 2.2.2.2: how long the value of each property is that a PUBLISH may carry.
_FIXED_BYTES = {0x01: 1, 0x02: 4, 0x23: 2}  # payload format, message expiry, topic alias
_EXPIRY, _CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION, _SUBSCRIPTION, _USER = 0x02, 0x03, 0x08, 0x09, 0x0B, 0x26
_USER_PROPERTIES = frozenset((b"id", b"receipt"))  # those that mean something to us


class Splitter:
    """Splits what one connection brings; feed it in order, with pieces cut anywhere."""

    def __init__(self, *, mqtt5: bool, payload_bytes_max: int) -> None:
        self._mqtt5 = mqtt5
        self._packet_bytes_max = payload_bytes_max + _HEADROOM_BYTES
        self._rest = b""
        self._skipping: TooLarge | None = None
        self._skip_bytes = 0
        self._topics: dict[bytes, str] = {}

    def feed(self, piece: bytes) -> list[Item]:  # noqa: C901, PLR0912 - the one loop that every message goes through
        """Return the packets that are complete now. Raises MalformedError."""
        items: list[Item] = []
        if self._skipping:
            piece = self._skip(piece, items)
        buffer = self._rest + piece if self._rest else piece
        size, at = len(buffer), 0
        topics, mqtt5, without_properties = self._topics, self._mqtt5, 3 if self._mqtt5 else 2
        while size - at >= 2:
            first = buffer[at]
            length, start = buffer[at + 1], at + 2
            if length > 127:
                if size - at > 2 and buffer[at + 2] < 128:  # two bytes: nearly every message
                    length, start = length & 127 | buffer[at + 2] << 7, at + 3
                else:
                    length, start = _varint(buffer, at + 1)
                    if not start:
                        break  # the length itself is not complete
            end = start + length
            if end > size:
                if length > self._packet_bytes_max:
                    at = self._begin_skip(buffer, first, start, end, at)
                break
            if first == _PUBLISH | _QOS_1 and length > 4:
                # Nearly every message: its topic is known, it has no properties. All else is `_publish`'s.
                topic_end = start + 2 + (buffer[start] << 8 | buffer[start + 1])
                payload_at = topic_end + without_properties
                topic = topics.get(buffer[start + 2 : topic_end])
                if topic and payload_at <= end and not (mqtt5 and buffer[payload_at - 1]):
                    packet_id = buffer[topic_end] << 8 | buffer[topic_end + 1]
                    items.append(new_publish((topic, buffer[payload_at:end], packet_id, False, None, None, None, None)))
                else:
                    items.append(self._publish(buffer, first, start, end))
            elif first & 0xF0 == _PUBLISH:
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
        known: tuple[Any, ...] = _NOTHING_KNOWN
        if self._mqtt5:
            if at >= end:
                raise MalformedError("a PUBLISH that ends before its properties")
            if buffer[at]:
                known, at = _properties(buffer, at, end)
            else:
                at += 1
        if at > end:
            raise MalformedError("a PUBLISH whose topic is longer than itself")
        return new_publish((topic, buffer[at:end], packet_id, first & _DUP != 0, *known))

    def _decode(self, raw_topic: bytes) -> str:
        if len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
        # A broker lets no invalid UTF-8 through; should one, the message is kept under a topic one can read.
        topic = self._topics[raw_topic] = raw_topic.decode("utf-8", "backslashreplace")
        return topic

    def _begin_skip(self, buffer: bytes, first: int, start: int, end: int, at: int) -> int:
        """Start to skip a packet once all that stands before its payload is there; returns where the rest begins."""
        if first & 0xF0 != _PUBLISH:
            raise MalformedError(f"a packet of type {first >> 4} with {end - start} bytes")
        if len(buffer) - start < 2:
            return at
        topic_end = start + 2 + (buffer[start] << 8 | buffer[start + 1])
        if len(buffer) < topic_end + 2:
            return at
        packet_id, payload_at = 0, topic_end
        if first & _QOS_MASK:
            packet_id, payload_at = buffer[topic_end] << 8 | buffer[topic_end + 1], topic_end + 2
        request = None
        if self._mqtt5:
            length, properties_at = _varint(buffer, payload_at)
            if properties_at + length > len(buffer) or not properties_at:
                if len(buffer) - start < _HEADROOM_BYTES:
                    return at
            else:
                (*_, request), payload_at = _properties(buffer, payload_at, end)
        self._skipping = TooLarge(self._decode(buffer[start + 2 : topic_end]), packet_id, end - payload_at, request)
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


def _properties(
    buffer: bytes, at: int, end: int
) -> tuple[tuple[str | None, str | None, int | None, Request | None], int]:
    """Read the properties of a PUBLISH; returns what `Publish` knows of them and where the payload begins.

    Of a property that is there twice the first one counts.
    """
    length, at = _varint(buffer, at)
    stop = at + length
    if not at or stop > end:
        raise MalformedError("properties longer than their packet")
    found: dict[int | bytes, bytes] = {}
    while at < stop:
        kind = buffer[at]
        at += 1
        if kind == _USER:
            name, at = _string(buffer, at, stop)
            value, at = _string(buffer, at, stop)
            if value and name in _USER_PROPERTIES:
                found.setdefault(name, value)
        elif kind in (_CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION):
            value, at = _string(buffer, at, stop)
            found.setdefault(kind, value)
        elif kind == _SUBSCRIPTION:
            _, at = _varint(buffer, at)
            at = at or stop + 1  # the buffer ended within the number
        elif kind in _FIXED_BYTES:
            start, at = at, at + _FIXED_BYTES[kind]
            found.setdefault(kind, buffer[start:at])
        else:
            raise MalformedError(f"a property 0x{kind:02x} that a PUBLISH cannot have")
    if at != stop:
        raise MalformedError("properties that do not end where they say")
    expiry_seconds = int.from_bytes(found[_EXPIRY]) if _EXPIRY in found else None
    return (_text(found.get(b"id")), _text(found.get(_CONTENT_TYPE)), expiry_seconds, _request(found)), stop


def _request(found: dict[int | bytes, bytes]) -> Request | None:
    if _RESPONSE_TOPIC not in found and _CORRELATION not in found:
        return None
    topic = _text(found.get(_RESPONSE_TOPIC)) or ""
    return Request(topic, found.get(_CORRELATION, b""), found.get(b"receipt") == b"delivered")


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "backslashreplace")


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


def puback(packet: bytes) -> tuple[int, int]:
    """Return packet id and reason code (MQTT 5; 0 = success) of a whole PUBACK."""
    _, at = _varint(packet, 1)
    if len(packet) < at + 2:
        raise MalformedError("a PUBACK without a packet id")
    return packet[at] << 8 | packet[at + 1], packet[at + 2] if len(packet) > at + 2 else 0


def publish(topic: bytes, payload: bytes, properties: bytes = b"", packet_id: int = 0) -> bytes:
    """Return a PUBLISH of MQTT 5, at QoS 1 if it has a packet id. `topic` is a `string`."""
    identified = packet_id.to_bytes(2) if packet_id else b""
    size = varint(len(properties))
    length = varint(len(topic) + len(identified) + len(size) + len(properties) + len(payload))
    first = b"\x32" if packet_id else b"\x30"
    return b"".join((first, length, topic, identified, size, properties, payload))


def request_properties(request: Request) -> bytes:
    """Return the properties that ask for an answer, or (without a topic) those that mark one."""
    wanted = _user("receipt", "delivered") if request.until_delivered else b""
    topic = b"\x08" + string(request.response_topic.encode()) if request.response_topic else b""
    return b"".join((topic, b"\x09", string(request.correlation), wanted))


def user_properties(pairs: dict[str, str]) -> bytes:
    """Return user properties, in the order given."""
    return b"".join([_user(name, value) for name, value in pairs.items()])


def _user(name: str, value: str) -> bytes:
    return b"\x26" + string(name.encode()) + string(value.encode())


def string(text: bytes) -> bytes:
    """Return a string, or binary data, with its length before it."""
    return len(text).to_bytes(2) + text


def varint(number: int) -> bytes:
    """Return a length as MQTT writes it: seven bits a byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + varint(number >> 7)
