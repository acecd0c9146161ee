"""The uploader: one POST to the cloud, and whatever comes of it as a `Reply`.

The only place that knows aiohttp's client. A refusal, a time-out, a broken answer or a bad certificate are replies in
words that people understand; nothing that a network can do is raised from here. Redirects are not followed (body and
token would go where nobody configured them), no cookie is kept, no proxy is taken from the environment, an answer is
read up to 64 KiB and then cut off, and the token never stands in a reply (I8).

Bodies are joined and compressed in a thread of its own, so that the event loop never waits for it (I7); the same rows
give the same bytes at every retry. Never judges an answer (verdict) and never tries again (forwarder), but for one
case: a destination that does not take our compression (415) is asked once more without, and from then on.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import ssl
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
import zstandard
from aiohttp.payload import TOO_LARGE_BYTES_BODY
from multidict import CIMultiDict

from bridge.batch import Batch, Format, body, content_type
from bridge.config.settings import TlsSettings, UploadSettings
from bridge.errors import ConfigError
from bridge.verdict import ANSWER_BYTES_MAX, Reply

COMPRESS_BYTES_MIN = 1024  # a smaller body gains nothing, or grows
_GZIP_LEVEL = 1  # 1,000 predictions: level 1 takes 3 ms and level 6 takes 8.5 ms for 8 % less
_ZSTD_LEVEL = 1  # a fifth smaller than gzip in a third of the time; higher levels gain nothing on batches
_COMPRESSORS_MAX = 2  # threads
_SECRET_HEADER = re.compile("auth|cookie|key|pass|secret|sign|token", re.IGNORECASE)
_SECRET_CHARS_MIN = 6
_CLOCK_VERDICTS = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_ZLIB_OR_GZIP = zlib.MAX_WBITS + 32
FileMark = tuple[int, int, int]  # tells two states of a file apart
_NETWORK_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # ValueError: what cannot stand in a request


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch ready to be sent: its body, compressed or not, and the headers that describe it."""

    batch: Batch
    body: bytes
    headers: Mapping[str, str]

    @property
    def is_compressed(self) -> bool:
        """Whether the body is not sent as it is."""
        return "Content-Encoding" in self.headers


class Uploader:
    """POSTs batches to `upload.url`. An async context manager; `ConfigError` if its certificates cannot be used."""

    def __init__(self, settings: UploadSettings, version: str) -> None:
        self._settings = settings
        self._user_agent = f"edge-bridge/{version}"
        self._token = settings.token.get_secret_value() if settings.token else None
        self._token_file_seen: FileMark | None = None
        self._compresses = True
        self._threads = ThreadPoolExecutor(min(settings.concurrency, _COMPRESSORS_MAX), "compress")
        self._session: aiohttp.ClientSession | None = None
        self._posts: Counter[aiohttp.ClientSession] = Counter()

    async def __aenter__(self) -> Self:
        self._session = await self._open(self._settings)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in {*self._posts, *filter(None, [self._session])}:
            await session.close()
        self._session = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def reload(self, settings: UploadSettings) -> None:
        """Use other settings from the next post on; posts under way end as they began."""
        fresh, retired = await self._open(settings), self._session
        self._settings, self._session = settings, fresh
        self._token = settings.token.get_secret_value() if settings.token else None
        self._compresses = True
        if retired and not self._posts[retired]:
            await retired.close()

    async def _open(self, settings: UploadSettings) -> aiohttp.ClientSession:
        in_thread = asyncio.get_running_loop().run_in_executor
        context = await in_thread(self._threads, _tls_context, settings.tls)
        self._token_file_seen = await in_thread(self._threads, _file_mark, settings.token_file)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.concurrency, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_seconds, sock_connect=settings.timeout_seconds / 2),
            auto_decompress=False,
            trust_env=False,
        )

    async def token_changed(self) -> bool:
        """Look at `upload.token_file`; if it was written since the last look, use the token in it and say True."""
        path = self._settings.token_file
        if path is None:
            return False
        mark, token = await asyncio.get_running_loop().run_in_executor(self._threads, _read_token, path)
        if token is None or (mark == self._token_file_seen and token == self._token):
            return False
        self._token_file_seen, self._token = mark, token
        return True

    async def prepare(self, batch: Batch) -> Prepared:
        """Join and compress the body off the event loop."""
        compression = self._settings.compression if self._compresses else "none"
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, _prepare, batch, self._settings.format, compression
        )

    async def post(self, batch: Batch, prepared: Prepared | None = None) -> Reply:
        """POST the batch, from a body prepared earlier if there is one, and return what came of it."""
        reply = await self._send(prepared := prepared or await self.prepare(batch))
        if reply.status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE and prepared.is_compressed:
            self._compresses = False
            reply = await self._send(await self.prepare(batch))
        return reply

    async def _send(self, prepared: Prepared) -> Reply:
        session = self._session
        if session is None:
            raise RuntimeError("the uploader is not open")
        started_at = time.monotonic()
        self._posts[session] += 1
        try:
            async with session.post(
                self._settings.url,
                data=_as_aiohttp_likes(prepared.body),
                headers=self._headers(prepared),
                proxy=self._settings.proxy,
                allow_redirects=False,
            ) as response:
                return await self._read(response, started_at)
        except aiohttp.ClientHttpProxyError as error:
            # The proxy's own refusal, before anything was sent: only "give me credentials" is ours to mend.
            asks = error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
            return Reply(error.status if asks else None, error=f"the proxy answered {error.status}", sent=False)
        except _NETWORK_ERRORS as error:
            return Reply(
                None, error=self._explain(error), sent=not _is_unsent(error), elapsed_seconds=_since(started_at)
            )
        finally:
            await self._done(session)

    async def _done(self, session: aiohttp.ClientSession) -> None:
        self._posts[session] -= 1
        if not self._posts[session]:
            del self._posts[session]
            if session is not self._session:
                await session.close()

    def _headers(self, prepared: Prepared) -> CIMultiDict[str]:
        headers = CIMultiDict(self._settings.headers)
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        headers["Accept-Encoding"] = "identity"
        headers["User-Agent"] = self._user_agent
        for name, value in prepared.headers.items():
            headers[name] = value
        return headers

    def _secrets(self) -> list[str]:
        """Return what an answer may echo and nobody may see; very short ones would blot out half of any text."""
        keys = [value for name, value in self._settings.headers.items() if _SECRET_HEADER.search(name)]
        return [secret for secret in (self._token, *keys) if secret and len(secret) >= _SECRET_CHARS_MIN]

    async def _read(self, response: aiohttp.ClientResponse, started_at: float) -> Reply:
        error, answer, truncated = None, b"", False
        try:
            answer, truncated = await _read_bounded(response)
            answer, truncated = _decoded(answer, response.headers.get("Content-Encoding", "identity"), truncated)
        except _NETWORK_ERRORS as broken:
            error = self._explain(broken)
        for secret in self._secrets():
            answer = answer.replace(secret.encode(), b"***")
        return Reply(
            response.status,
            content_type=response.headers.get("Content-Type"),
            retry_after=response.headers.get("Retry-After"),
            echoed_key=response.headers.get("Idempotency-Key"),
            body=answer,
            truncated=truncated,
            error=error,
            elapsed_seconds=_since(started_at),
            date=response.headers.get("Date"),
            location=_server_of(response.headers.get("Location")),
        )

    def _explain(self, error: Exception) -> str:
        """Say in words what went wrong; never repeats a header, a body or an address with credentials."""
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            return _explain_unconnected(error)
        if isinstance(error, TimeoutError):
            return f"no whole answer within {self._settings.timeout_seconds:g} s"
        if isinstance(error, OSError):
            return f"the connection failed: {_os_words(error, 'closed by the other side')}"
        if isinstance(error, _UnreadableAnswerError):
            return str(error)
        found = (words for kind, words in _WORDS.items() if isinstance(error, kind))
        return next(found, f"the request failed ({type(error).__name__})")


def _explain_unconnected(error: aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError) -> str:
    match error:
        case aiohttp.ConnectionTimeoutError():
            return "cannot connect: timed out"
        case aiohttp.ClientConnectorCertificateError(certificate_error=cause):
            return f"TLS certificate not accepted: {_certificate_words(cause)}"
        case aiohttp.ClientSSLError(os_error=cause):
            return f"TLS handshake failed: {getattr(cause, 'reason', None) or _os_words(cause)}"
        case aiohttp.ClientProxyConnectionError(os_error=cause):
            return f"cannot connect to the proxy: {_os_words(cause)}"
        case aiohttp.ClientConnectorDNSError(host=host):
            return f"cannot resolve the name {host}"
        case _:
            return f"cannot connect: {_os_words(error.os_error)}"


def _server_of(location: str | None) -> str | None:
    """Return the server of an address, without names, passwords, path and query; None where none stands in it."""
    try:
        address = urlsplit(location or "")
        port = f":{address.port}" if address.port else ""
    except ValueError:
        return None
    return f"{address.scheme}://{address.hostname}{port}" if address.scheme and address.hostname else None


def _certificate_words(error: Exception) -> str:
    words = (getattr(error, "verify_message", None) or "it does not verify").rstrip(".")
    if getattr(error, "verify_code", None) not in _CLOCK_VERDICTS:
        return words
    return f"{words} (the clock here says {datetime.fromtimestamp(time.time(), UTC).date()})"


_WORDS: dict[type[Exception], str] = {
    aiohttp.ServerDisconnectedError: "the connection was closed without an answer",
    aiohttp.ClientPayloadError: "the connection was closed in the middle of the answer",
    aiohttp.ClientResponseError: "the answer is not valid HTTP",
    aiohttp.InvalidURL: "upload.url cannot be used",
}


class _UnreadableAnswerError(ValueError):
    """The answer is compressed in a way that was not asked for and cannot be undone within the bound."""


def _prepare(batch: Batch, body_format: Format, compression: str) -> Prepared:
    plain = body(batch, body_format)
    headers = {"Content-Type": content_type(body_format), "Idempotency-Key": f'"{batch.key}"'}
    packed = plain
    if len(plain) >= COMPRESS_BYTES_MIN and compression != "none":
        packed = _compress(plain, compression)
    if len(packed) < len(plain):
        headers["Content-Encoding"] = compression
        plain = packed
    return Prepared(batch, plain, headers)


def _compress(plain: bytes, compression: str) -> bytes:
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(plain)
    return gzip.compress(plain, _GZIP_LEVEL, mtime=0)  # without a time of its own: the same rows, the same bytes


async def _read_bounded(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """Read the answer up to the bound; cut the connection if there is more."""
    answer = bytearray()
    while len(answer) <= ANSWER_BYTES_MAX:
        piece = await response.content.read(ANSWER_BYTES_MAX + 1 - len(answer))
        if not piece:
            return bytes(answer), False
        answer += piece
    response.close()
    return bytes(answer[:ANSWER_BYTES_MAX]), True


def _decoded(answer: bytes, encoding: str, truncated: bool) -> tuple[bytes, bool]:  # noqa: FBT001
    """Undo a compression that nobody asked for, within the bound: 300 KB of gzip may be 300 MB of answer."""
    if encoding.lower() == "identity" or not answer:
        return answer, truncated
    if encoding.lower() not in {"gzip", "x-gzip", "deflate"}:
        raise _UnreadableAnswerError("the answer is compressed, which was not asked for")
    inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        plain = inflater.decompress(answer, ANSWER_BYTES_MAX + 1)
    except zlib.error:
        raise _UnreadableAnswerError("the answer's compression is damaged") from None
    if not inflater.eof and not truncated and len(plain) <= ANSWER_BYTES_MAX:
        raise _UnreadableAnswerError("the answer's compression ends too early")
    return plain[:ANSWER_BYTES_MAX], truncated or len(plain) > ANSWER_BYTES_MAX


def _as_aiohttp_likes(body: bytes) -> bytes | BytesIO:
    """Return what is sent in one go, or (it warns of large bytes) in pieces with a turn of the event loop for each."""
    return body if len(body) <= TOO_LARGE_BYTES_BODY else BytesIO(body)


def _tls_context(tls: TlsSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        named = " ".join(f"upload.tls.{name}" for name in ("ca", "cert", "key") if getattr(tls, name))
        raise ConfigError([f"{named}: cannot be used: {error.strerror or error}"], "check the files' content") from None
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_unsent(error: Exception) -> bool:
    """Tell whether the error came before a byte of the request could have reached the cloud."""
    return isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL))


def _os_words(error: OSError, otherwise: str = "no address answered") -> str:
    """Name the error by its number: texts of the event loops differ, and may hold several errors and addresses."""
    return os.strerror(error.errno).lower() if error.errno else otherwise


def _since(started_at: float) -> float:
    return time.monotonic() - started_at


def _file_mark(path: Path | None) -> FileMark | None:
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found else None


def _read_token(path: Path) -> tuple[FileMark | None, str | None]:
    """Read a token file; None for a token if there is none in it, as while somebody is writing it."""
    mark = _file_mark(path)  # before the content: what is written after it will be seen as another change
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return mark, None
    return mark, token if token.isprintable() and token and " " not in token else None
