"""A TCP proxy that breaks the connection between two programs in the ways networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.harness import LoopThread, close_server

PIECE_BYTES = 65_536
FIRST_BYTES_MAX = 4_096
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close sends RST


class TcpProxy:
    """Listens on `port` and forwards to a loopback port, from a thread of its own.

    Switches, to be set at any time: `black_hole` keeps connections open and forwards nothing (what came meanwhile
    goes on when it ends), `refuse` resets new connections, `delay_to_target_seconds` and `delay_to_source_seconds`
    hold every piece back. `cut()` resets all connections. `first_bytes` has the beginning of what each connection
    sent, in the order in which they came. `tap` hears of every piece as it passes: the connection's place in that
    order, whether it goes to the target, and the piece.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.refuse = False
        self.delay_to_target_seconds = 0.0
        self.delay_to_source_seconds = 0.0
        self.first_bytes: list[bytearray] = []
        self.tap: Callable[[int, bool, bytes], None] = lambda *_: None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = LoopThread("tcp-proxy")

    @property
    def black_hole(self) -> bool:
        return not self._flowing.is_set()

    @black_hole.setter
    def black_hole(self, on: bool) -> None:
        self._thread.loop.call_soon_threadsafe(self._flowing.clear if on else self._flowing.set)

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return len(self.first_bytes)

    def cut(self) -> None:
        """Reset every connection, both sides."""
        self._thread.run(self._cut())

    def start(self) -> Self:
        self.port = self._thread.run(self._listen())
        return self

    def stop(self) -> None:
        self._thread.run(self._close())
        self._thread.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        await close_server(self._server)
        await self._cut()

    async def _cut(self) -> None:
        for writer in self._writers:
            _reset(writer)

    async def _serve(self, source: asyncio.StreamReader, to_source: asyncio.StreamWriter) -> None:
        if self.refuse:
            _reset(to_source)
            return
        number = len(self.first_bytes)
        self.first_bytes.append(bytearray())
        try:
            target, to_target = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _reset(to_source)
            return
        ends = {to_source, to_target}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward_to_target(source, to_target, number))
                group.create_task(self._forward_to_source(target, to_source, number))
        finally:
            self._writers -= ends
            for writer in ends:
                writer.close()

    async def _forward_to_target(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        first = self.first_bytes[number]
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                first += piece[: FIRST_BYTES_MAX - len(first)]
                self.tap(number, True, piece)
                await self._pass_on(piece, writer, self.delay_to_target_seconds)
        _end(writer)

    async def _forward_to_source(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                self.tap(number, False, piece)
                await self._pass_on(piece, writer, self.delay_to_source_seconds)
        _end(writer)

    async def _pass_on(self, piece: bytes, writer: asyncio.StreamWriter, delay_seconds: float) -> None:
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        await self._flowing.wait()
        writer.write(piece)
        await writer.drain()


def _end(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
