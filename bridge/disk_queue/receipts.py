"""Receipts that are owed: who wants to hear how a message ended, and what there is to tell once this is committed.

Beside a row, from the transaction that stores it to the one that settles it, so that a receipt that was asked for
survives a restart. What is told is handed over after the commit (`recent`); a crash in between loses the receipt and
never the message: who asks again, under the same id, is answered again. Who never asks costs nothing.

Bounded (I5): a few requests a row, no long correlation data (intake refuses those).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from bridge.disk_queue.rows import runs
from bridge.message import Request

_REQUESTS_MAX = 8  # for one row; whoever asks more often than that is not answered


class ReceiptState(StrEnum):
    """What a receipt says of its message."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    DELIVERED = "delivered"
    DEAD = "dead"
    DROPPED = "dropped"


class Receipt(NamedTuple):
    """One answer: where to, and what."""

    request: Request
    event_id: str | None
    state: ReceiptState
    reason: str | None = None


class Receipts:
    """The table `edge_receipt`, and what the present transaction gives. Call its verbs inside `transaction()`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._may_owe = bool(connection.execute("SELECT EXISTS (SELECT 1 FROM edge_receipt)").fetchone()[0])
        self.recent: list[Receipt] = []

    def give(self, request: Request, event_id: str | None, state: ReceiptState, reason: str | None = None) -> None:
        """Tell this once the transaction is committed."""
        self.recent.append(Receipt(request, event_id, state, reason))

    def owe(self, row_id: int, request: Request, event_id: str) -> None:
        """Remember to tell how this row ends."""
        self._may_owe = True
        self._connection.execute(
            "INSERT OR IGNORE INTO edge_receipt SELECT ?1, ?2, ?3, ?4"
            " WHERE (SELECT COUNT(*) FROM edge_receipt WHERE row_id = ?1) < ?5",
            (row_id, request.response_topic, request.correlation, event_id, _REQUESTS_MAX),
        )

    def settle(self, row_ids: Sequence[int], state: ReceiptState, reason: str | None = None) -> None:
        """Tell those who asked that these rows have ended."""
        if not self._may_owe:
            return
        for span in runs(row_ids):
            owed = self._connection.execute(
                "DELETE FROM edge_receipt WHERE row_id BETWEEN ? AND ?"
                " RETURNING response_topic, CAST(correlation AS BLOB), CAST(event_id AS TEXT)",
                span,
            ).fetchall()
            for response_topic, correlation, event_id in owed:
                self.give(Request(response_topic, correlation), event_id, state, reason)
