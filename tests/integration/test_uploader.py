"""One POST over real HTTP on loopback: what is sent, and what every kind of answer or silence becomes.

Promises 27 to 29, 32, 34 and 40, as far as the uploader alone can keep them.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from aiohttp import web
from pydantic import SecretStr

from bridge.batch import Batch
from bridge.config.settings import TlsSettings, UploadSettings
from bridge.errors import ConfigError
from bridge.message import Row, head, head_middle, tail
from bridge.uploader import Uploader
from bridge.verdict import ANSWER_BYTES_MAX, Reply
from tests.harness.authority import Authority

MIDDLE = head_middle("edge/press-4", "edge/predictions/press-4")
TOKEN = "canary-7f3a"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def row(number: int, payload: bytes = b'{"label":"crack","score":0.970}') -> Row:
    return Row(number, head(f"id-{number}", MIDDLE, "2026-01-01T00:00:00Z") + tail(payload, is_json=True))


SMALL, LARGE = Batch((row(1),)), Batch(tuple(row(number) for number in range(500)))


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve with aiohttp; yields the URL."""

    async def entry(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{tail:.*}", entry)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/ingest"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def saying(answer: bytes, *, drip_seconds: float = 0, ends: bool = True) -> AsyncIterator[str]:
    """Answer each request with these bytes, whatever they are; yields the URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(request.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
            for piece in [bytes([byte]) for byte in answer] if drip_seconds else [answer]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(drip_seconds)
            if not ends:
                await asyncio.Event().wait()
        finally:
            writer.close()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(talk(reader, writer)))

    tasks: list[asyncio.Future[None]] = []
    server = await asyncio.start_server(start, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/ingest"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def upload(url: str, **more: Any) -> UploadSettings:
    return UploadSettings(url=url, **more)


async def post(url: str, batch: Batch = SMALL, **more: Any) -> Reply:
    async with Uploader(upload(url, **more), "1.2.3") as uploader:
        return await uploader.post(batch)


class Recorder:
    """A cloud that writes requests down and answers with a status."""

    def __init__(self, status_code: int = 200, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer = (status_code, headers or {}, body)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(({":method": request.method, **headers}, await request.content.read()))
        status_code, answer_headers, body = self.answer
        return web.Response(status=status_code, headers=answer_headers, body=body)


# ---- what is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body_format", "content_type", "body"),
    [
        ("cloudevents", "application/cloudevents-batch+json", b"[" + row(1).data + b"]"),
        ("ndjson", "application/x-ndjson", row(1).data + b"\n"),
        ("json", "application/json", b'[{"label":"crack","score":0.970}]'),
    ],
)
async def test_a_post_carries_the_stored_bytes_and_the_headers_of_the_contract(
    body_format: str, content_type: str, body: bytes
) -> None:
    cloud = Recorder()
    async with serving(cloud) as url:
        extra = {"X-Site": "north"}
        reply = await post(url, SMALL, format=body_format, token=SecretStr(TOKEN), headers=extra)
    assert reply.status_code == 200
    ((headers, sent),) = cloud.requests
    assert sent == body
    expected = {
        ":method": "POST",
        "content-type": content_type,
        "content-length": str(len(body)),
        "idempotency-key": f'"{SMALL.key}"',
        "authorization": f"Bearer {TOKEN}",
        "user-agent": "edge-bridge/1.2.3",
        "accept-encoding": "identity",
        "x-site": "north",
    }
    assert {name: headers.get(name) for name in expected} == expected
    assert "content-encoding" not in headers


@pytest.mark.parametrize(("compression", "unpack"), [("gzip", gzip.decompress), ("zstd", zstandard.decompress)])
async def test_a_large_body_is_compressed_and_the_same_at_every_retry(
    compression: str, unpack: Callable[[bytes], bytes]
) -> None:
    cloud = Recorder()
    async with serving(cloud) as url:
        for _ in range(2):  # a restart between the two
            await post(url, LARGE, compression=compression)
    (headers, first), (_, second) = cloud.requests
    assert first == second
    assert headers["content-encoding"] == compression
    assert len(first) < LARGE.body_bytes / 5
    assert [one["id"] for one in orjson.loads(unpack(first))] == list(LARGE.event_ids)


@pytest.mark.parametrize(("batch", "compression"), [(SMALL, "gzip"), (SMALL, "zstd"), (LARGE, "none")])
async def test_small_bodies_go_as_they_are_and_so_do_all_without_compression(batch: Batch, compression: str) -> None:
    cloud = Recorder()
    async with serving(cloud) as url:
        await post(url, batch, compression=compression)
    ((headers, sent),) = cloud.requests
    assert "content-encoding" not in headers
    assert len(sent) == batch.body_bytes


async def test_a_body_that_compression_would_enlarge_goes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.uploader.gzip.compress", lambda plain, *_, **__: plain + b"!")
    cloud = Recorder()
    async with serving(cloud) as url:
        await post(url, LARGE)
    ((headers, sent),) = cloud.requests
    assert "content-encoding" not in headers
    assert len(sent) == LARGE.body_bytes


async def test_a_single_large_body_goes_without_a_warning() -> None:
    cloud = Recorder()
    huge = Batch((row(1, b'"%b"' % (b"x" * 3_000_000)),))
    async with serving(cloud) as url:
        assert (await post(url, huge, compression="none")).status_code == 200
    assert len(cloud.requests[0][1]) == huge.body_bytes


async def test_a_destination_that_refuses_the_compression_is_asked_again_without() -> None:
    requests: list[str] = []

    async def picky(request: web.Request) -> web.Response:
        await request.read()
        requests.append(request.headers.get("Content-Encoding", "identity"))
        return web.Response(status=200 if requests[-1] == "identity" else 415)

    async with serving(picky) as url, Uploader(upload(url), "1") as uploader:
        assert [(await uploader.post(LARGE)).status_code for _ in range(2)] == [200, 200]
        await uploader.reload(upload(url))
        await uploader.post(LARGE)
    assert requests == ["gzip", "identity", "identity", "gzip", "identity"]


async def test_no_cookie_is_kept() -> None:
    cloud = Recorder(headers={"Set-Cookie": "session=1; Path=/"})
    async with serving(cloud) as url, Uploader(upload(url), "1") as uploader:
        for _ in range(2):
            await uploader.post(SMALL)
    assert all("cookie" not in headers for headers, _ in cloud.requests)


@pytest.mark.parametrize("status_code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status_code: int) -> None:
    """Promise 29: body and token never reach another origin."""
    elsewhere = Recorder()
    async with serving(elsewhere) as target, serving(Recorder(status_code, {"Location": target})) as url:
        reply = await post(url, token=SecretStr(TOKEN))
    assert reply.status_code == status_code
    assert elsewhere.requests == []
    assert reply.location == target.removesuffix("/ingest")


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://user:secret@portal.example:8443/login?token=secret", "https://portal.example:8443"),
        ("/login?token=secret", None),
        ("//[", None),
    ],
)
async def test_of_where_a_redirect_leads_only_the_server_is_told(location: str, told: str | None) -> None:
    async with serving(Recorder(302, {"Location": location})) as url:
        assert (await post(url)).location == told


async def test_proxies_of_the_environment_are_ignored_and_a_configured_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloud, proxy, unwanted = Recorder(), Recorder(202), Recorder()
    async with serving(cloud) as url, serving(proxy) as proxy_url, serving(unwanted) as unwanted_url:
        monkeypatch.setenv("http_proxy", unwanted_url)
        assert (await post(url)).status_code == 200
        assert (await post(url, proxy=proxy_url.replace("/ingest", ""))).status_code == 202
    assert (len(cloud.requests), len(proxy.requests), len(unwanted.requests)) == (1, 1, 0)


async def test_a_proxy_that_wants_credentials_pauses_and_other_refusals_of_it_are_no_answer() -> None:
    for line, status_code in ((b"407 Proxy Authentication Required", 407), (b"502 Bad Gateway", None)):
        reader_gone = b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\n\r\n"
        server = await asyncio.start_server(_answer_connect(reader_gone), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reply = await post("https://cloud.invalid/ingest", proxy=f"http://127.0.0.1:{port}")
        assert (reply.status_code, reply.sent) == (status_code, False)


def _answer_connect(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT cloud.invalid:443 ")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return talk


# ---- what comes back ----------------------------------------------------------------------------------------------


async def test_an_answer_becomes_a_reply() -> None:
    headers = {"Content-Type": "application/json", "Retry-After": "7", "Idempotency-Key": '"k"'}
    async with serving(Recorder(503, headers, b'{"busy":true}')) as url:
        reply = await post(url)
    assert 0 < reply.elapsed_seconds < 30
    assert (reply.status_code, reply.content_type, reply.retry_after) == (503, "application/json", "7")
    assert (reply.echoed_key, reply.body) == ('"k"', b'{"busy":true}')
    assert (reply.truncated, reply.error, reply.sent) == (False, None, True)


async def test_an_echo_of_a_secret_is_blotted_out() -> None:
    """Promise 40."""
    async with serving(Recorder(403, body=b"bad token canary-7f3a! bad key canary-91bc! bad site north-hall!")) as url:
        extra = {"X-Api-Key": "canary-91bc", "X-Site": "north-hall"}
        reply = await post(url, token=SecretStr(TOKEN), headers=extra)
    assert reply.body == b"bad token ***! bad key ***! bad site north-hall!"


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BROKEN = [
    pytest.param(b"", "the connection was closed without an answer", id="nothing"),
    pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "the answer is not valid HTTP", id="not HTTP"),
    pytest.param(OK + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n", "the answer is not valid HTTP", id="huge header"),
    pytest.param(OK + b"X: y\r\n" * 1000 + b"\r\n", "the answer is not valid HTTP", id="too many headers"),
    pytest.param(
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", "the answer is not valid HTTP", id="broken chunks"
    ),
]
MIDDLE_OF = "the connection was closed in the middle of the answer"
CUT = [
    pytest.param(OK + b"Content-Length: 50\r\n\r\n{", MIDDLE_OF, id="cut by length"),
    pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", MIDDLE_OF, id="cut chunks"),
    pytest.param(
        OK + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
        "the answer is compressed, which was not asked for",
        id="unknown compression",
    ),
    pytest.param(
        OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        "the answer's compression is damaged",
        id="no gzip",
    ),
    pytest.param(
        OK + b"Content-Encoding: gzip\r\nContent-Length: 12\r\n\r\n" + gzip.compress(b"{}")[:12],
        "the answer's compression ends too early",
        id="cut gzip",
    ),
]


@pytest.mark.parametrize(("answer", "error"), BROKEN)
async def test_what_is_no_answer_is_told_in_words(answer: bytes, error: str) -> None:
    async with saying(answer) as url:
        reply = await post(url)
    assert (reply.status_code, reply.error, reply.sent) == (None, error, True)


@pytest.mark.parametrize(("answer", "error"), CUT)
async def test_an_answer_that_breaks_off_keeps_its_status_and_says_so(answer: bytes, error: str) -> None:
    async with saying(answer) as url:
        reply = await post(url)
    assert (reply.status_code, reply.error) == (200, error)


async def test_a_refusal_that_comes_before_the_body_was_read_is_heard() -> None:
    """A 413 is often sent, and the connection closed, while the body is still on its way."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    huge = Batch((row(1, b'"%b"' % (b"x" * 900_000)),))
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reply = await post(f"http://127.0.0.1:{port}/", huge, compression="none")
    assert reply.status_code == 413


@pytest.mark.parametrize("length", [b"", b"Content-Length: 99999999\r\n"])
async def test_an_endless_answer_is_read_up_to_64_kib(length: bytes) -> None:
    async with saying(OK + length + b"\r\n" + b"x" * 500_000, ends=False) as url:
        reply = await post(url)
    assert (reply.status_code, reply.error, reply.truncated) == (200, None, True)
    assert len(reply.body) == ANSWER_BYTES_MAX


async def test_an_answer_of_exactly_the_bound_is_whole() -> None:
    async with serving(Recorder(body=b"x" * ANSWER_BYTES_MAX)) as url:
        reply = await post(url)
    assert (len(reply.body), reply.truncated) == (ANSWER_BYTES_MAX, False)


async def test_an_exploding_answer_is_cut_at_64_kib() -> None:
    """Promise 34: 100 MB of answer in 100 KB of gzip that nobody asked for."""
    bomb = gzip.compress(b"\0" * 20_000_000)
    async with serving(Recorder(headers={"Content-Encoding": "gzip"}, body=bomb)) as url:
        reply = await post(url)
    assert (len(reply.body), reply.truncated, reply.error) == (ANSWER_BYTES_MAX, True, None)


async def test_a_compressed_answer_is_understood_although_nobody_asked_for_it() -> None:
    packed = gzip.compress(b'{"stored":1}')
    async with serving(Recorder(headers={"Content-Encoding": "gzip"}, body=packed)) as url:
        assert (await post(url)).body == b'{"stored":1}'


async def test_a_dripping_answer_is_cut_at_the_time_out() -> None:
    """Promise 34."""
    async with saying(OK + b"Content-Length: 1000\r\n\r\n" + b" " * 1000, drip_seconds=0.005, ends=False) as url:
        reply = await post(url, timeout_seconds=0.6)
    assert reply.error == "no whole answer within 0.6 s"
    assert 0.5 < reply.elapsed_seconds < 2


async def test_silence_ends_at_the_time_out() -> None:
    async with saying(b"", ends=False) as url:
        reply = await post(url, timeout_seconds=0.2)
    assert (reply.status_code, reply.error, reply.sent) == (None, "no whole answer within 0.2 s", True)


# ---- no connection ------------------------------------------------------------------------------------------------


async def test_a_refused_connection_and_an_unknown_name_are_told_apart_and_sent_nothing() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    refused = await post(f"http://127.0.0.1:{port}/")
    unknown = await post("http://no-such-host.invalid/")
    proxy = await post("http://cloud.invalid/", proxy=f"http://127.0.0.1:{port}")
    assert (refused.error, refused.sent) == ("cannot connect: connection refused", False)
    assert (unknown.error, unknown.sent) == ("cannot resolve the name no-such-host.invalid", False)
    assert (proxy.error, proxy.sent) == ("cannot connect to the proxy: connection refused", False)


# ---- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_private_ca_is_trusted_when_it_is_configured_and_only_then(authority: Authority) -> None:
    cloud = Recorder()
    async with serving(cloud, authority.server_context()) as url:
        trusted = await post(url, tls=TlsSettings(ca=authority.file))
        stranger = await post(url)
        insecure = await post(url, tls=TlsSettings(insecure=True))
    assert (trusted.status_code, insecure.status_code) == (200, 200)
    assert stranger.error == "TLS certificate not accepted: unable to get local issuer certificate"
    assert not stranger.sent
    assert len(cloud.requests) == 2


UNFIT = [
    (("127.0.0.1", -9, -1), "certificate has expired (the clock here says TODAY)"),
    (("127.0.0.1", 1, 9), "certificate is not yet valid (the clock here says TODAY)"),
    (("cloud.example", -1, 9), "IP address mismatch, certificate is not valid for '127.0.0.1'"),
]


@pytest.mark.parametrize(("shown", "words"), UNFIT)
async def test_a_certificate_that_does_not_fit_stops_the_post_before_anything_is_sent(
    authority: Authority, shown: tuple[str, int, int], words: str
) -> None:
    """Promise 32: held, nothing on the wire."""
    cloud = Recorder()
    async with serving(cloud, authority.server_context(*shown)) as url:
        reply = await post(url, tls=TlsSettings(ca=authority.file))
    assert (reply.status_code, reply.sent) == (None, False)
    words = words.replace("TODAY", datetime.now(UTC).date().isoformat())
    assert reply.error == f"TLS certificate not accepted: {words}"
    assert cloud.requests == []


async def test_a_client_certificate_is_shown(authority: Authority, tmp_path: Path) -> None:
    context = authority.server_context()
    authority.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate = authority.ca.issue_cert("press-4")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    async with serving(Recorder(), context) as url:
        with_it = await post(url, tls=TlsSettings(ca=authority.file, cert=tmp_path / "client.pem"))
        without = await post(url, tls=TlsSettings(ca=authority.file))
    assert with_it.status_code == 200
    assert without.status_code is None


async def test_plain_http_on_a_tls_port_is_told_in_words() -> None:
    async with serving(Recorder()) as url:
        reply = await post(url.replace("http:", "https:"))
    assert (reply.status_code, reply.sent) == (None, False)
    assert reply.error is not None
    assert reply.error.startswith("TLS handshake failed: ")


async def test_certificates_that_cannot_be_read_are_the_operators_business(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    settings = upload("https://cloud.invalid/", tls=TlsSettings(ca=tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"upload\.tls\.ca"):
        await Uploader(settings, "1").__aenter__()


# ---- changes while running ----------------------------------------------------------------------------------------


async def test_a_new_token_in_its_file_is_noticed_and_used(tmp_path: Path) -> None:
    """Promise 31."""
    cloud, file = Recorder(401), tmp_path / "token"
    file.write_text("old\n")
    async with serving(cloud) as url, Uploader(upload(url, token=SecretStr("old"), token_file=file), "1") as uploader:
        assert not await uploader.token_changed()
        await uploader.post(SMALL)
        for half_written in ("", "two words", "caf\u00e9"):
            file.write_text(half_written, encoding="utf-8")
            assert not await uploader.token_changed()
        file.unlink()
        assert not await uploader.token_changed()
        file.write_text("new\n")
        assert await uploader.token_changed()
        assert not await uploader.token_changed()
        await uploader.post(SMALL)
    assert [headers["authorization"] for headers, _ in cloud.requests] == ["Bearer old", "Bearer new"]


async def test_without_a_token_file_nothing_changes() -> None:
    async with Uploader(upload("http://127.0.0.1:9/"), "1") as uploader:
        assert not await uploader.token_changed()


async def test_reload_takes_effect_with_the_next_post_and_lets_the_one_under_way_end() -> None:
    arrived, answered = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await request.read()
        arrived.set()
        await answered.wait()
        return web.Response(status=201)

    other = Recorder(202)
    async with serving(slow) as url, serving(other) as other_url, Uploader(upload(url), "1") as uploader:
        under_way = asyncio.create_task(uploader.post(SMALL))
        await arrived.wait()
        await uploader.reload(upload(other_url, token=SecretStr(TOKEN)))
        after = await uploader.post(SMALL)
        answered.set()
        assert ((await under_way).status_code, after.status_code) == (201, 202)
    assert other.requests[0][0]["authorization"] == f"Bearer {TOKEN}"


async def test_a_cancelled_post_leaves_nothing_open() -> None:
    async with saying(b"", ends=False) as url, Uploader(upload(url), "1") as uploader:
        under_way = asyncio.create_task(uploader.post(SMALL))
        await asyncio.sleep(0)
        under_way.cancel()
        with pytest.raises(asyncio.CancelledError):
            await under_way


async def test_connections_are_used_again() -> None:
    peers: set[Any] = set()

    async def handler(request: web.Request) -> web.Response:
        await request.read()
        peers.add(request.transport and request.transport.get_extra_info("peername"))
        return web.Response(body=b"{}")

    async with serving(handler) as url, Uploader(upload(url), "1") as uploader:
        for _ in range(5):
            assert (await uploader.post(LARGE)).status_code == 200
    assert len(peers) == 1
