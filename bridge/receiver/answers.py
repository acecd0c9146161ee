"""What the receiver says about the entries of one request.

All good: `{"stored":n,"duplicates":n}` with 200. Some bad: 207 and one result an entry, in order, so that a sender
knows what became of each. If not a single result could carry a name, results would tell a sender nothing: then the
whole body is refused with 400, so that it halves until the bad event stands alone.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bridge.receiver.body import Refusal
from bridge.receiver.entries import BadEvent, Entry

STORED, STORED_BEFORE = 201, 200


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON body of a response."""

    status_code: int
    body: bytes


def refuse(refusal: Refusal) -> Answer:
    """Say why nothing was taken."""
    return Answer(refusal.status_code, orjson.dumps({"error": refusal.error}))


def unnamed(entries: Sequence[Entry]) -> Refusal | None:
    """Return a refusal if no entry is good and none has a name that a result could carry."""
    errors = [entry.error for entry in entries if isinstance(entry, BadEvent) and entry.id is None]
    return Refusal(400, f"no event can be taken: {errors[0]}") if errors and len(errors) == len(entries) else None


def compose(entries: Sequence[Entry], fresh: Sequence[bool]) -> Answer:
    """Answer for entries of which the good ones were handled; `fresh` tells for each good one if it is new."""
    if len(fresh) == len(entries):
        stored = sum(fresh)
        return Answer(200, orjson.dumps({"stored": stored, "duplicates": len(fresh) - stored}))
    news = iter(fresh)
    results = [
        _bad(entry) if isinstance(entry, BadEvent) else {"id": entry.id, "status": _status(is_new=next(news))}
        for entry in entries
    ]
    return Answer(207, orjson.dumps({"results": results}))


def _bad(entry: BadEvent) -> dict[str, Any]:
    return {"id": entry.id, "status": entry.status_code, "error": entry.error}


def _status(*, is_new: bool) -> int:
    return STORED if is_new else STORED_BEFORE
