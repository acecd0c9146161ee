"""Promise 16: whatever a producer sends is stored byte for byte, or refused and counted; the bridge lives on.

The events are read from the bodies of the posts by a regular expression, not by the code that made them: `data` must
hold the very bytes that were published (line breaks, which JSON has only between tokens, as spaces), `data_base64`
must decode to them.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import figures, wait_until
from tests.harness.cloud_stage import TOPIC, CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

PAYLOAD_BYTES_MAX = 300_000
EVENT = re.compile(rb'\{.*?,"datacontenttype":"[^"]*","(data|data_base64)":(.*)\}', re.DOTALL)

JSON = {  # what RFC 8259 and every parser calls JSON: must travel as `data`
    "a stock library's own word": b'{"pqid":3}',
    "another of its words": b'{"pqid":1,"data":2,"timestamp":3,"status":9}',
    "white space around": b' \t{"a" : 1 }\t ',
    "line breaks": b'{\r\n  "a": [1,\n 2]\r}\n',
    "duplicate keys": b'{"a":1,"a":2,"a":{"a":3}}',
    "digits of floats": b'{"a":0.10000000000000000555,"b":1e5,"c":1E+05,"d":-0.0,"e":1.0}',
    "large numbers": b"[18446744073709551615,-9223372036854775808,123456789012345678901234567890]",
    "escapes": rb'{"a":"\u0000\ud83d\ude00\/\"\\","\u0061":1}',
    "our own layout": b'{"specversion":"1.0","id":"x","source":"y","datacontenttype":"application/json","data":1}',
    "our own layout in a text": rb'{"a":"\",\"datacontenttype\":\"application/json\",\"data\":1}"}',
    "scripts": '{"a":"דוגמה 例 🦀 \u2028 \u0085"}'.encode(),
    "bare values": b"null",
    "a bare text": b'"crack"',
    "an empty name": b'{"":""}',
    "ids of wrong kinds": b'{"event_id":null,"message_id":[1],"prediction_id":{"a":1},"id":7}',
    "an id of 10,000 letters": b'{"event_id":"' + b"x" * 10_000 + b'"}',
    "an id with quotes": rb'{"event_id":"\"},{\"id\":\"\u0000"}',
    "a truth as id": b'{"event_id":true}',
}
ANYTHING = {  # may travel as `data` or as `data_base64`, but exactly
    "not a number": b'{"score":NaN}',
    "infinity": b"[Infinity,-Infinity]",
    "5,000 digits": b'{"a":' + b"7" * 5000 + b"}",
    "5,000 digits behind the point": b"[0." + b"3" * 5000 + b"]",
    "beyond all floats": b"[1e400,-1e999999,1e-999999]",
    "nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "objects nested 20,000 deep": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "nested and never closed": b"[" * 100_000,
    "nested 500 deep": b"[" * 500 + b"]" * 500,
    "nested 1,000 deep, which some parsers bear": b"[" * 1000 + b"]" * 1000,
    "nothing": b"",
    "spaces": b"   ",
    "not UTF-8": b'{"a":"\xff\xfe\x80"}',
    "a zero byte": b'{"a":1}\x00',
    "only zero bytes": b"\x00" * 1000,
    "a byte order mark": b'\xef\xbb\xbf{"a":1}',
    "half a surrogate": rb'{"event_id":"\ud800"}',
    "half a surrogate in bytes": b'{"a":"\xed\xa0\x80"}',
    "a raw line break in a text": b'{"a":"x\ny"}',
    "two documents": b'{"a":1}\n{"a":2}',
    "a comma too many": b"[1,2,]",
    "single quotes": b"{'a':1}",
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
    "a picture": b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40,
    "exactly the largest": b'"' + b"x" * (PAYLOAD_BYTES_MAX - 2) + b'"',
}


def events(stage: CloudStage) -> list[tuple[bytes, bytes]]:
    """(`data` or `data_base64`, its raw value) of every event, in order of arrival."""
    bodies = (request.body for request in list(stage.cloud.requests))
    found = [EVENT.fullmatch(line) for body in bodies for line in body.splitlines()]
    return [(match[1], match[2]) for match in found if match]


def assert_same_bytes(sent: Sequence[bytes], arrived: Sequence[tuple[bytes, bytes]], names: Sequence[str]) -> None:
    assert len(arrived) == len(sent)
    figures.count(payloads=len(sent))
    for payload, (kind, raw), name in zip(sent, arrived, names, strict=True):
        if kind == b"data":
            assert raw == payload.replace(b"\n", b" ").replace(b"\r", b" "), name
            assert_is_json(raw)
        else:
            assert base64.b64decode(json.loads(raw), validate=True) == payload, name


def assert_is_json(raw: bytes) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(raw, parse_int=str, parse_float=str, parse_constant=refuse)


def test_hostile_payloads_arrive_byte_for_byte_and_in_order(tmp_path: Path, mosquitto: Mosquitto) -> None:
    bounds = {"intake.max_payload_bytes": PAYLOAD_BYTES_MAX}
    with on_stage(tmp_path, mosquitto, upload={"format": "ndjson"}, settings=bounds) as stage:
        pid = stage.bridge.pid
        hostile = JSON | ANYTHING
        stage.publish(hostile.values())
        stage.publish_ids(["the-last"])
        wait_until(lambda: "the-last" in stage.cloud.stored, what="all delivered")
        assert_same_bytes(list(hostile.values()), events(stage)[:-1], list(hostile))
        assert [kind for kind, _ in events(stage)[: len(JSON)]] == [b"data"] * len(JSON)
        assert stage.bridge.pid == pid
        assert stage.messages["stored"] == len(hostile) + 1
        stage.stop()
        assert stage.select("SELECT COUNT(*) FROM edge_loss") == [(0,)]


def test_one_byte_too_many_is_refused_counted_and_written_in_the_ledger(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """And far too many bytes, which are skipped while they come, as well."""
    with on_stage(tmp_path, mosquitto, settings={"intake.max_payload_bytes": PAYLOAD_BYTES_MAX}) as stage:
        stage.publish_ids(["before"])
        stage.publish(b"x" * size for size in (PAYLOAD_BYTES_MAX + 1, 4_000_000))
        stage.publish_ids(["after"])
        stage.wait_delivered()
        wait_until(lambda: stage.messages["refused"] == 2, what="counted")
        assert stage.cloud.arrivals == ["before", "after"]
        assert len(stage.log("too large")) >= 1
        stage.stop()
        ledger = stage.select("SELECT reason, messages, topic, detail FROM edge_loss ORDER BY loss_id")
        assert [(reason, messages, topic) for reason, messages, topic, _ in ledger] == [("too_large", 1, TOPIC)] * 2
        assert ledger[0][3] == f"{PAYLOAD_BYTES_MAX + 1} bytes"


def test_topics_are_told_as_they_are(tmp_path: Path, mosquitto: Mosquitto) -> None:
    names = [
        'edge/predictions/"},{"id":"x"',
        "edge/predictions/\\u0000\\",
        "edge/predictions/例 🦀",
        "edge/predictions//",
    ]
    with on_stage(tmp_path, mosquitto) as stage:
        for number, name in enumerate(names):
            stage.publish([b'{"event_id":"%d"}' % number], topic=name)
        wait_until(lambda: stage.cloud.unique == len(names), what="all delivered")
        assert [json.loads(data)["subject"] for data in stage.cloud.bodies.values()] == names


def test_random_payloads_arrive_byte_for_byte(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """A few thousand from a seed: random bytes, and the fixed ones with bytes flipped, cut out and doubled."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    models = [model for model in (JSON | ANYTHING).values() if len(model) < 20_000]
    sent = [mutated(chance, chance.choice(models)) for _ in range(2000)]
    with on_stage(tmp_path, mosquitto, upload={"format": "ndjson"}, settings={"intake.id_fields": []}) as stage:
        stage.publish(sent)
        wait_until(lambda: stage.messages["delivered"] == len(sent), 30, f"all delivered, seed {seed}")
        assert_same_bytes(sent, events(stage), [f"seed {seed}, number {number}" for number in range(len(sent))])


def mutated(chance: random.Random, model: bytes) -> bytes:
    piece = bytearray(model)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(piece) + 1)
        match chance.randrange(4):
            case 0:
                piece[at:at] = chance.randbytes(chance.randrange(4))
            case 1:
                del piece[at : at + chance.randrange(4)]
            case 2:
                piece[at:at] = piece[: chance.randrange(40)]
            case _:
                piece[at:at] = chance.choice(
                    [b"\n", b"\r\n", b'"', b"{", b"]", b",", b"NaN", b"1e999", b"\\u", b"\x00"]
                )
    return bytes(piece)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_generated_json_keeps_its_meaning_and_generated_bytes_their_value(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with on_stage(tmp_path, mosquitto, upload={"format": "ndjson"}, settings={"intake.id_fields": []}) as stage:

        @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], database=None)
        @given(values=st.lists(JSON_VALUES, min_size=1, max_size=20), blobs=st.lists(st.binary(), max_size=20))
        def exchange(values: list[Any], blobs: list[bytes]) -> None:
            sent = [json.dumps(value).encode() for value in values] + blobs
            before = len(events(stage))
            stage.publish(sent)
            wait_until(lambda: len(events(stage)) == before + len(sent), what="delivered")
            arrived = events(stage)[before:]
            assert_same_bytes(sent, arrived, [repr(payload) for payload in sent])

        exchange()
