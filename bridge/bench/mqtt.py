"""The few MQTT packets that the generator and the null subscriber need, as bytes.

The generator speaks 3.1.1 (no flow control by the broker), the null subscriber 5 with the bridge's own session and
window. Pure. Knows no socket; reads nothing but what the null subscriber must find in a PUBLISH.
"""

from __future__ import annotations

from typing import NamedTuple

TOPIC = b"edge/predictions/bench"
TOPIC_FILTER = b"edge/predictions/#"
PACKET_IDS = 65_535
PUBACK_BYTES = 4

_CONNECT, _PUBLISH_QOS_1, _SUBSCRIBE = 0x10, 0x32, 0x82
_RECEIVE_MAXIMUM, _SESSION_EXPIRY = 0x21, 0x11  # MQTT 5, section 2.2.2.2


def packet(kind: int, body: bytes) -> bytes:
    """Return a packet: kind, length, body."""
    return bytes([kind]) + varint(len(body)) + body


def varint(number: int) -> bytes:
    """Return a length as MQTT writes it: seven bits a byte, the lowest first."""
    digits = bytearray()
    while True:
        number, digit = divmod(number, 128)
        digits.append(digit | 128 if number else digit)
        if not number:
            return bytes(digits)


def string(text: bytes) -> bytes:
    """Return a string with its length before it."""
    return len(text).to_bytes(2) + text


def connect(client_id: bytes) -> bytes:
    """Return a CONNECT of MQTT 3.1.1 with a clean session and without keep-alive."""
    return packet(_CONNECT, string(b"MQTT") + bytes([4, 0x02]) + bytes(2) + string(client_id))


def connect_5(client_id: bytes, *, receive_maximum: int, session_expiry_seconds: int) -> bytes:
    """Return a CONNECT of MQTT 5 with a session that outlives it, if only by 0 s, and without keep-alive."""
    properties = bytes([_RECEIVE_MAXIMUM]) + receive_maximum.to_bytes(2)
    properties += bytes([_SESSION_EXPIRY]) + session_expiry_seconds.to_bytes(4)
    head = string(b"MQTT") + bytes([5, 0x00]) + bytes(2)
    return packet(_CONNECT, head + varint(len(properties)) + properties + string(client_id))


def subscribe_5(topic_filter: bytes, qos: int = 1) -> bytes:
    """Return a SUBSCRIBE of MQTT 5."""
    return packet(_SUBSCRIBE, (1).to_bytes(2) + bytes(1) + string(topic_filter) + bytes([qos]))


def publish(index: int, payload: bytes) -> bytes:
    """Return the index-th QoS 1 PUBLISH of MQTT 3.1.1; the same size for all payloads of one size."""
    return packet(_PUBLISH_QOS_1, string(TOPIC) + packet_id(index) + payload)


def packet_id(index: int) -> bytes:
    """Return the packet id of the index-th publish: 1 to 65,535 round and round."""
    return (index % PACKET_IDS + 1).to_bytes(2)


class Shape(NamedTuple):
    """How every PUBLISH of the bench looks to its subscriber: equal in size, and equal up to the packet id."""

    head: bytes
    packet_bytes: int

    @classmethod
    def of(cls, payload_bytes: int) -> Shape:
        """Return the shape for payloads of this size."""
        body_bytes = len(string(TOPIC)) + 2 + 1 + payload_bytes  # packet id; properties, none
        head = bytes([_PUBLISH_QOS_1]) + varint(body_bytes) + string(TOPIC)
        return cls(head, len(head) + 2 + 1 + payload_bytes)

    def confirmations(self, publishes: bytes) -> bytes:
        """Return the PUBACKs of whole publishes, in order; ValueError if one of them looks different."""
        at_id, ids = len(self.head), []
        for start in range(0, len(publishes), self.packet_bytes):
            if not publishes.startswith(self.head, start):
                raise ValueError("the broker sent something else than the bench's publishes")
            ids.append(publishes[start + at_id : start + at_id + 2])
        return b"".join([b"\x40\x02" + one for one in ids])
