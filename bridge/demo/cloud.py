"""The demo's eyes at the cloud: asks the receiver over HTTP, as anybody could. Blocking; call it in a thread."""

from __future__ import annotations

import http.client
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from bridge.errors import FaultError

HOST = "127.0.0.1"
_ANSWER_SECONDS = 10.0
_PAGE_EVENTS = 5000


class Stats(NamedTuple):
    """What the cloud counted: events sent to it, how many different ones, how many again."""

    received: int
    unique: int
    duplicates: int


class Cloud:
    """The receiver on one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    def stats(self) -> Stats | None:
        """Return the counts, or None while the cloud is away."""
        try:
            answer = self._ask("GET", "/stats")
        except FaultError:
            return None
        return Stats(answer["received"], answer["unique"], answer["duplicates"])

    def lose_an_answer(self) -> None:
        """Let the next request be stored, and its answer be lost on the way back."""
        self._ask("PUT", "/faults", {"cut": "after", "count": 1})

    def has_lost_it(self) -> bool:
        """Tell whether that has happened."""
        return bool(self._ask("GET", "/faults")["count"] == 0)

    def payloads(self) -> dict[str, bytes]:
        """Return every event there is, page by page: id → payload."""
        found: dict[str, bytes] = {}
        after = 0
        while True:
            page = self._ask("GET", f"/events?after={after}&limit={_PAGE_EVENTS}")
            if not page["events"]:
                return found
            found |= {event["id"]: orjson.dumps(event.get("data")) for event in page["events"]}
            after = page["next"]

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=_ANSWER_SECONDS)
        try:
            connection.request(method, path, None if content is None else orjson.dumps(content))
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise FaultError(f"the cloud does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status != HTTPStatus.OK:
            raise FaultError(f"the cloud answered {method} {path} with {answer.status}")
        return orjson.loads(body)
