"""`/dead`: the dead rows with their reasons, and `/dead/requeue`, the one thing on the page that changes something.

Reading needs nothing; requeuing needs `web.token` as a bearer token, which no other web page can send for its reader
(so no forged request works), and exactly the rows that the asker saw. Never shown: what a row holds, or what the
cloud said about it, which may repeat it (I8). One look at the disk queue at a time, of its newest rows only (I5).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import orjson
from aiohttp import web

from bridge.errors import BridgeError
from bridge.message import DeadRow

T = TypeVar("T")

ROW_ID_MAX = 2**63 - 1  # SQLite's
ROWS_MAX = 1000  # looked at, and requeued, in one go
BODY_BYTES_MAX = 32_768  # so many row ids of 20 digits
DISK_SECONDS = 5.0  # what a stalled disk gets
NOT_SET_UP = (
    "To requeue from this page, set web.token (better: web.token_file, a file that holds it; from the environment "
    "BRIDGE_WEB__TOKEN_FILE) and restart the bridge."
)
NOT_KNOWN = "That is not the token that the bridge has as web.token."


class DeadRows(NamedTuple):
    """What the page needs of the disk queue: the rows that died last, so many at most, and to make some ready again.

    `requeue` leaves alone what is not dead (any more) and returns how many rows became ready.
    """

    newest: Callable[[int], Awaitable[Sequence[DeadRow]]]
    requeue: Callable[[Sequence[int]], Awaitable[int]]


class DeadDesk:
    """Answers both addresses from one `DeadRows`; without a token it only shows."""

    def __init__(self, rows: DeadRows, token: str | None) -> None:
        self._rows = rows
        self._token = token
        self._one_at_a_time = asyncio.Lock()

    async def show(self, _: web.Request) -> web.Response:
        """Return the reasons, each with the ids of its rows, the most frequent first."""
        rows = await self._ask(partial(self._rows.newest, ROWS_MAX))
        return _json({"groups": _groups(rows), "refusal": None if self._token else NOT_SET_UP})

    async def requeue(self, request: web.Request) -> web.Response:
        """Requeue the rows `{"ids": [...]}`; how many of them were dead is in the answer."""
        if self._token is None:
            return _json({"error": NOT_SET_UP}, status_code=403)
        if not _is_authorized(request, self._token):
            return _json({"error": NOT_KNOWN}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
        if request.content_type != "application/json" or (row_ids := _row_ids(await request.read())) is None:
            return _json({"error": f'send JSON: {{"ids": [1, 2, …]}}, at most {ROWS_MAX}'}, status_code=400)
        return _json({"requeued": await self._ask(partial(self._rows.requeue, row_ids))})

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(DISK_SECONDS), self._one_at_a_time:
                return await ask()
        except TimeoutError:
            raise _unavailable(f"the disk gave no answer for {DISK_SECONDS:.0f} s") from None
        except BridgeError as error:
            raise _unavailable(error.message) from error


def _groups(rows: Iterable[DeadRow]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, int | None], list[DeadRow]] = {}
    for row in rows:
        groups.setdefault((row.reason, row.status_code), []).append(row)
    return [
        {
            "reason": reason,
            "status_code": status_code,
            "attempts": max(row.attempts for row in members),
            "ids": [row.row_id for row in members],
        }
        for (reason, status_code), members in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]


def _is_authorized(request: web.Request, token: str) -> bool:
    given = request.headers.get("Authorization", "")
    # bytes, because compare_digest takes only ASCII in strings
    return hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {token}".encode())


def _row_ids(body: bytes) -> list[int] | None:
    try:
        ids = orjson.loads(body)["ids"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    fits = isinstance(ids, list) and len(ids) <= ROWS_MAX
    return ids if fits and all(type(row_id) is int and 0 < row_id <= ROW_ID_MAX for row_id in ids) else None


def _unavailable(error: str) -> web.HTTPServiceUnavailable:
    return web.HTTPServiceUnavailable(text=orjson.dumps({"error": error}).decode(), content_type="application/json")


def _json(content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(content), status=status_code, headers=headers, content_type="application/json"
    )
