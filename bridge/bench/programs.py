"""Child processes of the bench: started in a private folder, always ended, and asked things by line if they are ours.

Nothing of the user's environment reaches them, so that every bench measures the same. They are in sessions of their
own: Ctrl-C is the bench's business, and leaving the context kills what still runs. `run` sees to it that it is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import bridge
from bridge.bench.usage import Usage
from bridge.errors import FaultError

_READY_SECONDS = 60.0  # a generator of millions of messages builds them first
_LINE_BYTES_MAX = 1 << 26  # the latencies of a phase come in one line
_LAST_WORDS_LINES = 2  # an error of ours is a line and a hint
_END_SECONDS = 2.0
TERMINATED = 143  # as shells report SIGTERM
ENDING = (signal.SIGTERM, signal.SIGHUP)  # SIGINT is asyncio's own
ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": str(Path(bridge.__file__).parents[1])}
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end. A signal to end cancels it: CancelledError is raised once all that it had started has ended.

    Another exception out of the handler would not do: asyncio then cancels its own tasks too, and one that was about to
    connect a new process's pipes never tells that the process is gone.
    """

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel(*_: object) -> None:
            loop.call_soon_threadsafe(task.cancel if task else loop.stop)

        before = {number: signal.signal(number, cancel) for number in ENDING}
        try:
            return await work
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return asyncio.run(cancellable())


class Program:
    """One process from `async with` to its end; its standard error is `<name>.log` in the folder."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, *, talks: bool = False) -> None:
        self.name = name
        self._command, self._folder, self._talks = tuple(command), folder, talks
        self._process: Process | None = None
        self.started_ns = 0  # when its program was about to be executed

    def wrap(self, *words: str) -> None:
        """Put a program before it that becomes it, as `strace -D` does: the process is still the one measured."""
        self._command = (*words, *self._command)

    @property
    def pid(self) -> int:
        return self._running.pid

    def usage(self) -> Usage:
        """Return what the process has used so far."""
        return Usage.of(self.pid)

    def check(self) -> None:
        """Raise FaultError if it has ended."""
        if self._running.returncode is not None:
            raise self._ended()

    async def __aenter__(self) -> Self:
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self.started_ns = time.monotonic_ns()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE if self._talks else DEVNULL,
                stdout=PIPE if self._talks else log,
                stderr=log,
                cwd=self._folder,
                env=ENVIRONMENT,
                start_new_session=True,
                limit=_LINE_BYTES_MAX,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            self._running.kill()
        await self._running.wait()

    @property
    def _running(self) -> Process:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    def _ended(self) -> FaultError:
        text = (self._folder / f"{self.name}.log").read_text(encoding="utf-8", errors="replace")
        last = text.splitlines()[-_LAST_WORDS_LINES:] or ["none"]
        return FaultError(f"{self.name} ended in the middle of the bench", f"its last words: {' | '.join(last)}")


class Several(Program):
    """Some programs that are measured as one."""

    def __init__(self, programs: Sequence[Program]) -> None:
        super().__init__(programs[0].name, (), Path())
        self._programs = tuple(programs)
        self._stack = AsyncExitStack()

    def wrap(self, *words: str) -> None:
        for program in self._programs:
            program.wrap(*words)

    def usage(self) -> Usage:
        return Usage.sum([program.usage() for program in self._programs])

    def check(self) -> None:
        for program in self._programs:
            program.check()

    async def __aenter__(self) -> Self:
        for program in self._programs:
            await self._stack.enter_async_context(program)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


class Talker(Program):
    """A process of ours that speaks the line protocol of `dialogue`."""

    def __init__(self, module: str, folder: Path, **options: object) -> None:
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-m", f"bridge.bench.{module}", *words]
        super().__init__(module, command, folder, talks=True)
        self.greeting: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            self.greeting = await asyncio.wait_for(self._hear(), _READY_SECONDS)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if stdin := self._running.stdin:
                stdin.close()  # that is the end of the dialogue
                with suppress(TimeoutError):
                    async with asyncio.timeout(_END_SECONDS):
                        await self._running.wait()
        finally:
            await super().__aexit__(kind, error, trace)

    async def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        if self._running.stdin is None:
            raise RuntimeError("a talker has a standard input")
        try:
            self._running.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            await self._running.stdin.drain()
        except ConnectionError:
            raise self._ended() from None
        return await self._hear()

    async def _hear(self) -> dict[str, Any]:
        if self._running.stdout is None:
            raise RuntimeError("a talker has a standard output")
        line = await self._running.stdout.readline()
        if not line:
            await self._running.wait()
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer
