"""The three formats and the three compressions through the real bridge: what is on the wire, byte for byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from bridge import __version__
from tests.harness import wait_until
from tests.harness.cloud import Request
from tests.harness.cloud_stage import TOPIC, CloudStage, payload, shared_stage
from tests.harness.mosquitto import Mosquitto
from tests.harness.receiver import ReceiverProcess

PAYLOADS = [b'{"score": 0.10000000000000000555, "n": 1}', b"[1,\n 2]", b'"text"', b"\xff\x00 no JSON"]
AS_JSON = [PAYLOADS[0], b"[1,  2]", PAYLOADS[2], b'{"data_base64":"/wAgbm8gSlNPTg=="}']
TYPES = {
    "cloudevents": "application/cloudevents-batch+json",
    "json": "application/json",
    "ndjson": "application/x-ndjson",
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudStage]:
    """One bridge for all: everything under [upload] changes at a SIGHUP."""
    with shared_stage(tmp_path_factory.mktemp("formats"), {"linger_ms": 100}) as stage:
        yield stage


def post(stage: CloudStage, *payloads: bytes) -> Request:
    """Publish, and return the one request that carried all of it."""
    before, delivered = len(stage.cloud.requests), stage.messages["delivered"]
    stage.publish(payloads)
    wait_until(lambda: stage.messages["delivered"] == delivered + len(payloads), what="delivered")
    (request,) = stage.cloud.requests[before:]
    return request


@pytest.mark.parametrize("body_format", TYPES)
def test_a_body_is_what_its_content_type_says(stage: CloudStage, body_format: str) -> None:
    stage.reconfigure(format=body_format, compression="gzip")
    request = post(stage, *PAYLOADS)
    assert request.headers["content-type"] == TYPES[body_format]
    assert "content-encoding" not in request.headers, "small bodies go uncompressed"
    match body_format:
        case "json":
            assert request.raw == b"[%b]" % b",".join(AS_JSON)
        case "ndjson":
            assert request.raw.endswith(b"}\n")
            check_events(request.raw.splitlines())
        case _:
            check_events([json.dumps(event).encode() for event in json.loads(request.raw)])
            assert all(b'"data":%b}' % raw in request.raw for raw in AS_JSON[:3]), "not a byte of the data changed"


def check_events(lines: list[bytes]) -> None:
    """Hold each against CloudEvents 1.0, and its data against what was published."""
    events = [json.loads(line) for line in lines]
    assert len({event["id"] for event in events}) == len(PAYLOADS)
    for event, published in zip(events[:3], PAYLOADS, strict=False):
        assert event["data"] == json.loads(published)
        assert event["datacontenttype"] == "application/json"
    assert events[3]["data_base64"] == "/wAgbm8gSlNPTg=="
    for event in events:
        assert event["specversion"] == "1.0"
        assert (event["source"], event["subject"], event["type"]) == ("edge/stage", TOPIC, "edge.prediction.v1")
        assert event["time"].endswith("Z")


@pytest.mark.parametrize("body_format", TYPES)
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_large_body_is_compressed_as_it_says(stage: CloudStage, body_format: str, compression: str) -> None:
    stage.reconfigure(format=body_format, compression=compression)
    payloads = [b'{"n":%d,"filler":"%b"}' % (number, b"x" * 100) for number in range(50)]
    request = post(stage, *payloads)
    encoding = request.headers.get("content-encoding", "none")
    assert encoding == compression
    plain = unpacked(request.raw, encoding)
    assert all(one in plain for one in payloads)
    assert (len(request.raw) < len(plain) / 5) == (compression != "none")
    assert request.headers["content-type"] == TYPES[body_format]


def unpacked(raw: bytes, encoding: str) -> bytes:
    match encoding:
        case "gzip":
            return gzip.decompress(raw)
        case "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        case _:
            return raw


def test_every_request_has_the_headers_of_the_contract(stage: CloudStage) -> None:
    stage.reconfigure(format="cloudevents", token="a-token", headers={"X-Site": "hall 4"})
    request = post(stage, b"{}")
    assert request.method == "POST"
    assert request.headers["authorization"] == "Bearer a-token"
    assert request.headers["user-agent"] == f"edge-bridge/{__version__}"
    assert request.headers["x-site"] == "hall 4"
    key = request.key or ""
    assert key[0] == key[-1] == '"'
    assert key[1:-1].isalnum()


def test_each_format_is_understood_by_the_bundled_receiver(
    tmp_path: Path, mosquitto: Mosquitto, stage: CloudStage
) -> None:
    """Not by our scripted cloud alone: both ends of the contract, compressed and not."""
    with ReceiverProcess(tmp_path / "receiver") as receiver:
        for number, (body_format, compression) in enumerate(
            [("cloudevents", "zstd"), ("json", "gzip"), ("ndjson", "none")], start=1
        ):
            stage.reconfigure(url=receiver.url + "/", format=body_format, compression=compression, token=None)
            stage.publish(payload(f"{body_format}-{n}", "x" * 50) for n in range(50))
            wait_until(lambda number=number: receiver.stats()["unique"] == 50 * number, what=body_format)  # type: ignore[misc]
        names = [event.get("event_id") or event["id"] for event in receiver.events()]  # bare payloads are kept bare
        assert names == [f"{body_format}-{n}" for body_format in TYPES for n in range(50)]
