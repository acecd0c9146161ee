"""The web server over real HTTP: what each address answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from html.parser import HTMLParser
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

import bridge.web
from bridge.announcer import StatusBoard, system_now
from bridge.errors import DiskFullError, OperatorError
from bridge.events import (
    BrokerConnected,
    BrokerLost,
    CloudAnswered,
    CloudFailed,
    Delivered,
    DiskTroubled,
    Hung,
    Moving,
    QueueCounted,
    Received,
    Stopping,
)
from bridge.message import DeadRow
from bridge.status import Status
from bridge.web import PAGE_FILES, DeadRows, WebServer, dead, stream
from tests.harness import eventually

ADDRESSES = (
    *(file.path for file in PAGE_FILES),
    *("/status", "/history", "/dead", "/metrics", "/livez", "/healthz", "/readyz"),
)
TOKEN = "a-token-of-the-test"


class Graveyard:
    """Stands for the disk queue: dead rows, and which of them were requeued."""

    def __init__(self) -> None:
        self.rows = [
            DeadRow(2, "max_attempts", 503, 20),
            *(DeadRow(n, "refused", 422, 1, "payload") for n in (5, 6, 9)),
        ]
        self.requeued: list[int] = []

    async def newest(self, rows_max: int) -> list[DeadRow]:
        return self.rows[-rows_max:]

    async def requeue(self, row_ids: Sequence[int]) -> int:
        gone = [row for row in self.rows if row.row_id in row_ids]
        self.rows = [row for row in self.rows if row not in gone]
        self.requeued += [row.row_id for row in gone]
        return len(gone)

    @property
    def verbs(self) -> DeadRows:
        return DeadRows(self.newest, self.requeue)


def web_server(board: StatusBoard, port: int = 0, host: str = "127.0.0.1") -> WebServer:
    return WebServer(host, port, board, Graveyard().verbs)


@pytest.fixture
def board() -> StatusBoard:
    fresh = StatusBoard(Status.starting("1.2.3", 'press "4"', system_now()))
    fresh.emit(BrokerConnected(session_present=False, reconnects=2))
    return fresh


@pytest.fixture
def graveyard() -> Graveyard:
    return Graveyard()


@pytest.fixture
async def browser(board: StatusBoard, graveyard: Graveyard) -> AsyncIterator[aiohttp.ClientSession]:
    server = WebServer("127.0.0.1", 0, board, graveyard.verbs, TOKEN)
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session
    await server.stop()


async def status_code(browser: aiohttp.ClientSession, address: str) -> int:
    async with browser.get(address) as answer:
        return answer.status


async def test_status_is_the_status_object(browser: aiohttp.ClientSession, board: StatusBoard) -> None:
    board.emit(Received(5))
    async with browser.get("/status") as answer:
        told = await answer.json()
    assert told["messages"]["received"] == 5
    assert told.keys() == board.tree().keys()


async def test_a_fine_bridge_is_healthy_and_ready(browser: aiohttp.ClientSession) -> None:
    assert (await status_code(browser, "/healthz"), await status_code(browser, "/readyz")) == (200, 200)


async def test_the_cloud_being_away_is_not_unready(browser: aiohttp.ClientSession, board: StatusBoard) -> None:
    board.emit(CloudFailed("timed out", 1.0))
    assert (await status_code(browser, "/healthz"), await status_code(browser, "/readyz")) == (200, 200)


async def test_without_the_broker_it_is_healthy_but_not_ready(
    browser: aiohttp.ClientSession, board: StatusBoard
) -> None:
    board.emit(BrokerLost("connection refused", 1.0))
    assert await status_code(browser, "/healthz") == 200
    async with browser.get("/readyz") as answer:
        assert answer.status == 503
        assert await answer.json() == {"ok": False, "reason": "broker not connected: connection refused"}


async def test_a_disk_that_stalls_is_neither_healthy_nor_ready(
    browser: aiohttp.ClientSession, board: StatusBoard
) -> None:
    """Promise 6: /readyz 503 while the disk stalls."""
    board.emit(DiskTroubled("stalled", "fsync takes 30 s"))
    assert (await status_code(browser, "/healthz"), await status_code(browser, "/readyz")) == (503, 503)


async def test_what_a_restart_would_not_mend_is_no_reason_for_one(
    browser: aiohttp.ClientSession, board: StatusBoard
) -> None:
    """On a full disk the bridge goes on uploading: whoever kills it then makes that harder."""
    board.emit(DiskTroubled("full", "no room"))
    assert (await status_code(browser, "/healthz"), await status_code(browser, "/livez")) == (503, 200)
    board.emit(Hung("the disk has not answered for 130 s"))
    async with browser.get("/livez") as answer:
        assert answer.status == 503
        assert await answer.json() == {"ok": False, "reason": "the disk has not answered for 130 s"}
    board.emit(Moving())
    assert await status_code(browser, "/livez") == 200


# ---- metrics ----

SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)(?P<labels>\{[a-z_]+="(?:[^"\\\n]|\\.)*"(?:,[a-z_]+="(?:[^"\\\n]|\\.)*")*\})? (?P<value>\S+)'
)


async def metrics(browser: aiohttp.ClientSession) -> tuple[dict[str, str], dict[str, float]]:
    """Return the type of each metric and the value of each sample; every line must be of the text format."""
    async with browser.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds, "each metric in one group"
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match["name"] == list(kinds)[-1], "samples stand below their own type"
            samples[match["name"] + (match["labels"] or "")] = float(match["value"])
    return kinds, samples


async def test_metrics_carry_the_numbers_of_the_status(browser: aiohttp.ClientSession, board: StatusBoard) -> None:
    board.emit(QueueCounted(42, 3, 900, 1, 2**40 + 1, 2**41, 7, 1.5))
    board.emit(Delivered(900, 0.25))
    board.emit(CloudFailed("timed out", 1.0))
    _, samples = await metrics(browser)
    assert samples['edge_bridge_queue_rows{state="ready"}'] == 42
    assert samples["edge_bridge_queue_bytes"] == 2**40 + 1
    assert samples["edge_bridge_messages_delivered_total"] == 900
    assert samples["edge_bridge_broker_connected"] == 1
    assert samples["edge_bridge_broker_reconnects_total"] == 2
    assert samples['edge_bridge_cloud_state{state="offline"}'] == 1
    assert samples['edge_bridge_cloud_state{state="online"}'] == 0
    assert samples['edge_bridge_cloud_latency_seconds{quantile="0.5"}'] == 0.25
    last_success_at = board.status.cloud.last_success_at
    assert samples["edge_bridge_cloud_last_success_timestamp_seconds"] == pytest.approx(last_success_at, abs=0.001)
    assert samples[r'edge_bridge_info{version="1.2.3",bridge_id="press \"4\""}'] == 1


async def test_what_is_not_known_is_absent_and_not_zero(browser: aiohttp.ClientSession) -> None:
    kinds, samples = await metrics(browser)
    assert "edge_bridge_queue_full_in_seconds" in kinds
    assert "edge_bridge_queue_full_in_seconds" not in samples


async def test_counters_and_only_counters_are_called_total(browser: aiohttp.ClientSession) -> None:
    kinds, _ = await metrics(browser)
    assert len(kinds) > 20
    assert all(name.startswith("edge_bridge_") for name in kinds)
    assert all((kind == "counter") == name.endswith("_total") for name, kind in kinds.items())


# ---- the page ----


class _Links(HTMLParser):
    """Collects what a page loads and what it would run by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.addresses += [value for name in ("src", "href") if (value := given.get(name))]
        if (tag == "script" and "src" not in given) or tag == "style":
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


async def test_the_page_loads_only_what_this_server_has(browser: aiohttp.ClientSession) -> None:
    async with browser.get("/") as answer:
        page = await answer.text()
    links = _Links()
    links.feed(page)
    assert "/app.js" in links.addresses
    assert all(address.startswith("/") for address in links.addresses)
    assert [await status_code(browser, address) for address in links.addresses] == [200] * len(links.addresses)
    assert links.inline == []  # the content security policy would not let it run


@pytest.mark.parametrize("address", ADDRESSES)
async def test_every_answer_carries_the_security_headers(browser: aiohttp.ClientSession, address: str) -> None:
    async with browser.get(address) as answer:
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "aiohttp" not in answer.headers["Server"]


@pytest.mark.parametrize("size", [{"path": "/?" + "x" * 20_000}, {"headers": {"X-Long": "x" * 20_000}}])
async def test_a_request_whose_head_is_too_large_is_refused_and_hurts_nobody(
    browser: aiohttp.ClientSession, size: dict[str, Any]
) -> None:
    async with browser.get(size.get("path", "/status"), headers=size.get("headers")) as answer:
        assert answer.status == 400
    assert await status_code(browser, "/status") == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_but_reading_is_allowed(browser: aiohttp.ClientSession, method: str) -> None:
    for address in ADDRESSES:
        async with browser.request(method, address) as answer:
            assert answer.status == 405


# ---- the stream ----


async def is_streamed(browser: aiohttp.ClientSession) -> bool:
    """Whether there is room for one more reader."""
    async with browser.get("/events") as answer:
        return answer.status == 200


async def is_full(browser: aiohttp.ClientSession) -> bool:
    return not await is_streamed(browser)


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    async for line in answer.content:
        if line.startswith(b"data: "):
            return dict(json.loads(line[6:]))
    raise AssertionError("the stream ended")


async def test_the_stream_tells_the_status_at_once_and_every_change_of_state(
    browser: aiohttp.ClientSession, board: StatusBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "INTERVAL_SECONDS", 3600.0)
    async with browser.get("/events") as answer:
        assert answer.content_type == "text/event-stream"
        assert (await next_event(answer))["state"] == "online"
        board.emit(BrokerLost("connection refused", 1.0))
        told = await next_event(answer)
        assert told["reason"] == "broker not connected: connection refused"
        assert told.keys() == board.tree().keys()


async def test_the_stream_goes_on_while_nothing_changes(
    browser: aiohttp.ClientSession, board: StatusBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "INTERVAL_SECONDS", 0.3)
    async with browser.get("/events") as answer:
        await next_event(answer)
        board.emit(Received(5))  # a number, no state
        assert (await next_event(answer))["messages"]["received"] == 5


async def test_more_readers_than_there_is_room_for_are_sent_to_the_status(
    browser: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5: the number of streams is bounded; one that ends makes room."""
    monkeypatch.setattr(stream, "READERS_MAX", 2)
    async with browser.get("/events") as first:
        await next_event(first)
        async with browser.get("/events") as second, browser.get("/events") as third:
            await next_event(second)
            assert third.status == 503
            assert "/status" in await third.text()
        second.close()
    await eventually(partial(is_streamed, browser), what="room again")


async def test_a_reader_that_does_not_read_is_cut_off(
    browser: aiohttp.ClientSession, board: StatusBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5: what a slow reader does not take is not kept for it."""
    monkeypatch.setattr(stream, "READERS_MAX", 1)
    monkeypatch.setattr(stream, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(stream, "DEBOUNCE_SECONDS", 0.0)
    monkeypatch.setattr(stream, "WRITE_SECONDS", 0.2)
    board.emit(CloudFailed("x" * 300, 1.0))
    address = browser._base_url
    assert address is not None
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", address.port))
        reader.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(partial(is_full, browser), what="taken in")
        await eventually(partial(is_streamed, browser), what="cut off")


async def test_a_server_that_stops_says_its_last_word_and_does_not_wait_for_its_readers(board: StatusBoard) -> None:
    server = web_server(board)
    port = await server.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/events") as answer:
        await next_event(answer)
        board.emit(Stopping())
        async with asyncio.timeout(10):
            await server.stop()
        assert (await next_event(answer))["state"] == "offline"
        while not answer.content.at_eof():
            await answer.content.read()


# ---- the last hour ----


async def test_the_history_has_what_happened_before_the_page_was_opened(
    browser: aiohttp.ClientSession, board: StatusBoard
) -> None:
    board.emit(CloudFailed("HTTP 503", 1.0))
    board.emit(CloudAnswered())
    async with browser.get("/history") as answer:
        told = await answer.json()
    assert [(trouble["text"], trouble["present"]) for trouble in told["troubles"]] == [
        ("cloud offline: HTTP 503", False)
    ]


async def test_samples_are_taken_all_the_time(board: StatusBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge.web, "SAMPLE_SECONDS", 0.01)
    board.emit(QueueCounted(42, 0, 0, 0, 0, 0, 0, None))
    server = web_server(board)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{await server.start()}") as session:

        async def has_samples() -> bool:
            async with session.get("/history") as answer:
                return [sample[1] for sample in (await answer.json())["samples"]][:3] == [42, 42, 42]

        await eventually(has_samples, what="three samples")
    await server.stop()


# ---- dead rows ----


async def requeue(
    browser: aiohttp.ClientSession,
    body: bytes = b'{"ids": [5, 9]}',
    token: str | None = TOKEN,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, dict[str, Any]]:
    authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
    given = {"Content-Type": "application/json"} | authorization | dict(headers)
    async with browser.post("/dead/requeue", data=body, headers=given) as answer:
        return answer.status, await answer.json() if answer.content_type == "application/json" else {}


async def test_dead_rows_are_told_by_reason_without_what_the_cloud_said(browser: aiohttp.ClientSession) -> None:
    async with browser.get("/dead") as answer:
        told = await answer.json()
    assert told == {
        "groups": [
            {"reason": "refused", "status_code": 422, "attempts": 1, "ids": [5, 6, 9]},
            {"reason": "max_attempts", "status_code": 503, "attempts": 20, "ids": [2]},
        ],
        "refusal": None,
    }


async def test_requeuing_takes_the_token_and_just_the_rows_that_were_named(
    browser: aiohttp.ClientSession, graveyard: Graveyard
) -> None:
    assert await requeue(browser) == (200, {"requeued": 2})
    assert graveyard.requeued == [5, 9]
    assert await requeue(browser) == (200, {"requeued": 0}), "a second press changes nothing"


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "\u00e9"])
async def test_without_the_right_token_nothing_is_requeued(
    browser: aiohttp.ClientSession, graveyard: Graveyard, token: str | None
) -> None:
    status, told = await requeue(browser, token=token)
    assert status == 401
    assert "web.token" in told["error"]
    assert TOKEN not in told["error"]
    assert graveyard.requeued == []


async def test_a_form_of_another_page_cannot_requeue(browser: aiohttp.ClientSession, graveyard: Graveyard) -> None:
    """What a browser sends for a foreign page: cookies and a form's content type, no header of that page's choice."""
    forged = {"Content-Type": "text/plain", "Origin": "http://evil.example", "Cookie": f"token={TOKEN}"}
    assert (await requeue(browser, token=None, headers=forged))[0] == 401
    assert (await requeue(browser, headers=forged))[0] == 400, "nor would it with the token"
    assert graveyard.requeued == []


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"{}", b'{"ids": 5}', b'{"ids": ["5"]}', b'{"ids": [5.0]}', b'{"ids": [true]}'),
        *(b'{"ids": [0]}', b'{"ids": [9223372036854775808]}', b'{"ids": [%s]}' % b",".join([b"5"] * 1001)),
    ],
)
async def test_what_names_no_rows_is_refused(browser: aiohttp.ClientSession, graveyard: Graveyard, body: bytes) -> None:
    assert (await requeue(browser, body))[0] == 400
    assert graveyard.requeued == []


async def test_without_a_token_configured_nothing_changes_and_it_says_how_to_set_one(
    board: StatusBoard, graveyard: Graveyard
) -> None:
    server = WebServer("127.0.0.1", 0, board, graveyard.verbs)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{await server.start()}") as session:
        async with session.get("/dead") as answer:
            refusal = (await answer.json())["refusal"]
        assert "web.token_file" in refusal
        for token in (None, "", "None", TOKEN):
            assert await requeue(session, token=token) == (403, {"error": refusal})
    await server.stop()
    assert graveyard.requeued == []


async def test_a_disk_that_cannot_is_said_and_does_not_hang(
    browser: aiohttp.ClientSession, graveyard: Graveyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> int:
        raise DiskFullError("the disk is full", "make room")

    async def hang(_: object) -> list[DeadRow]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(dead, "DISK_SECONDS", 0.05)
    server = WebServer(
        "127.0.0.1", 0, StatusBoard(Status.starting("1", "x", system_now())), DeadRows(hang, fail), TOKEN
    )
    async with aiohttp.ClientSession(f"http://127.0.0.1:{await server.start()}") as session:
        assert await requeue(session) == (503, {"error": "the disk is full"})
        assert await status_code(session, "/dead") == 503
    await server.stop()


# ---- limits ----


async def test_what_is_too_large_is_refused(browser: aiohttp.ClientSession) -> None:
    """I5: lines, headers and bodies of requests."""
    assert await status_code(browser, f"/{'x' * 10_000}") == 400
    async with browser.get("/status", headers={"X-Large": "x" * 10_000}) as answer:
        assert answer.status == 400
    async with browser.get("/status", headers={f"X-{number}": "x" for number in range(100)}) as answer:
        assert answer.status == 400
    assert (await requeue(browser, b" " * 100_000))[0] == 413


# ---- who may ask ----


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "192.0.2.7", ""]
)
async def test_on_loopback_another_name_is_refused(browser: aiohttp.ClientSession, host: str) -> None:
    """DNS rebinding: a page of evil.example that resolves to 127.0.0.1 must not read the bridge."""
    for address in (*ADDRESSES, "/events"):
        async with browser.get(address, headers={"Host": host}) as answer:
            assert answer.status in {400, 403}
            assert "press" not in await answer.text()


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9999", "LOCALHOST", "127.0.0.1", "127.8.9.1:80", "[::1]:8080"]
)
async def test_on_loopback_every_loopback_name_is_answered(browser: aiohttp.ClientSession, host: str) -> None:
    async with browser.get("/status", headers={"Host": host}) as answer:
        assert answer.status == 200


async def test_a_bridge_that_listens_to_the_network_answers_to_its_name_there(board: StatusBoard) -> None:
    server = web_server(board, host="0.0.0.0")
    port = await server.start()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/status", headers={"Host": "press-4.plant.example"}) as answer,
    ):
        assert answer.status == 200
    await server.stop()


# ---- start and stop ----


async def test_a_port_in_use_is_the_operators_to_solve(board: StatusBoard) -> None:
    first = web_server(board)
    port = await first.start()
    second = web_server(board, port)
    with pytest.raises(OperatorError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use$") as caught:
        await second.start()
    assert "web.port" in caught.value.hint
    await second.stop()
    await first.stop()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid"])
async def test_an_address_of_another_machine_is_the_operators_to_solve(board: StatusBoard, host: str) -> None:
    with pytest.raises(OperatorError, match=f"cannot listen on {host}:0: [A-Z]"):
        await web_server(board, host=host).start()


async def test_after_stop_the_port_is_free_again(board: StatusBoard) -> None:
    server = web_server(board)
    port = await server.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/status") as answer:
        assert answer.status == 200
        await server.stop()
    again = web_server(board, port)
    assert await again.start() == port
    await again.stop()
