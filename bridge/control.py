"""The control socket: the operator's commands on the queue of a running bridge, whose file nobody else may open.

`<queue.path>/control.sock`, for this user alone (0600). A request is a line of JSON, and so is its answer: a page and
after what to go on, or an error with a hint. Whoever asks sets the pace; each page is one verb of the disk thread, so
intake goes on between two pages (I7). What a command does is the disk queue's business (`bridge.disk_queue.commands`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

from bridge.disk_queue import SOCKET_NAME, DiskQueue, Request, answer
from bridge.errors import BridgeError, FaultError, OperatorError

_REQUEST_BYTES_MAX = 1 << 20
_PATH_BYTES_MAX = 107  # sun_path of unix(7), less the NUL
_ANSWER_SECONDS = 30.0

T = TypeVar("T")


class Disk(Protocol):
    """What the control socket needs of the disk thread."""

    def run(self, verb: Callable[[DiskQueue], T]) -> asyncio.Future[T]:
        """Run a verb in the next transaction."""

    def wake(self) -> None:
        """Tell takers that there may be something."""


class Control:
    """The bridge's end: `start`, `stop`."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, in the place of whatever a killed bridge left; OperatorError if that cannot be."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(self._folder) as address:
                with suppress(FileNotFoundError):
                    (self._folder / SOCKET_NAME).unlink()
                listener.bind(address)
            (self._folder / SOCKET_NAME).chmod(0o600)  # nobody can connect before it listens
        except OSError as error:
            listener.close()
            raise OperatorError(
                f"no control socket in {self._folder}: {error.strerror or error}",
                "`edge-bridge queue` works once the bridge is stopped; or set queue.path to a local file system",
            ) from error
        self._server = await asyncio.start_unix_server(self._talk, sock=listener, limit=_REQUEST_BYTES_MAX)

    async def stop(self) -> None:
        """Stop listening and end every conversation."""
        if self._server:
            self._server.close()
            with suppress(FileNotFoundError):
                (self._folder / SOCKET_NAME).unlink()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if talk := asyncio.current_task():
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)
        # A line that is too long is a ValueError.
        with closing(writer), suppress(ConnectionError, ValueError, asyncio.CancelledError):
            while line := await reader.readline():
                writer.write(await self._reply(line))
                await writer.drain()

    async def _reply(self, line: bytes) -> bytes:
        try:
            request = Request.parse(line)  # here and not in the disk thread: an error there undoes a whole group
            reply = await self._disk.run(lambda queue: _page(queue, request))
        except BridgeError as error:
            return _line({"error": error.message, "hint": error.hint, "exit_status": error.exit_status})
        self._disk.wake()  # it may have requeued
        return reply


def _page(queue: DiskQueue, request: Request) -> bytes:
    return _line(answer(queue, request)._asdict())


def _line(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"


class Conversation:
    """The command's end, with a running bridge."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def ask(self, request: Request) -> tuple[list[dict[str, Any]], int | None]:
        """Return a page; raises what the bridge says is wrong."""
        try:
            self._connection.sendall(request.line())
            line = self._lines.readline()
        except OSError as error:
            raise FaultError(f"the bridge does not answer: {error.strerror or error}", "is it stopping?") from error
        if not line:
            raise FaultError("the bridge ended the conversation", "it was stopped, or died; ask again")
        reply = orjson.loads(line)
        if "error" in reply:
            kind = OperatorError if reply["exit_status"] == OperatorError.exit_status else FaultError
            raise kind(reply["error"], reply["hint"])
        return reply["items"], reply["next"]

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._connection.close()


def connect(folder: Path) -> Conversation | None:
    """Return a conversation with the bridge that runs on this folder; None if none listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        with _address(folder) as address:
            connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):  # none, or one that a killed bridge left
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise OperatorError(
            f"{folder / SOCKET_NAME} cannot be reached: {error.strerror}", "are you the user that the bridge runs as?"
        ) from error
    return Conversation(connection)


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Yield the socket's address, by way of the open folder where the path is too long for one."""
    path = str(folder / SOCKET_NAME)
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
