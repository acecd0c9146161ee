"""The control socket: the operator's commands on the queue of a running bridge, whose file nobody else may open.

`<queue.path>/control.sock`, for this user alone (0600). A request is a line of JSON, and so is its answer: a page and
after what to go on, or an error with a hint; `bytes` says how many bare bytes follow it (lines of an export). An import
is `{"import": N}` and N bytes of lines. Whoever asks sets the pace; each page is one verb of the disk thread, so
intake goes on between two pages (I7). What a command does is the disk queue's business (`bridge.disk_queue.commands`),
and the importer's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from bridge.disk_queue import SOCKET_NAME, DiskQueue, Page, Request, answer
from bridge.errors import BridgeError, FaultError, OperatorError
from bridge.importer import GROUP_BYTES, LINE_BYTES_MAX, Imported, Importer, Parcel

if TYPE_CHECKING:
    from bridge.config import QueueSettings

_REQUEST_BYTES_MAX = 1 << 20
_TALKS_MAX = 32  # each may take a descriptor and, with half an import, some megabytes (I5)
_BEGINNING_STEPS = 3  # of the loop, from a connection's acceptance to its conversation
_REFUSAL_SECONDS = 1.0
_TOO_MANY = {
    "error": f"the bridge talks to {_TALKS_MAX} others already, or is stopping",
    "hint": "is there a script that leaves `edge-bridge queue` behind? End those processes",
    "exit_status": FaultError.exit_status,
}
IMPORT_BYTES_MAX = GROUP_BYTES + LINE_BYTES_MAX
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

    def __init__(self, bounds: QueueSettings, disk: Disk) -> None:
        self._folder, self._disk = bounds.path, disk
        self._importer = Importer(bounds)
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._stopping = False

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
        """Stop listening and end every conversation, also one that was accepted and has not begun."""
        self._stopping = True
        if self._server:
            for listener in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            for _ in range(_BEGINNING_STEPS):
                await asyncio.sleep(0)  # a closed server would drop what was accepted just now, and leave it open
            self._server.close()
            with suppress(FileNotFoundError):
                (self._folder / SOCKET_NAME).unlink()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping or len(self._talks) >= _TALKS_MAX:
            await _refuse(reader, writer)
            return
        if talk := asyncio.current_task():
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)
        # A line that is too long is a ValueError, an import that breaks off an EOFError.
        with closing(writer), suppress(ConnectionError, EOFError, ValueError, asyncio.CancelledError):
            while line := await reader.readline():
                writer.write(await self._reply(line, reader))
                await writer.drain()

    async def _reply(self, line: bytes, reader: asyncio.StreamReader) -> bytes:
        try:
            if announced := _announced(line):
                reply = await self._import(await reader.readexactly(announced))
            else:
                request = Request.parse(line)  # here and not in the disk thread: an error there undoes a whole group
                reply = await self._disk.run(lambda queue: _page(queue, request))
        except BridgeError as error:
            return _line({"error": error.message, "hint": error.hint, "exit_status": error.exit_status})
        self._disk.wake()  # it may have requeued
        return reply

    async def _import(self, lines: bytes) -> bytes:
        parcel = await asyncio.to_thread(Parcel.of, lines)
        return _line((await self._disk.run(lambda queue: self._importer.store(queue, parcel)))._asdict())


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hear the request out, but not for long: whoever is closed while it speaks does not hear why."""
    with closing(writer):
        with suppress(ConnectionError, ValueError, TimeoutError):
            async with asyncio.timeout(_REFUSAL_SECONDS):
                await reader.readline()
        writer.write(_line(_TOO_MANY))


def _announced(line: bytes) -> int:
    """Return how many bytes of an import follow; 0: it is another request."""
    try:
        announced = orjson.loads(line)["import"]
    except (ValueError, TypeError, KeyError):
        return 0
    return announced if isinstance(announced, int) and 0 < announced <= IMPORT_BYTES_MAX else 0


def _page(queue: DiskQueue, request: Request) -> bytes:
    items, following, body = answer(queue, request)
    return _line({"items": items, "next": following, "bytes": len(body)}) + body


def _line(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"


class Conversation:
    """The command's end, with a running bridge, which drains its queue meanwhile."""

    drains = True

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def ask(self, request: Request) -> Page:
        """Return a page; raises what the bridge says is wrong."""
        reply = self._say(request.line())
        return Page(reply["items"], reply["next"], self._lines.read(reply["bytes"]))

    def bring(self, lines: bytes) -> Imported:
        """Import lines, at most `IMPORT_BYTES_MAX` bytes of them; return what became of them."""
        return Imported(**self._say(_line({"import": len(lines)}) + lines))

    def _say(self, request: bytes) -> dict[str, Any]:
        try:
            self._connection.sendall(request)
            line = self._lines.readline()
        except OSError as error:
            raise FaultError(f"the bridge does not answer: {error.strerror or error}", "is it stopping?") from error
        if not line:
            raise FaultError("the bridge ended the conversation", "it was stopped, or died; ask again")
        reply: dict[str, Any] = orjson.loads(line)
        if "error" in reply:
            kind = OperatorError if reply["exit_status"] == OperatorError.exit_status else FaultError
            raise kind(reply["error"], reply["hint"])
        return reply

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
