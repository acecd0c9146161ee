"""A real Chromium without a window, driven by its DevTools protocol: opens pages, runs scripts in them, looks at them.

Everything that a page must not do is kept for the test to look at: errors on the console, violations of the content
security policy, requests to another server.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import signal
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.harness import eventually

START_SECONDS = 60  # the first start on a busy machine
ANSWER_SECONDS = 30
SHOWN_SECONDS = 15
ENDED_SECONDS = 10
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
# Runs before every script of a page: the policy's own event, which the console does not show in every case.
NOTE_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


def chromium_command() -> str | None:
    """Return the command of the browser; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """`async with` starts the browser with a profile of its own and ends it; `open` gives a new tab."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._stack = AsyncExitStack()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def __aenter__(self) -> Self:
        profile = Path(self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        self._process = await asyncio.create_subprocess_exec(
            self._command,
            *FLAGS,
            f"--user-data-dir={profile}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stack.push_async_callback(self._end)
        port_file = profile / "DevToolsActivePort"
        await eventually(
            lambda: port_file.exists() and port_file.read_text().count("\n"), START_SECONDS, "Chromium's port"
        )
        port, path = port_file.read_text().split()
        client = await self._stack.enter_async_context(aiohttp.ClientSession())
        self._socket = await client.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0)
        reading = asyncio.create_task(self._read())
        self._stack.push_async_callback(asyncio.wait, [reading])
        self._stack.push_async_callback(self._socket.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(ENDED_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def open(self, width: int = 1100, height: int = 900, *, dark: bool = False, still: bool = False) -> Tab:
        """Return an empty tab of this size and colour scheme; `still`: its reader wants nothing to move."""
        target = await self.send("Target.createTarget", {"url": "about:blank"})
        attached = await self.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        tab = self._tabs[attached["sessionId"]] = Tab(self, attached["sessionId"], target["targetId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        await tab.send("Page.addScriptToEvaluateOnNewDocument", source=NOTE_VIOLATIONS)
        await tab.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        wishes = {"prefers-color-scheme": "dark" if dark else "light"}
        wishes["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        await tab.send("Emulation.setEmulatedMedia", features=features)
        return tab

    async def send(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Send one command and return its result; AssertionError if the browser refuses."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(command | ({"sessionId": session} if session else {}))
        async with asyncio.timeout(ANSWER_SECONDS):
            told = await answer
        assert "error" not in told, f"{method}: {told['error']}"
        return dict(told["result"])

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                answer = self._answers.pop(told["id"])
                if not answer.done():
                    answer.set_result(told)
            elif tab := self._tabs.get(told.get("sessionId", "")):
                tab.note(told["method"], told["params"])


class Tab:
    """One page. `errors` and `addresses` are what it said on the console and asked for so far."""

    def __init__(self, browser: Chromium, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        self.errors: list[str] = []
        self.addresses: list[str] = []

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Take one event of the browser in."""
        if method == "Network.requestWillBeSent":
            self.addresses.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning", "assert"}:
            self.errors.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol to this tab."""
        return await self._browser.send(method, parameters, self._session)

    async def go(self, url: str) -> None:
        """Load this page."""
        await self.send("Page.navigate", url=url)
        await eventually(lambda: self.run("document.readyState === 'complete'"), SHOWN_SECONDS, url)

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page, awaited if it is a promise."""
        told = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def text(self, selector: str) -> str:
        """Return the text that a reader sees in the first element that the selector finds."""
        return str(await self.run(f"document.querySelector({selector!r})?.innerText ?? ''"))

    async def shows(self, selector: str, words: str, timeout_seconds: float = SHOWN_SECONDS) -> str:
        """Wait until these words are there, and return the whole text."""

        async def look() -> str:
            text = await self.text(selector)
            return text if words in text else ""

        return await eventually(look, timeout_seconds, f"{words!r} in {selector}")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press and let go one key."""
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    async def type(self, text: str) -> None:
        """Put text where the cursor is."""
        await self.send("Input.insertText", text=text)

    async def screenshot(self) -> bytes:
        """Return how the whole page looks, as PNG."""
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def close(self) -> None:
        """Close the tab."""
        await self._browser.send("Target.closeTarget", {"targetId": self._target})
