"""The live page in a real Chromium: what somebody at the device sees, hears, and can do.

The web server is ours, the status board is moved by events as the bridge moves it. Each test ends with a look at what
a page must never do: errors on the console, breaches of the content security policy, requests to another server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from bridge.announcer import StatusBoard, system_now
from bridge.events import (
    BrokerConnected,
    BrokerLost,
    CloudAnswered,
    CloudFailed,
    Delivered,
    DiskTroubled,
    Event,
    QueueCounted,
    Received,
    Stored,
)
from bridge.message import DeadRow
from bridge.status import Status
from bridge.web import DeadRows, WebServer
from tests.harness import eventually
from tests.harness.chromium import SHOWN_SECONDS, Chromium, Tab, chromium_command

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "a-token-of-the-test"
GIB = 2**30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Chromium]:
    """One browser for all tests; each has a tab and a server of its own."""
    command = chromium_command()
    if command is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    async with Chromium(command) as browser:
        yield browser


def counted(ready: int = 0, dead: int = 0, size_bytes: int = 0) -> QueueCounted:
    return QueueCounted(ready, 0, 900, dead, size_bytes, GIB, 40 * GIB, 4.0 if ready else None)


@dataclass
class Bridge:
    """What the page looks at: a board, dead rows, a server on a port that stays the same over a restart."""

    token: str | None = TOKEN
    port: int = 0
    dead: list[DeadRow] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)

    async def start(self) -> None:
        self.board = StatusBoard(Status.starting("1.2.3", "press-4", system_now()))
        self.emit(BrokerConnected(session_present=False, reconnects=0), CloudAnswered(), counted())
        self.server = WebServer("127.0.0.1", self.port, self.board, DeadRows(self.newest, self.requeue), self.token)
        self.port = await self.server.start()

    def emit(self, *events: Event) -> None:
        for event in events:
            self.board.emit(event)

    async def newest(self, rows_max: int) -> Sequence[DeadRow]:
        return self.dead[-rows_max:]

    async def requeue(self, row_ids: Sequence[int]) -> int:
        self.requeued += row_ids
        self.dead = [row for row in self.dead if row.row_id not in row_ids]
        self.emit(counted(ready=len(row_ids), dead=len(self.dead)))
        return len(row_ids)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest_asyncio.fixture(loop_scope="module")
async def bridge() -> AsyncIterator[Bridge]:
    bridge = Bridge()
    await bridge.start()
    yield bridge
    await bridge.server.stop()


Look = Callable[..., AbstractAsyncContextManager[Tab]]


@pytest_asyncio.fixture(loop_scope="module")
async def look(chromium: Chromium, bridge: Bridge) -> Look:
    """A tab with the page, of a width and in a scheme; at the end it must have done nothing bad.

    `expected` is what an error on the console may contain: a browser notes there each answer that refuses something.
    """

    @asynccontextmanager
    async def looking(expected: str | None = None, **wishes: Any) -> AsyncIterator[Tab]:
        page = await chromium.open(**wishes)
        await page.go(bridge.url)
        await page.shows("#contact", "live")
        yield page
        assert [error for error in page.errors if expected is None or expected not in error] == []
        assert await page.run("violations") == []
        assert {address.split("/")[2] for address in page.addresses} == {f"127.0.0.1:{bridge.port}"}
        await page.close()

    return looking


def until(page: Tab, script: str) -> Coroutine[Any, Any, Any]:
    return eventually(lambda: page.run(script), SHOWN_SECONDS, script)


async def test_it_tells_the_state_in_one_word_and_why(look: Look, bridge: Bridge) -> None:
    async with look() as page:
        assert await page.shows("#state", "online") == "online"
        assert await page.text("#reason") == "Messages are stored, and delivered."
        bridge.emit(BrokerLost("connection refused", 1.0))
        assert await page.shows("#state", "degraded") == "degraded"
        assert await page.text("#reason") == "Broker not connected: connection refused."
        assert await page.text("#broker .word") == "not connected"
        assert await page.run("document.getElementById('intake').dataset.pace") == "cut"
        assert await page.run("document.getElementById('upload').dataset.pace") == "0"
        assert await page.run("document.title") == "degraded · press-4"


async def test_it_shows_the_way_of_a_message_with_rates(look: Look, bridge: Bridge) -> None:
    async with look() as page:
        bridge.emit(counted(ready=1234, size_bytes=GIB // 2))
        assert await page.shows("#disk .word", "1,234 waiting")
        assert "512 MiB of 1 GiB" in await page.text("#disk .more")
        assert await page.run("document.getElementById('level').getAttribute('height')") == "16.5"
        assert await page.run("document.getElementById('intake').dataset.pace") == "0"
        bridge.emit(Received(5000), Stored(5000, 0, 0), Delivered(100, 0.05))
        await until(page, "document.getElementById('intake').dataset.pace >= 3")
        assert await page.shows("#counters", "5,000")
        assert "answers in 50 ms" in await page.text("#cloud .more")


async def test_it_says_when_the_queue_is_full_or_empty(look: Look, bridge: Bridge) -> None:
    """The forecasts of the status in words; the averages behind them move with the announcer's tick."""
    async with look() as page:
        await page.shows("#outlook", "Nothing waits.")
        bridge.emit(counted(ready=3000, size_bytes=GIB // 2), Delivered(600, 0.05))
        bridge.board.tick()
        empty = bridge.board.tree()["queue"]
        assert isinstance(empty, dict)
        assert isinstance(empty["empty_in_seconds"], int)
        text = await page.shows("#outlook", "At this pace empty in")
        assert text.startswith("3,000 messages wait on disk, the oldest for 4 s.")


async def test_it_shows_what_happened_before_it_was_opened(look: Look, bridge: Bridge) -> None:
    bridge.emit(counted(ready=700))
    bridge.server._sample()
    bridge.emit(CloudFailed("HTTP 503", 30.0), counted(ready=8000))
    bridge.server._sample()
    bridge.emit(CloudAnswered(), counted(ready=10))
    bridge.server._sample()
    async with look() as page:
        text = await page.shows("#troubles", "cloud offline: HTTP 503")
        assert text.splitlines()[1] in {"just now", *(f"{seconds} s ago" for seconds in range(1, 60))}
        assert "UTC" in await page.run("document.querySelector('#troubles time').title")
        assert await page.text("#ceiling") == "10,000"
        await until(page, "document.querySelector('#cloud-track rect') !== null")
        label = await page.run("document.getElementById('backlog').getAttribute('aria-label')")
        assert label.startswith("10 messages wait now, at most 8,000 did; the cloud was away for ")


async def test_it_says_that_there_is_no_news_and_comes_back_by_itself(chromium: Chromium, bridge: Bridge) -> None:
    page = await chromium.open()
    await page.go(bridge.url)
    await page.shows("#state", "online")
    await bridge.server.stop()
    assert await page.shows("#state", "no news") == "no news"
    first = int((await page.shows("#contact", "no news for")).split()[3])
    assert 5 <= first <= SHOWN_SECONDS
    await until(page, f"parseInt(document.querySelector('#contact').textContent.split(' ')[3]) >= {first + 2}")
    await bridge.start()
    bridge.emit(DiskTroubled("full", "no space"))
    await page.shows("#contact", "live", 30)
    assert await page.text("#state") == "degraded"
    assert await page.run("violations") == []
    await page.close()


async def test_without_the_stream_it_asks_for_the_status(
    look: Look, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.web.stream.READERS_MAX", 0)
    async with look(expected="503") as page:
        bridge.emit(counted(ready=77))
        await page.shows("#disk .word", "77 waiting")


# ---- dead rows ----

DEAD = [DeadRow(2, "max_attempts", 503, 20), *(DeadRow(row_id, "refused", 422, 1, "payload") for row_id in (5, 6, 9))]


async def press_send_again(page: Tab, token: str) -> None:
    await page.run("document.querySelector('#dead button').focus()")
    await page.press("Enter", 13, "\r")
    await until(page, "document.activeElement.id === 'token'")
    await page.type(token)
    await page.press("Enter", 13, "\r")


async def test_dead_rows_are_sent_again_by_keyboard_with_the_token(look: Look, bridge: Bridge) -> None:
    bridge.dead = DEAD
    bridge.emit(counted(dead=4))
    async with look() as page:
        text = await page.shows("#dead", "3 × refused by the cloud")
        assert await page.shows("#reason", "4 are refused by the cloud, and kept.")
        assert "HTTP 422 · after 1 attempt · rows 5 to 9" in text
        assert "payload" not in await page.text("body")
        await press_send_again(page, TOKEN)
        await until(page, "!document.getElementById('requeue').open")
        assert bridge.requeued == [5, 6, 9]
        await page.shows("#disk .word", "3 waiting")
        await until(page, "document.querySelectorAll('#dead li').length === 1")
        assert await page.run("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]


async def test_a_wrong_token_is_said_in_the_dialog_and_changes_nothing(look: Look, bridge: Bridge) -> None:
    bridge.dead = DEAD
    bridge.emit(counted(dead=4))
    async with look(expected="401") as page:
        await page.shows("#dead", "refused")
        await press_send_again(page, "wrong")
        await page.shows("#requeue-error", "not the token")
        assert await page.run("document.activeElement.id") == "token"
        assert await page.run("document.getElementById('token').getAttribute('aria-invalid')") == "true"
        await page.press("Escape", 27)
        await until(page, "!document.getElementById('requeue').open")
    assert bridge.requeued == []


async def test_without_a_token_it_says_how_to_set_one(chromium: Chromium) -> None:
    bridge = Bridge(token=None, dead=list(DEAD))
    await bridge.start()
    bridge.emit(counted(dead=4))
    page = await chromium.open()
    await page.go(bridge.url)
    await page.shows("#dead-refusal", "BRIDGE_WEB__TOKEN_FILE")
    assert await page.run("document.querySelectorAll('#dead li').length") == 2
    assert await page.run("document.querySelectorAll('#dead button').length") == 0
    await page.close()
    await bridge.server.stop()


# ---- for every reader ----

# The contrast of each text with what is really behind it (WCAG 2.2, 1.4.3), as "ratio text" where it is too low.
TOO_FAINT = """
(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value <= 10.31 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return channels(getComputedStyle(document.documentElement).backgroundColor);
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  const ratios = texts.map((element) => {
    const [a, b] = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.innerText];
  });
  return [texts.length, ratios.filter(([ratio]) => ratio < 4.5).map(([ratio, text]) => `${ratio.toFixed(2)} ${text}`)];
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_text_stands_out_in_light_and_in_dark(look: Look, bridge: Bridge, dark: bool) -> None:
    bridge.dead = DEAD
    bridge.emit(CloudFailed("HTTP 503", 30.0), DiskTroubled("full", "no space"), counted(ready=500, dead=4))
    async with look(dark=dark) as page:
        await page.shows("#dead", "refused")
        await page.shows("#troubles", "HTTP 503")
        backgrounds = await page.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(part) for part in backgrounds[4:-1].split(",")) < 128 * 3) == dark
        await page.run("(document.querySelector('details').open = true, 0)")
        await page.shows("#values", "stale confirms")
        texts, faint = await page.run(TOO_FAINT)
        assert texts > 60
        assert faint == []
        await page.run("(document.querySelector('#dead button').click(), 0)")
        await until(page, "document.getElementById('requeue').open")
        assert (await page.run(TOO_FAINT))[1] == []


@pytest.mark.parametrize("width", [320, 360, 768, 1400])
async def test_no_width_needs_scrolling_to_the_side(look: Look, bridge: Bridge, width: int) -> None:
    bridge.dead = DEAD
    bridge.emit(CloudFailed("x" * 280, 30.0), counted(ready=123_456_789, dead=4, size_bytes=GIB))
    async with look(width=width) as page:
        await page.shows("#troubles", "xxxx")
        await page.shows("#dead", "refused")
        await page.run("(document.querySelector('details').open = true, 0)")
        await page.shows("#values", "stale confirms")
        assert await page.run("document.documentElement.scrollWidth") <= width


async def test_nothing_moves_for_who_wants_stillness(look: Look, bridge: Bridge) -> None:
    moving = "document.getAnimations().filter((animation) => animation.playState === 'running').length"
    bridge.emit(Received(5))
    async with look() as page:
        bridge.emit(Received(5000))
        await until(page, "document.getElementById('intake').dataset.pace >= 3")
        assert await page.run(moving) > 0
    async with look(still=True) as page:
        bridge.emit(Received(5000))
        await until(page, "document.getElementById('intake').dataset.pace >= 3")
        assert await page.run(moving) == 0


async def test_a_screen_reader_hears_of_the_state_and_of_nothing_else(look: Look, bridge: Bridge) -> None:
    count_changes = """(window.heard = 0, new MutationObserver(() => { heard += 1; })
        .observe(document.querySelector('[role=status]'), {childList: true, characterData: true, subtree: true}), 0)"""
    async with look() as page:
        live = "[...document.querySelectorAll('[role=status],[role=alert],[aria-live]')].map((element) => element.id)"
        assert await page.run(live) == ["state"]
        landmarks = "['header', 'main', 'nav', 'footer', 'h1'].map((name) => document.querySelectorAll(name).length)"
        assert await page.run(landmarks) == [1, 1, 1, 1, 1]
        assert await page.run(
            "[...document.querySelectorAll('section')].every((it) => it.ariaLabel || it.ariaLabelledByElements)"
        )
        await page.run(count_changes)
        bridge.emit(Received(5), counted(ready=5))
        await page.shows("#disk .word", "5 waiting")
        bridge.emit(counted(ready=6))
        await page.shows("#disk .word", "6 waiting")
        assert await page.run("heard") == 0
        bridge.emit(BrokerLost("refused", 1.0))
        await page.shows("#state", "degraded")
        assert await page.run("heard") == 1


async def test_the_focus_can_be_seen_wherever_the_keyboard_goes(look: Look, bridge: Bridge) -> None:
    bridge.dead = DEAD
    bridge.emit(counted(dead=4))
    async with look() as page:
        await page.shows("#dead", "refused")
        seen = []
        for _ in range(7):
            await page.press("Tab", 9)
            seen.append(
                await page.run(
                    "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineWidth]"
                )
            )
        assert [name for name, _ in seen] == ["BUTTON", "BUTTON", "SUMMARY", "A", "A", "A", "A"]
        assert {width for _, width in seen} == {"3px"}
