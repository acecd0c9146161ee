"""Room is given in the order in which it was asked for, and a place that nobody takes goes to the next."""

from __future__ import annotations

import asyncio

from bridge.client.room import Room


async def waiting(room: Room, size_bytes: int = 1) -> asyncio.Task[None]:
    task = asyncio.create_task(room.wait(size_bytes))
    await asyncio.sleep(0)
    return task


async def test_nobody_is_overtaken() -> None:
    room = Room(1, 100)
    assert room.take(1)
    first, second = await waiting(room), await waiting(room)
    room.give(1)
    assert not room.take(1)  # the place is the first one's, though it has not run yet
    await first
    assert not second.done()
    room.give(1)
    await second


async def test_a_place_that_its_owner_gave_up_goes_to_the_next() -> None:
    room = Room(1, 100)
    assert room.take(1)
    first, second, third = await waiting(room), await waiting(room), await waiting(room)
    first.cancel()  # while it waits
    await asyncio.sleep(0)
    room.give(1)
    second.cancel()  # after it was given the place, before it could run
    await asyncio.gather(first, second, return_exceptions=True)
    await third
    assert (room.messages, room.size_bytes) == (1, 1)


async def test_bytes_count_too_and_a_giant_may_in_alone() -> None:
    room = Room(10, 100)
    assert room.take(60)
    assert not room.take(60)
    giant = await waiting(room, 500)
    room.give(60)
    await giant
    assert not room.take(1)


async def test_closing_lets_all_go() -> None:
    room = Room(1, 100)
    assert room.take(1)
    waiters = [await waiting(room) for _ in range(3)]
    room.close()
    await asyncio.gather(*waiters)
    await room.wait(1)
