"""The bench's packets, read by the bridge's own splitter, and its confirmations, against the bridge's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.bench import mqtt
from bridge.message import Publish
from bridge.wire import Splitter, pubacks


def as_the_broker_sends_it(index: int, payload: bytes) -> bytes:
    """What the null subscriber gets: MQTT 5, so with (no) properties."""
    body = mqtt.string(mqtt.TOPIC) + mqtt.packet_id(index) + bytes(1) + payload
    return b"\x32" + mqtt.varint(len(body)) + body


@given(st.integers(0, 3 * mqtt.PACKET_IDS), st.binary(min_size=1, max_size=300))
def test_a_publish_is_read_back_as_it_was_made(index: int, payload: bytes) -> None:
    items = Splitter(mqtt5=False, payload_bytes_max=1000).feed(mqtt.publish(index, payload))
    assert items == [Publish(mqtt.TOPIC.decode(), payload, index % 65_535 + 1, dup=False)]


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "00"), (127, "7f"), (128, "8001"), (16_383, "ff7f"), (16_384, "808001"), (268_435_455, "ffffff7f")],
)
def test_lengths_are_written_as_the_table_of_the_standard_says(number: int, written: str) -> None:
    assert mqtt.varint(number).hex() == written


@given(st.integers(60, 400), st.integers(0, 50))
def test_whole_publishes_are_confirmed_in_order_like_the_bridge_would(payload_bytes: int, count: int) -> None:
    publishes = b"".join(as_the_broker_sends_it(index, bytes(payload_bytes)) for index in range(count))
    assert mqtt.Shape.of(payload_bytes).confirmations(publishes) == pubacks(list(range(1, count + 1)))


def test_the_shape_says_how_long_each_publish_is() -> None:
    assert mqtt.Shape.of(300).packet_bytes == len(as_the_broker_sends_it(7, bytes(300)))


def test_anything_but_a_publish_of_the_bench_is_not_confirmed() -> None:
    publishes = as_the_broker_sends_it(0, bytes(100)) + as_the_broker_sends_it(1, bytes(100)).replace(
        b"bench", b"other"
    )
    with pytest.raises(ValueError, match="something else"):
        mqtt.Shape.of(100).confirmations(publishes)


def test_the_null_subscriber_asks_for_a_lasting_session_and_the_bridges_window() -> None:
    connect = mqtt.connect_5(b"me", receive_maximum=10_000, session_expiry_seconds=604_800)
    flags, properties = connect[9], connect[13:21]
    assert flags == 0  # clean start off
    assert properties == b"\x21\x27\x10" + b"\x11\x00\x09\x3a\x80"
    assert connect.endswith(b"\x00\x02me")
