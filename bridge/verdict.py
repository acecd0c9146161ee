"""The verdict: what an answer of the cloud means for the rows that were posted. All of retryability is here.

`STATUS_CODES` and `RANGES` are the table of docs/UPLOAD.md; `judge` is total: every reply, also a missing, broken or
malicious one, has exactly one verdict, and only `Delivered` and `Partly.delivered` ever let a row be acked.

Two thoughts decide the doubtful cases. A row is acked only when an answer covers it (I2): silence about a row, an HTML
page or half a body cover nothing. And a row dies only when an answer blames what is *in* the body; an answer that
blames address, credentials, headers or format is about our configuration, so it pauses uploading and kills nothing.

Pure: no clock (the caller brings `now`), no network, no state. Does not wait, split or count: the agenda does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, assert_never

import orjson

from bridge.batch import Batch
from bridge.message import CLOCK_SET_SINCE, DeadRow

ANSWER_BYTES_MAX = 64 * 1024  # what is read of an answer, at most
RETRY_AFTER_SECONDS_MAX = 3600.0
EXCERPT_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one POST, as the uploader saw it. `status_code` None: no answer at all, `error` says why.

    `error` with a status code: the answer broke off in its body. `sent`: the request may have reached the cloud.
    `date` is the header of that name: what time it is over there. `location`: where a redirect leads to, the server
    alone, for the rest may hold a secret.
    """

    status_code: int | None
    content_type: str | None = None
    retry_after: str | None = None
    echoed_key: str | None = None
    body: bytes = b""
    truncated: bool = False
    error: str | None = None
    sent: bool = True
    elapsed_seconds: float = 0.0
    date: str | None = None
    location: str | None = None


class Meaning(Enum):
    """What a status code says about a whole batch."""

    TAKEN = auto()  # the body decides which rows
    AGAIN = auto()  # not now
    THROTTLED = auto()  # not so fast
    SERVER_FAILED = auto()  # the fault is the server's, or that of a row which it cannot digest
    IN_PROGRESS = auto()  # the first POST under this key is still being worked on
    BLAMED = auto()  # something in the body is wrong
    TOO_LARGE = auto()
    REFUSED = auto()  # we are refused, whatever we send
    BROKEN = auto()  # not a final answer of HTTP


STATUS_CODES = {
    401: Meaning.REFUSED,
    402: Meaning.REFUSED,  # the account
    403: Meaning.REFUSED,
    404: Meaning.REFUSED,
    405: Meaning.REFUSED,
    406: Meaning.REFUSED,  # what we accept as an answer
    407: Meaning.REFUSED,
    408: Meaning.AGAIN,
    409: Meaning.IN_PROGRESS,
    410: Meaning.REFUSED,
    411: Meaning.REFUSED,  # the head of the request, as are 414, 417, 421, 426, 428 and 431
    413: Meaning.TOO_LARGE,
    414: Meaning.REFUSED,
    415: Meaning.REFUSED,  # upload.format; a refused compression was tried again without before it gets here
    417: Meaning.REFUSED,
    421: Meaning.REFUSED,
    425: Meaning.AGAIN,
    426: Meaning.REFUSED,
    428: Meaning.REFUSED,
    429: Meaning.THROTTLED,
    431: Meaning.REFUSED,
}
RANGES = (
    (range(200, 300), Meaning.TAKEN),
    (range(300, 400), Meaning.REFUSED),  # never followed: body and token would go to an address nobody configured
    (range(400, 500), Meaning.BLAMED),
    (range(500, 600), Meaning.SERVER_FAILED),
)
_WHAT_TO_DO = {
    401: "check upload.token",
    403: "check upload.token and what it may do",
    404: "check upload.url",
    405: "check upload.url",
    407: "check the credentials in upload.proxy",
    410: "check upload.url",
    415: "check upload.format",
}


class Cause(Enum):
    """Why it is to be tried again later: decides whether the same rows may be posted in other company."""

    UNREACHABLE = auto()  # nothing was sent
    UNANSWERED = auto()  # sent, and perhaps stored: the same rows again under the same key
    IN_PROGRESS = auto()  # being stored right now: unchanged
    THROTTLED = auto()
    UNCOVERED = auto()  # a 2xx that covers no row
    SERVER_FAILED = auto()  # it could not digest the batch: if others pass, a row is suspected


@dataclass(frozen=True, slots=True)
class Delivered:
    """Every row of the batch is delivered."""


@dataclass(frozen=True, slots=True)
class Partly:
    """Row by row. `later`: told to come again, each as it is recorded if that was its last attempt."""

    delivered: tuple[int, ...]
    later: tuple[DeadRow, ...]
    unnamed: tuple[int, ...]
    dead: tuple[DeadRow, ...]
    floor_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """All again later, not sooner than `floor_seconds` where the destination said so."""

    reason: str
    cause: Cause
    floor_seconds: float | None = None
    status_code: int | None = None


@dataclass(frozen=True, slots=True)
class Halve:
    """Something in the batch is refused, and it has more than one row. `remember_size`: build no such body again."""

    reason: str
    remember_size: bool


@dataclass(frozen=True, slots=True)
class Dead:
    """The batch is one row, and it is refused for good."""

    row: DeadRow


@dataclass(frozen=True, slots=True)
class Pause:
    """The destination refuses us, not the rows."""

    reason: str


Verdict = Delivered | Partly | Later | Halve | Dead | Pause


class _UnreadableError(Exception):
    """The body says JSON and is none, or is too long to be understood; `too_long` tells which."""

    def __init__(self, *, too_long: bool = False) -> None:
        super().__init__()
        self.too_long = too_long


def meaning(status_code: int) -> Meaning:
    """Look a status code up; total."""
    by_range = (found for codes, found in RANGES if status_code in codes)
    return STATUS_CODES.get(status_code) or next(by_range, Meaning.BROKEN)


def judge(reply: Reply, batch: Batch, *, require_receipt: bool, now: float) -> Verdict:  # noqa: PLR0911 - a table
    """Judge the reply to a POST of this batch; `now` is wall time, for dates in Retry-After."""
    if reply.status_code is None:
        return Later(reply.error or "no answer", Cause.UNANSWERED if reply.sent else Cause.UNREACHABLE)
    reason = _reason(reply.status_code)
    floor_seconds = retry_after_seconds(reply.retry_after, now)
    match meaning(reply.status_code):
        case Meaning.TAKEN:
            return _judge_taken(reply, batch, require_receipt=require_receipt, floor_seconds=floor_seconds)
        case Meaning.AGAIN | Meaning.THROTTLED:
            return Later(reason, Cause.THROTTLED, floor_seconds, reply.status_code)
        case Meaning.SERVER_FAILED:
            # A server that says when to come back is overloaded or in maintenance: that is no row's fault.
            cause = Cause.SERVER_FAILED if floor_seconds is None else Cause.THROTTLED
            return Later(reason, cause, floor_seconds, reply.status_code)
        case Meaning.IN_PROGRESS:
            return Later(f"{reason}: a POST with this Idempotency-Key is in progress", Cause.IN_PROGRESS, floor_seconds)
        case Meaning.BLAMED:
            return _blame(reply, batch, "refused", remember_size=False)
        case Meaning.TOO_LARGE:
            return _blame(reply, batch, "too_large", remember_size=True)
        case Meaning.REFUSED:
            return Pause(reason)
        case Meaning.BROKEN:
            return Later(f"{reason} is no final answer", Cause.UNANSWERED)
        case never:
            assert_never(never)


def _blame(reply: Reply, batch: Batch, word: str, *, remember_size: bool) -> Halve | Dead:
    if len(batch.rows) > 1:
        return Halve(_reason(reply.status_code or 0), remember_size)
    return Dead(DeadRow(batch.rows[0].row_id, word, reply.status_code, batch.attempts + 1, excerpt(_text(reply.body))))


def _judge_taken(reply: Reply, batch: Batch, *, require_receipt: bool, floor_seconds: float | None) -> Verdict:
    if reply.error is not None:
        return Later(f"the answer broke off: {reply.error}", Cause.UNANSWERED)
    if _is_page(reply):
        return Later("answered by an HTML page, not by the cloud (captive portal?)", Cause.UNCOVERED, floor_seconds)
    try:
        document = _members(reply)
        if "results" in document:
            return _judge_results(_results(document["results"]), batch, reply.status_code or 0, floor_seconds)
    except _UnreadableError as unreadable:
        if unreadable.too_long and len(batch.rows) > 1:
            return Halve(f"the answer is longer than {ANSWER_BYTES_MAX} bytes", remember_size=True)
        return Later("the answer cannot be understood", Cause.UNANSWERED, floor_seconds)
    missing = None
    if reply.status_code == HTTPStatus.MULTI_STATUS:
        missing = "207 without results covers no row"
    elif require_receipt and not _echoes(batch.key, reply.echoed_key, document.get("idempotency_key")):
        missing = "the answer is no receipt: it echoes no Idempotency-Key"
    return Later(missing, Cause.UNCOVERED, floor_seconds) if missing else Delivered()


class Fate(Enum):
    """What becomes of one row that the answer names; of two entries for one row the worse, that is the later, wins."""

    DELIVERED = 1
    LATER = 2
    DEAD = 3


def fate(status_code: int) -> Fate:
    """Judge the status of a single row; total."""
    match meaning(status_code):
        case Meaning.TAKEN | Meaning.IN_PROGRESS:  # 409 for a row: it is there already
            return Fate.DELIVERED
        case Meaning.AGAIN | Meaning.THROTTLED | Meaning.SERVER_FAILED | Meaning.BROKEN:
            return Fate.LATER
        case Meaning.BLAMED | Meaning.TOO_LARGE:
            return Fate.DEAD
        case Meaning.REFUSED:
            return Fate.DEAD if status_code in range(400, 500) else Fate.LATER
        case never:
            assert_never(never)


@dataclass(frozen=True, slots=True)
class _Result:
    status_code: int
    error: str

    @property
    def fate(self) -> Fate:
        return fate(self.status_code)


def _judge_results(results: dict[str, _Result], batch: Batch, status_code: int, floor_seconds: float | None) -> Verdict:
    fates: dict[Fate, list[DeadRow]] = {one: [] for one in Fate}
    unnamed = []
    for row, event_id in zip(batch.rows, batch.event_ids, strict=True):
        if result := results.get(event_id):
            record = DeadRow(row.row_id, "refused", result.status_code, batch.attempts + 1, excerpt(result.error))
            fates[result.fate].append(record)
        else:
            unnamed.append(row.row_id)
    if len(fates[Fate.DELIVERED]) == len(batch.rows):
        return Delivered()
    if len(unnamed) == len(batch.rows):
        return Later("the answer names none of the rows", Cause.SERVER_FAILED, floor_seconds, status_code)
    delivered = tuple(row.row_id for row in fates[Fate.DELIVERED])
    return Partly(delivered, tuple(fates[Fate.LATER]), tuple(unnamed), tuple(fates[Fate.DEAD]), floor_seconds)


def _results(entries: Any) -> dict[str, _Result]:
    """Read `[{"id":…,"status":…,"error":…},…]`; entries without an id name nothing."""
    if not isinstance(entries, list):
        raise _UnreadableError
    results: dict[str, _Result] = {}
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("status")) is not int:
            raise _UnreadableError
        event_id, error = entry.get("id"), entry.get("error")
        if event_id is None:
            continue
        if not isinstance(event_id, str):
            raise _UnreadableError
        result = _Result(entry["status"], error if isinstance(error, str) else "")
        if event_id not in results or results[event_id].fate.value < result.fate.value:
            results[event_id] = result
    return results


def _is_page(reply: Reply) -> bool:
    """Tell whether this is a page for people. An empty body is none, whatever its type: frameworks default to HTML."""
    media_type, start = _media_type(reply), _stripped(reply.body)[:16].lower()
    if media_type in {"text/html", "application/xhtml+xml"}:
        return bool(start)
    typeless = media_type in {"", "text/plain", "application/octet-stream"}
    return start.startswith((b"<!doctype html", b"<html")) or (typeless and start.startswith(b"<"))


def _members(reply: Reply) -> dict[str, Any]:
    """Return the members of the JSON object that the body is; none if it is something else or empty."""
    text = _stripped(reply.body)
    is_object = text.startswith(b"{")
    if reply.truncated and not text:
        raise _UnreadableError  # white space up to the bound: nobody knows what would have come behind it
    if not text or not (is_object or _media_type(reply).endswith(("/json", "+json"))):
        return {}
    if reply.truncated and not is_object:
        return {}  # an array or a string has no member `results`, however long it is
    try:
        document = orjson.loads(_readable_part(text) if reply.truncated else text)
    except orjson.JSONDecodeError:
        raise _UnreadableError(too_long=reply.truncated) from None
    if reply.truncated and "results" not in document:
        raise _UnreadableError(too_long=True)
    return document if isinstance(document, dict) else {}


_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{}"]', re.DOTALL)
_ENTRY_DEPTH = 2  # inside the object, inside the array of results


def _readable_part(text: bytes) -> bytes:
    """Close a cut `{…[{…},{…},…` after its last whole entry: what the answer says of these rows stands."""
    depth = end = 0
    for token in _TOKENS.finditer(text):
        match token[0]:
            case b'"':  # the string in which the answer was cut
                break
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]":
                depth -= 1
                end = token.end() if depth == _ENTRY_DEPTH else end
            case _:
                pass
    return text[:end] + b"]}"


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """Read Retry-After, seconds or a date, as seconds from `now` between 0 and an hour; None if it says nothing."""
    if header is None:
        return None
    text = header.strip()
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", text):
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
            seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        if now < CLOCK_SET_SINCE:
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def excerpt(text: str) -> str:
    """Shorten foreign text and escape what is not printable, so that it can be stored and shown."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:EXCERPT_CHARS_MAX].strip())
    return shown[:EXCERPT_CHARS_MAX]


def _reason(status_code: int) -> str:
    try:
        name = f"{status_code} {HTTPStatus(status_code).phrase}"
    except ValueError:
        name = str(status_code)
    if meaning(status_code) is not Meaning.REFUSED:
        return name
    if status_code in range(300, 400):
        return f"{name}: redirects are not followed, check upload.url"
    return f"{name}: {_WHAT_TO_DO.get(status_code, 'check the upload settings')}"


def _echoes(key: str, *echoes: Any) -> bool:
    return any(isinstance(echo, str) and echo.strip() in {key, f'"{key}"'} for echo in echoes)


def _media_type(reply: Reply) -> str:
    return (reply.content_type or "").partition(";")[0].strip().lower()


def _stripped(body: bytes) -> bytes:
    return body.removeprefix(b"\xef\xbb\xbf").strip()


def _text(body: bytes) -> str:
    return body[: 4 * EXCERPT_CHARS_MAX].decode("utf-8", "replace")
