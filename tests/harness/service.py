"""The service on the test's own event loop: what only tests from outside would see otherwise, in a tenth of the time.

Real signals, a real broker and a real queue; only the process is the test's. A test that needs a process of its own
(to kill it, to limit it) takes `BridgeProcess`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bridge.config import Settings, Supervision, load
from bridge.service import Service
from bridge.status import Status
from tests.harness import eventually
from tests.harness.bridge import STOP_SECONDS, environment

ALONE = Supervision(None, None)


class ServiceHere:
    """Reads `file` (empty at first) under the settings, at the start and at each SIGHUP; `async with` runs it."""

    def __init__(self, folder: Path, settings: Mapping[str, object], supervision: Supervision = ALONE) -> None:
        self.file = folder / "bridge.toml"
        self.file.touch()
        self._variables = environment(settings)
        self._service = Service(self._settings(), self._settings, supervision)
        self._running: asyncio.Task[None] | None = None
        self._log_level = logging.getLogger("bridge").level

    def _settings(self) -> Settings:
        return load(self.file, self._variables).settings

    @property
    def status(self) -> Status:
        return self._service._board.status

    @property
    def has_ended(self) -> bool:
        return self._running is None or self._running.done()

    async def ended(self) -> None:
        """Wait for the end; raises what ended it."""
        assert self._running
        async with asyncio.timeout(STOP_SECONDS):
            await self._running

    async def online(self) -> None:
        await eventually(lambda: self.has_ended or self.status.state == "online", 20, "online")
        if self.has_ended:
            await self.ended()

    async def terminate(self) -> None:
        """Ask for the orderly stop as systemd does, and wait for it."""
        assert not self.has_ended, "nobody would take the signal but this process"
        os.kill(os.getpid(), signal.SIGTERM)
        await self.ended()

    def hup(self) -> None:
        assert not self.has_ended
        os.kill(os.getpid(), signal.SIGHUP)

    def start(self) -> Self:
        self._running = asyncio.create_task(self._service.run(), name="service")
        return self

    async def __aenter__(self) -> Self:
        await self.start().online()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("bridge").setLevel(self._log_level)  # a reload may have set it, for the whole process
        if not self.has_ended:
            self._service._stop.set()
            await self.ended()
