"""The witnesses of the other tests are themselves tested: the scripted cloud, the receiver's process, the audit."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import time
import urllib.error
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import trustme

from tests.harness import wait_until
from tests.harness.cloud import (
    Cloud,
    accept,
    after,
    answer,
    black_hole,
    cut_after_store,
    cut_before_store,
    drip,
    endless,
    gzip_bomb,
    html,
    raw,
    redirect,
    reject_ids,
    results,
)
from tests.harness.ledger import audit
from tests.harness.receiver import ReceiverProcess

BATCH = {"Content-Type": "application/cloudevents-batch+json"}


def event(event_id: str, payload: int = 1) -> bytes:
    return b'{"specversion":"1.0","id":"%b","source":"edge/a","type":"t","data":%d}' % (event_id.encode(), payload)


def batch(*ids: str) -> bytes:
    return b"[%b]" % b",".join(event(event_id) for event_id in ids)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=BATCH) as session:
        yield session


async def post(session: aiohttp.ClientSession, cloud: Cloud, body: bytes, **headers: str) -> tuple[int, bytes]:
    named = {name.replace("_", "-"): headers[name] for name in headers}
    async with session.post(cloud.url, data=body, headers=named, allow_redirects=False) as reply:
        return reply.status, await reply.read()


async def test_what_is_not_scripted_is_stored_and_kept_in_the_ledger(
    cloud: Cloud, session: aiohttp.ClientSession
) -> None:
    started = time.monotonic()
    packed = gzip.compress(batch("a", "b"))
    assert await post(session, cloud, packed, Content_Encoding="gzip", Idempotency_Key='"k"') == (200, b'{"stored": 2}')
    assert cloud.bodies == {"a": event("a"), "b": event("b")}
    (request,) = cloud.requests
    assert (request.method, request.target, request.key, request.ids) == ("POST", "/", '"k"', ("a", "b"))
    assert (request.raw, request.body) == (packed, batch("a", "b"))
    assert started <= request.at <= cloud.stored["a"][0].at <= time.monotonic()
    assert cloud.connections == 1


async def test_duplicates_and_altered_events_are_told_apart(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    await post(session, cloud, batch("a", "b"))
    await post(session, cloud, b"[%b,%b]" % (event("a"), event("b", 2)))
    assert (cloud.unique, cloud.duplicates, cloud.altered) == (2, 2, {"b"})
    assert cloud.arrivals == ["a", "b", "a", "b"]
    assert cloud.connections == 1


async def test_a_script_is_played_once_in_order_and_then_the_standing_answer(
    cloud: Cloud, session: aiohttp.ClientSession
) -> None:
    cloud.always(answer(500))
    cloud.script(answer(429, {"Retry-After": "1"}), html(), accept(echo=False))
    assert [(await post(session, cloud, batch("a")))[0] for _ in range(5)] == [429, 200, 200, 500, 500]
    assert cloud.arrivals == ["a"]
    cloud.always()
    assert (await post(session, cloud, batch("b")))[0] == 200
    assert cloud.arrivals == ["a", "b"]


async def test_an_answer_row_by_row_stores_what_it_calls_stored(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    cloud.script(results({"b": 422, "c": None}))
    status, body = await post(session, cloud, batch(*"abc"))
    assert (status, body) == (207, b'{"results": [{"id": "a", "status": 201}, {"id": "b", "status": 422}]}')
    assert cloud.arrivals == ["a"]


async def test_a_body_with_a_rejected_id_is_refused_whole(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    cloud.always(reject_ids({"b"}, 400))
    assert (await post(session, cloud, batch("a", "b")))[0] == 400
    assert (await post(session, cloud, batch("a")))[0] == 200
    assert cloud.arrivals == ["a"]


async def test_a_redirect_names_its_target(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    cloud.script(redirect("http://127.0.0.1:9/elsewhere", 307))
    async with session.post(cloud.url, data=batch("a"), allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (307, "http://127.0.0.1:9/elsewhere")
    assert cloud.arrivals == []


async def test_a_cut_comes_before_or_after_storing(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    cloud.script(cut_before_store(), cut_after_store(), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"))
    for event_id in ("before", "after", "half"):
        with pytest.raises(aiohttp.ClientError):
            await post(session, cloud, batch(event_id))
    assert cloud.arrivals == ["after"]


@pytest.mark.parametrize("responder", [black_hole(), after(3600, accept()), drip(1), endless()])
async def test_an_answer_that_does_not_end_keeps_its_sender_waiting(
    cloud: Cloud, session: aiohttp.ClientSession, responder: object
) -> None:
    assert callable(responder)
    cloud.script(responder)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await post(session, cloud, batch("a"))
    assert cloud.arrivals == []
    assert (await post(session, cloud, batch("b")))[0] == 200


async def test_a_bomb_is_small_on_the_wire_and_large_inside(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    cloud.script(gzip_bomb(8 << 20))
    async with aiohttp.ClientSession(auto_decompress=False) as plain, plain.post(cloud.url, data=b"") as reply:
        packed = await reply.read()
        assert reply.headers["Content-Encoding"] == "gzip"
    assert len(packed) < 64 << 10
    assert len(gzip.decompress(packed)) == 8 << 20


async def test_chunked_bodies_are_read_and_connections_closed_when_asked(
    cloud: Cloud, session: aiohttp.ClientSession
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for letter in batch("a"):
            yield bytes([letter])

    async with session.post(cloud.url, data=pieces(), headers={"Connection": "close"}) as reply:
        assert reply.status == 200
    assert cloud.bodies == {"a": event("a")}
    assert (await post(session, cloud, batch("b")))[0] == 200
    assert cloud.connections == 2


async def test_an_unreachable_cloud_refuses_and_comes_back_on_its_port(
    cloud: Cloud, session: aiohttp.ClientSession
) -> None:
    assert (await post(session, cloud, batch("a")))[0] == 200
    cloud.unreachable()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", cloud.port))
    with pytest.raises(aiohttp.ClientError):  # also on the connection that it kept
        await post(session, cloud, batch("b"))
    cloud.reachable()
    assert (await post(session, cloud, batch("c")))[0] == 200
    assert cloud.arrivals == ["a", "c"]


async def test_it_speaks_tls_with_the_certificate_it_is_given(session: aiohttp.ClientSession) -> None:
    authority, server, trusting = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trusting)
    with Cloud(tls=server) as cloud:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(session, cloud, batch("a"))
        async with session.post(cloud.url, data=batch("b"), ssl=trusting) as reply:
            assert reply.status == 200
        assert cloud.arrivals == ["b"]


def test_rubbish_on_the_wire_is_survived(cloud: Cloud) -> None:
    for rubbish in (b"", b"\r\n\r\n", b"rubbish\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", cloud.port)) as connection:
            connection.sendall(rubbish)
    wait_until(lambda: cloud.connections == 4)
    assert cloud.requests == []


def test_the_audit_finds_what_is_lost_unexpected_and_stored_again() -> None:
    found = audit(tried="abcd", confirmed="abc", stored=["a", "a", "a", "b", "b", "x"])
    assert found.lost == {"c"}
    assert found.unexpected == {"x"}
    assert found.duplicates == {"a": 2, "b": 1}
    assert found.duplicate_count == 3


@pytest.mark.parametrize(
    ("stored", "duplicates_max", "complaint"),
    [(["a"], None, "lost 1: b"), (["a", "b", "x"], None, "unexpected 1: x"), (["a", "b", "b"], 0, "1 duplicates")],
)
def test_a_broken_promise_fails_with_names(stored: list[str], duplicates_max: int | None, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        audit("ab", "ab", stored).assert_kept(duplicates_max)


def test_a_kept_promise_passes() -> None:
    audit("abc", "ab", ["a", "b", "b", "c"]).assert_kept(duplicates_max=1)


def test_the_receiver_runs_as_a_command_keeps_events_over_sigkill_and_stops_clean(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path, token="secret") as receiver:
        assert receiver.ask("POST", "/", batch("a", "b"), BATCH) == {"stored": 2, "duplicates": 0}
        receiver.kill()
        port = receiver.port
        receiver.start()
        assert receiver.port == port
        assert receiver.ids() == ["a", "b"]
        assert receiver.stats() == {"received": 2, "unique": 2, "duplicates": 0, "requests": 1}
        receiver.faults(status=503, count=1)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            receiver.ask("POST", "/", batch("c"), BATCH)
        assert receiver.stop() == 0
    assert receiver.stderr == ""


def test_the_receiver_command_says_in_one_line_what_the_operator_must_change(tmp_path: Path, cloud: Cloud) -> None:
    for arguments in (["--port", str(cloud.port)], ["--token-file", "missing"], ["--port", "70000"]):
        receiver = ReceiverProcess(tmp_path, arguments=arguments)
        with pytest.raises(AssertionError, match="ended with 2"):
            receiver.start()
        assert "Traceback" not in receiver.stderr
