"""The web server over real HTTP: what each address answers, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import aiohttp
import pytest

from bridge.announcer import StatusBoard, system_now
from bridge.errors import OperatorError
from bridge.events import BrokerConnected, BrokerLost, CloudFailed, Delivered, DiskTroubled, QueueCounted, Received
from bridge.status import Status
from bridge.web import WebServer

ADDRESSES = ("/", "/app.js", "/style.css", "/icon.svg", "/status", "/metrics", "/healthz", "/readyz")


@pytest.fixture
def board() -> StatusBoard:
    fresh = StatusBoard(Status.starting("1.2.3", 'press "4"', system_now()))
    fresh.emit(BrokerConnected(session_present=False, reconnects=2))
    return fresh


@pytest.fixture
async def browser(board: StatusBoard) -> AsyncIterator[aiohttp.ClientSession]:
    server = WebServer("127.0.0.1", 0, board)
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


# ---- who may ask ----


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "192.0.2.7", ""]
)
async def test_on_loopback_another_name_is_refused(browser: aiohttp.ClientSession, host: str) -> None:
    """DNS rebinding: a page of evil.example that resolves to 127.0.0.1 must not read the bridge."""
    for address in ADDRESSES:
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
    server = WebServer("0.0.0.0", 0, board)
    port = await server.start()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/status", headers={"Host": "press-4.plant.example"}) as answer,
    ):
        assert answer.status == 200
    await server.stop()


# ---- start and stop ----


async def test_a_port_in_use_is_the_operators_to_solve(board: StatusBoard) -> None:
    first = WebServer("127.0.0.1", 0, board)
    port = await first.start()
    second = WebServer("127.0.0.1", port, board)
    with pytest.raises(OperatorError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use$") as caught:
        await second.start()
    assert "web.port" in caught.value.hint
    await second.stop()
    await first.stop()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid"])
async def test_an_address_of_another_machine_is_the_operators_to_solve(board: StatusBoard, host: str) -> None:
    with pytest.raises(OperatorError, match=f"cannot listen on {host}:0: [A-Z]"):
        await WebServer(host, 0, board).start()


async def test_after_stop_the_port_is_free_again(board: StatusBoard) -> None:
    server = WebServer("127.0.0.1", 0, board)
    port = await server.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/status") as answer:
        assert answer.status == 200
        await server.stop()
    again = WebServer("127.0.0.1", port, board)
    assert await again.start() == port
    await again.stop()
