"""What a producer hands over, as JSON; its id; and the trace it belongs to.

The first step of a message. Objects are taken as orjson takes them (numpy, dataclasses, datetimes, UUIDs), bytes and
bytearrays as JSON that is already written. Pure but for the current span of OpenTelemetry, which is only looked for
if the program has loaded it.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from bridge.message import parse_json, producer_id

ID_FIELDS = ("prediction_id", "event_id", "message_id")  # the bridge's default of intake.id_fields
_ID_MEMBERS = (*ID_FIELDS, "id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer of a model, with what the cloud will want to know about it later.

    `scores`: class → probability. `latency_ms`: of the inference. It carries its own id, so that publishing the same
    object twice stores it once.
    """

    label: str
    scores: Mapping[str, float] | None = None
    model: str | None = None
    version: str | None = None
    latency_ms: float | None = None
    device: str | None = None
    frame: int | str | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    prediction_id: str = field(default_factory=lambda: str(uuid.uuid4()))


def encode(value: Any) -> bytes:
    """Return the JSON of a payload. Raises TypeError or ValueError saying why there is none."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        payload = bytes(value)
        if not parse_json(payload)[0]:
            raise ValueError("these bytes are not JSON")
        return payload
    return orjson.dumps(value, _plain, orjson.OPT_SERIALIZE_NUMPY)


def own_id(value: Any) -> str | None:
    """Return the id that a payload brings, found as the bridge finds it."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = parse_json(bytes(value))[1]
    elif hasattr(value, "__dataclass_fields__"):
        value = {name: found for name in _ID_MEMBERS if (found := getattr(value, name, None)) is not None}
    if not isinstance(value, dict):
        return None
    found = producer_id(value, ID_FIELDS)
    if found is None:
        made = {name: str(value[name]) for name in _ID_MEMBERS if isinstance(value.get(name), uuid.UUID)}
        found = producer_id(made, ID_FIELDS) if made else None
    return found


def trace_context() -> dict[str, str]:
    """Return the W3C `traceparent` of the current span, if the program uses OpenTelemetry and there is one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"}


def _plain(value: Any) -> Any:
    """Help orjson with arrays that it does not take as they lie in memory, or of other libraries."""
    if callable(as_list := getattr(value, "tolist", None)):
        return as_list()
    raise TypeError
