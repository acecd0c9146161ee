"""Failing on purpose, so that a sender can be watched while its cloud misbehaves (`PUT /faults`).

Faults strike POSTs only, decided by a seeded generator: the same seed strikes the same requests again.

No I/O: the caller waits, cuts and answers as a struck request's `Faults` say.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Cut(StrEnum):
    """When the connection is cut instead of answering."""

    BEFORE = "before"  # nothing was stored
    AFTER = "after"  # all was stored, and the sender can not know


class Faults(BaseModel):
    """What to do wrong, and to how many of the requests. `Faults()` does nothing wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    status: Annotated[int, Field(ge=200, le=599, description="answer with this instead of storing")] | None = None
    retry_after: Annotated[
        Annotated[float, Field(ge=0)] | str | None, Field(description="beside `status`: seconds or an HTTP date")
    ] = None
    cut: Cut | None = None
    delay_seconds: Annotated[float, Field(ge=0, le=3600)] = 0
    reject_ids: frozenset[str] = frozenset()
    reject_status: Annotated[int, Field(ge=400, le=599)] = 422
    share: Annotated[float, Field(ge=0, le=1, description="of the requests that are struck")] = 1
    count: Annotated[int, Field(ge=0, description="requests that are struck, then no more")] | None = None
    seed: int = 0


def parse(document: bytes) -> Faults | str:
    """Read a JSON object of faults; a string says everything that is wrong with it."""
    try:
        return Faults.model_validate_json(document)
    except ValidationError as error:
        return "; ".join(_problem(tuple(map(str, found["loc"])), found["msg"]) for found in error.errors())


def _problem(path: tuple[str, ...], what: str) -> str:
    return f"{path[0]}: {what}" if path else what


class FaultInjector:
    """Decides for each request in turn whether it is struck."""

    def __init__(self) -> None:
        self.replace(Faults())

    def replace(self, faults: Faults) -> None:
        """Do these wrong from now on, and forget the ones before."""
        self._faults = faults
        self._left = faults.count
        self._random = random.Random(faults.seed)  # noqa: S311 - to be repeated, not to be secret

    def draw(self) -> Faults | None:
        """Return the faults that strike this request, or None if it is spared."""
        if self._left == 0 or self._random.random() >= self._faults.share:
            return None
        if self._left is not None:
            self._left -= 1
        return self._faults

    def to_json(self) -> str:
        """Return the faults in force; `count` tells the strikes that are left."""
        return self._faults.model_copy(update={"count": self._left}).model_dump_json()
