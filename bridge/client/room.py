"""Room: the bound of what a client holds, given to those who ask in the order in which they asked (I5).

Before the outbox. A place is taken before a message is accepted and given back when it is done with; who waits gets
the place itself, not a hint that there may be one, so nobody is overtaken and order is kept.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """So many messages and bytes of payload. A single message that is larger than all of it may in alone."""

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self._messages_max, self._bytes_max = messages_max, bytes_max
        self.messages = self.size_bytes = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._is_closed = False

    def take(self, size_bytes: int) -> bool:
        """Take a place if there is one and nobody waits for it."""
        if self._waiting or not self._fits(size_bytes):
            return False
        self._add(size_bytes)
        return True

    async def wait(self, size_bytes: int) -> None:
        """Return with a place taken, or, once closed, at once."""
        if self._is_closed or self.take(size_bytes):
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, size_bytes))
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.give(size_bytes)  # it was ours and we do not take it
            raise

    def give(self, size_bytes: int) -> None:
        """Give a place back."""
        self.messages -= 1
        self.size_bytes -= size_bytes
        self._admit()

    def reset(self) -> None:
        """Count anew: nothing is held any more."""
        self.messages = self.size_bytes = 0
        self._admit()

    def close(self) -> None:
        """Let all who wait go, without a place."""
        self._is_closed = True
        self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._is_closed or self._fits(self._waiting[0][1])):
            place, size_bytes = self._waiting.popleft()
            if not place.done():
                self._add(size_bytes)
                place.set_result(None)

    def _add(self, size_bytes: int) -> None:
        self.messages += 1
        self.size_bytes += size_bytes

    def _fits(self, size_bytes: int) -> bool:
        fits = self.messages < self._messages_max and self.size_bytes + size_bytes <= self._bytes_max
        return fits or self.messages == 0
