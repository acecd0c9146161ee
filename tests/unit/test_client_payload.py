"""What a producer may hand over, and which id the message gets."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from bridge.client import Prediction
from bridge.client.payload import ID_FIELDS, encode, own_id, trace_context
from bridge.config import IntakeSettings

KNOWN = uuid.UUID("0198c0de-0000-7000-8000-000000000001")


@dataclass(frozen=True)
class Verdict:
    event_id: str | None
    label: str


class Tensor:
    """An array of a library that orjson does not know."""

    def tolist(self) -> list[float]:
        return [0.25, 0.75]


def test_objects_become_json_as_orjson_takes_them() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    encoded = encode({"at": at, "id": KNOWN, "verdict": Verdict(None, "crack"), "scores": Tensor()})
    assert orjson.loads(encoded) == {
        "at": "2026-01-02T03:04:05+00:00",
        "id": str(KNOWN),
        "verdict": {"event_id": None, "label": "crack"},
        "scores": [0.25, 0.75],
    }


def test_bytes_are_json_that_is_already_written() -> None:
    assert encode(b'{"score": 0.9700}') == b'{"score": 0.9700}'
    assert encode(bytearray(b"[1]")) == b"[1]"


@pytest.mark.parametrize("payload", [object(), b"{", {1, 2}, {"a": b"raw"}, 1 << 70])
def test_what_is_not_json_is_an_error(payload: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode(payload)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"prediction_id": "p-1", "event_id": "e-1"}, "p-1"),
        ({"message_id": 7}, "7"),
        ({"prediction_id": KNOWN}, str(KNOWN)),
        ({"id": KNOWN}, str(KNOWN)),
        ({"id": "camera-3"}, None),  # a camera's, not the message's
        ({"label": "crack"}, None),
        ([1, 2], None),
        (b'{"event_id":"e-2"}', "e-2"),
        (Verdict("e-3", "crack"), "e-3"),
        (Verdict(None, "crack"), None),
    ],
)
def test_the_id_is_the_one_that_the_bridge_would_find(payload: Any, expected: str | None) -> None:
    assert own_id(payload) == expected


def test_the_id_fields_are_those_of_the_bridge_as_shipped() -> None:
    assert IntakeSettings().id_fields == ID_FIELDS


def test_a_prediction_carries_an_id_of_its_own() -> None:
    prediction = Prediction(label="crack", scores={"crack": 0.97}, model="weld", version="3", latency_ms=4.5, frame=12)
    assert own_id(prediction) == prediction.prediction_id
    assert orjson.loads(encode(prediction))["scores"] == {"crack": 0.97}
    assert Prediction(label="crack").prediction_id != Prediction(label="crack").prediction_id


@pytest.fixture
def span(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let OpenTelemetry's API be loaded, with this current span."""

    def current(**context: Any) -> None:
        span = SimpleNamespace(get_span_context=lambda: SimpleNamespace(**context))
        monkeypatch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace(get_current_span=lambda: span))

    return current


def test_the_current_span_goes_along_as_traceparent(span: Callable[..., None]) -> None:
    span(is_valid=True, trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736, span_id=0x00F067AA0BA902B7, trace_flags=1)
    assert trace_context() == {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


def test_without_a_span_or_without_opentelemetry_there_is_none(span: Callable[..., None]) -> None:
    assert trace_context() == {}
    span(is_valid=False)
    assert trace_context() == {}
