"""The splitter against paho's own decoder, and against streams cut at every byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt import _packet
from paho.mqtt.client import MQTTv5, MQTTv311
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.message import Publish, Request
from bridge.wire import Item, MalformedError, Splitter, TooLarge, puback, pubacks

PAYLOAD_MAX = 1000


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, byte = value >> 7, value & 0x7F
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2) + value


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body


def publish(
    topic: str = "t",
    payload: bytes = b"x",
    *,
    qos: int = 1,
    dup: bool = False,
    packet_id: int = 1,
    properties: bytes = b"\0",
) -> bytes:
    body = text(topic.encode()) + (packet_id.to_bytes(2) if qos else b"") + properties + payload
    return packet(0x30 | dup << 3 | qos << 1, body)


def feed_all(stream: bytes, cuts: list[int], *, mqtt5: bool = True) -> list[Item]:
    splitter = Splitter(mqtt5=mqtt5, payload_bytes_max=PAYLOAD_MAX)
    edges = [0, *sorted(cuts), len(stream)]
    return [item for a, b in pairwise(edges) for item in splitter.feed(stream[a:b])]


def user_properties(pairs: list[tuple[str, str]], content_type: str | None = None, expiry: int | None = None) -> bytes:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if pairs:
        properties.UserProperty = pairs
    if content_type is not None:
        properties.ContentType = content_type
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    return bytes(properties.pack())  # type: ignore[no-untyped-call]


topics = st.text(st.characters(codec="utf-8", exclude_characters="\0#+"), min_size=1, max_size=30)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
pairs = st.lists(st.tuples(st.sampled_from(["id", "trace", "Id"]) | names, names), max_size=3)
publishes = st.tuples(
    topics, st.binary(max_size=300), st.sampled_from([0, 1]), st.booleans(), st.integers(1, 65535), pairs
)


@given(stream=st.lists(publishes, max_size=6), cuts=st.lists(st.integers(0, 2000), max_size=6), mqtt5=st.booleans())
def test_the_splitter_reads_what_pahos_decoder_reads(
    stream: list[tuple[str, bytes, int, bool, int, list[tuple[str, str]]]], cuts: list[int], mqtt5: bool
) -> None:
    packets = [
        publish(
            topic, payload, qos=qos, dup=dup, packet_id=packet_id, properties=user_properties(some) if mqtt5 else b""
        )
        for topic, payload, qos, dup, packet_id, some in stream
    ]
    joined = b"".join(packets)
    items = feed_all(joined, [cut for cut in cuts if cut < len(joined)], mqtt5=mqtt5)
    assert len(items) == len(packets)
    for raw, item in zip(packets, items, strict=True):
        start = 2 if raw[1] < 128 else 3
        theirs = _packet.decode_publish(raw[0], bytearray(raw[start:]), MQTTv5 if mqtt5 else MQTTv311)
        assert isinstance(item, Publish)
        assert (item.topic, item.payload, item.dup) == (theirs.topic.decode(), bytes(theirs.payload), theirs.dup)
        assert item.packet_id == (theirs.mid if theirs.qos else 0)
        ids = [value for name, value in getattr(theirs.properties, "UserProperty", []) if name == "id" and value]
        assert item.user_id == (ids[0] if ids else None)


def test_every_other_packet_is_handed_on_untouched_and_in_its_place() -> None:
    pingresp, suback = packet(0xD0, b""), packet(0x90, b"\0\1\0\1")
    stream = pingresp + publish(payload=b"1") + suback + publish(payload=b"2")
    for cut in range(len(stream)):
        items = feed_all(stream, [cut])
        assert [i if isinstance(i, bytes) else i.payload for i in items if not isinstance(i, TooLarge)] == [
            pingresp,
            b"1",
            suback,
            b"2",
        ]


def test_no_place_to_cut_makes_a_difference() -> None:
    properties = user_properties([("id", "7"), ("trace", "x" * 130)], "image/png", 60)
    long = publish(payload=b"y" * 200, properties=properties)
    large = publish("big/one", b"z" * 150_000, packet_id=9, qos=1)
    stream = long + packet(0xD0, b"") + large + publish(payload=b"next", qos=0)
    whole = feed_all(stream, [])
    assert [type(item) for item in whole] == [Publish, bytes, Publish, Publish]
    skipped = feed_all(stream, [len(long) + 20])
    assert skipped == [*whole[:2], TooLarge("big/one", 9, 150_000), whole[3]]
    for cut in range(len(long) + 2):
        assert feed_all(stream, [cut]) == whole
    for cut in range(len(long) + 2, len(long) + 40):
        assert feed_all(stream, [cut])[2] in (whole[2], skipped[2])
        assert feed_all(stream, [cut])[3:] == whole[3:]


@pytest.mark.parametrize("qos", [0, 1])
def test_who_asked_for_an_answer_to_a_message_that_is_skipped_is_known(qos: int) -> None:
    asked = b"\x08" + text(b"edge/buffer/receipts/a") + b"\x09" + text(b"17")
    large = publish("big/one", b"z" * 150_000, packet_id=9, qos=qos, properties=varint(len(asked)) + asked)
    request = Request("edge/buffer/receipts/a", b"17")
    for cut in range(1, 100):
        assert feed_all(large, [cut, 70_000]) == [TooLarge("big/one", 9 * qos, 150_000, request)]


def test_of_a_message_that_is_all_properties_nothing_is_kept() -> None:
    many = user_properties([(f"name-{n}", "x" * 60_000) for n in range(4)])
    items = feed_all(publish("big/one", b"z", packet_id=9, properties=many), [131_000, 140_000, 200_000])
    assert [(item.topic, item.packet_id, item.request) for item in items if isinstance(item, TooLarge)] == [
        ("big/one", 9, None)
    ]


def test_the_identifier_of_a_subscription_is_passed_over() -> None:
    (item,) = feed_all(publish(properties=b"\x03\x0b\x80\x01"), [])
    assert item == Publish("t", b"x", 1, dup=False)


def test_topics_that_never_come_again_are_forgotten() -> None:
    splitter = Splitter(mqtt5=True, payload_bytes_max=PAYLOAD_MAX)
    for number in range(10_000):
        (item,) = splitter.feed(publish(f"t/{number}"))
        assert isinstance(item, Publish)
        assert item.topic == f"t/{number}"
    assert len(splitter._topics) <= 4096


def test_a_confirmation_is_read_with_its_reason() -> None:
    assert puback(b"\x40\x02\x01\x02") == (258, 0)
    assert puback(b"\x40\x03\x01\x02\x87") == (258, 0x87)
    with pytest.raises(MalformedError):
        puback(b"\x40\x01\x01")


def test_content_type_and_expiry_are_read() -> None:
    raw = publish(properties=user_properties([("id", "7")], "image/png", 60), payload=b"p")
    (item,) = feed_all(raw, [])
    assert item == Publish("t", b"p", 1, dup=False, user_id="7", content_type="image/png", expiry_seconds=60)


@pytest.mark.parametrize("cut", range(0, 400_000, 33_333))
def test_a_publish_that_cannot_fit_is_skipped_while_it_arrives(cut: int) -> None:
    stream = publish("big/one", b"z" * 300_000, packet_id=9) + publish(payload=b"next")
    splitter = Splitter(mqtt5=True, payload_bytes_max=PAYLOAD_MAX)
    items: list[Item] = []
    for at in range(0, len(stream), 4096):
        items += splitter.feed(stream[at : at + 4096])
        assert len(splitter._rest) <= PAYLOAD_MAX + 2 * 65536 + 64
    assert items == [TooLarge("big/one", 9, 300_000), Publish("t", b"next", 1, dup=False)]
    whole = feed_all(stream, [min(cut, len(stream))])
    assert [type(item) for item in whole][-1] is Publish


def test_a_topic_that_is_not_utf_8_is_kept_readable() -> None:
    (item,) = feed_all(packet(0x32, text(b"a\xff") + b"\0\1\0" + b"p"), [])
    assert isinstance(item, Publish)
    assert item.topic == "a\\xff"


@pytest.mark.parametrize(
    "raw",
    [
        packet(0x34, text(b"t") + b"\0\1\0x"),  # QoS 2
        packet(0x32, b"\0"),  # shorter than a topic's length
        packet(0x32, b"\0\x09t"),  # topic longer than the packet
        packet(0x32, text(b"t") + b"\0"),  # no whole packet id
        packet(0x32, text(b"t") + b"\0\1"),  # no properties
        packet(0x32, text(b"t") + b"\0\1\x7f"),  # properties longer than the packet
        packet(0x32, text(b"t") + b"\0\1\x03\x26\0\x09"),  # a string longer than its properties
        packet(0x32, text(b"t") + b"\0\1\x01\x7e"),  # a property that does not exist
        packet(0x32, text(b"t") + b"\0\1\x02\x26\0"),  # a string that ends within its length
        packet(0x32, text(b"t") + b"\0\1\x02\x0b\x80"),  # a subscription's number that does not end
        packet(0x32, text(b"t") + b"\0\1\x01\x02"),  # an expiry of no bytes
        packet(0x30, b"\0\x02t"),  # topic longer than the packet, at QoS 0
        b"\x32\xff\xff\xff\xff\x01",  # a length of five bytes
    ],
)
def test_malformed_bytes_are_refused_whether_their_topic_is_known_or_not(raw: bytes) -> None:
    for known in (b"", publish()):
        with pytest.raises(MalformedError):
            feed_all(known + raw, [])


@given(
    rest=st.binary(max_size=300) | st.binary(max_size=300).map(lambda payload: b"\0\1\0" + payload),
    first=st.sampled_from([0x30, 0x31, 0x32, 0x33, 0x3A, 0x34]),
    lie=st.sampled_from([0, 1, 2, 200]),
    mqtt5=st.booleans(),
)
def test_a_topic_that_is_known_makes_a_publish_no_other_one(rest: bytes, first: int, lie: int, mqtt5: bool) -> None:
    """Publishes of known topics without properties are read in a lane of their own."""
    raw = packet(first, (1 + lie).to_bytes(2) + b"t" + rest)

    def outcome(known: bytes) -> list[Item] | str:
        splitter = Splitter(mqtt5=mqtt5, payload_bytes_max=PAYLOAD_MAX)
        splitter.feed(known)
        try:
            return splitter.feed(raw)
        except MalformedError:
            return "malformed"

    properties = b"\0" if mqtt5 else b""
    assert outcome(publish(properties=properties)) == outcome(b"")


@given(raw=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5), mqtt5=st.booleans())
@example(raw=b"\x32\x05\x00\x01t\x00\x01", cuts=[], mqtt5=True)
def test_no_bytes_raise_anything_else_and_cuts_never_matter(raw: bytes, cuts: list[int], mqtt5: bool) -> None:
    def outcome(cut_at: list[int]) -> list[Item] | str:
        try:
            return feed_all(raw, [cut for cut in cut_at if cut < len(raw)], mqtt5=mqtt5)
        except MalformedError:
            return "malformed"

    assert outcome(cuts) == outcome([])


def test_confirmations_are_one_piece_in_order() -> None:
    assert pubacks([1, 258, 65535]) == b"\x40\x02\x00\x01\x40\x02\x01\x02\x40\x02\xff\xff"


def test_a_puback_without_a_packet_id_is_malformed() -> None:
    assert puback(b"\x40\x02\x01\x02") == (258, 0)
    assert puback(b"\x40\x04\x01\x02\x87\0") == (258, 0x87)
    with pytest.raises(MalformedError):
        puback(b"\x40\x01\x01")
