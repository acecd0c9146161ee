"""Intake without disk or broker: grouping, order, and that nothing is confirmed that is not stored (I1, I5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
import pytest

from bridge import intake as intake_module
from bridge.admission import Arrival, Echo, Group, Outcome, Plain
from bridge.clock import Boot
from bridge.config import Settings
from bridge.disk_queue import DiskQueue
from bridge.errors import DiskFailedError, DiskFullError
from bridge.events import (
    ConflictSeen,
    DiskRecovered,
    DiskTroubled,
    Echoed,
    Event,
    Received,
    RequestRefused,
    Stored,
    Withheld,
)
from bridge.intake import Intake
from bridge.message import Publish, Request
from bridge.topics import own_trees
from bridge.wire import TooLarge

T = TypeVar("T")


class FakeDisk:
    """Answers when it is let to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.fail: list[Exception] = []
        self.woken = 0

    def run(self, verb: Callable[[DiskQueue], T]) -> asyncio.Future[T]:
        return asyncio.ensure_future(self._run(verb))

    async def _run(self, verb: Callable[[DiskQueue], T]) -> T:
        await self.open.wait()
        if self.fail:
            raise self.fail.pop(0)
        return verb(None)  # type: ignore[arg-type] # the store below does not look at it

    def wake(self) -> None:
        self.woken += 1


class FakeStore:
    """Stores whatever comes, keeping the groups in order."""

    def __init__(self) -> None:
        self.session = 0
        self.groups: list[Group] = []
        self.conflicts: tuple[tuple[str, str], ...] = ()

    def stored(self) -> None:
        """Nothing to remember."""

    def __call__(self, _queue: object, group: Group) -> Outcome:
        self.groups.append(group)
        stored = sum(not isinstance(item, TooLarge) for item in group.items)
        return Outcome(stored, len(self.conflicts), self.conflicts)


class FakeBroker:
    def __init__(self) -> None:
        self.confirmed: list[tuple[list[int], int]] = []
        self.paused = False
        self.epoch: int | None = None  # None: whatever they came on still stands

    def confirm(self, packet_ids: list[int], epoch: int) -> bool:
        if self.epoch not in (None, epoch):
            return False
        self.confirmed.append((packet_ids, epoch))
        return True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Bench:
    """An intake between a fake broker and a fake disk."""

    def __init__(self, queue: dict[str, object] | None = None, **settings: object) -> None:
        upload = {"url": "http://127.0.0.1:1/"}
        parsed = Settings.model_validate({"upload": upload, "intake": settings, "queue": queue or {}})
        self.wall = 1_790_000_000.0
        self.disk, self.broker, self.events = FakeDisk(), FakeBroker(), list[Event]()
        self.intake = Intake(
            parsed.intake,
            parsed.queue,
            source_name="edge/x",
            own_trees=own_trees("edge/buffer/status"),
            disk=self.disk,
            emit=self.events.append,
            wall=lambda: self.wall,
            boot=Boot("0c2e", lambda: 12.5),
            random_bits=lambda _: 1,
        )
        self.intake.source = self.broker
        self.store = FakeStore()
        self.intake._store = self.store  # type: ignore[assignment] # the real one needs a database

    def saw(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(bench.intake.run())
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def publishes(*packet_ids: int, payload: bytes = b"1") -> list[Publish]:
    return [Publish("t", payload, packet_id, dup=False) for packet_id in packet_ids]


async def test_a_group_is_confirmed_in_order_of_arrival_after_it_was_stored() -> None:
    bench = Bench(linger_ms=0)
    bench.disk.open.clear()
    async with running(bench):
        bench.intake.receive(publishes(3, 1), 7)
        bench.intake.receive(publishes(2), 7)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert bench.broker.confirmed == []
        bench.disk.open.set()
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([3, 1, 2], 7)]
    assert bench.disk.woken == 1
    assert [event.messages for event in bench.saw(Received)] == [2, 1]
    assert bench.saw(Stored) == [Stored(3, 0, 0)]


async def test_messages_of_two_connections_never_share_a_group() -> None:
    bench = Bench(linger_ms=0)
    async with running(bench):
        bench.intake.receive(publishes(1, 2), 7)
        bench.intake.receive(publishes(1), 9)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([1, 2], 7), ([1], 9)]


async def test_a_full_disk_leaves_the_group_unconfirmed_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_RETRY_SECONDS", 0)
    bench = Bench(linger_ms=0)
    bench.disk.fail = [DiskFullError("no room"), DiskFullError("no room")]
    async with running(bench):
        bench.intake.receive(publishes(1), 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([1], 7)]
    told = [event for event in bench.events if isinstance(event, (DiskTroubled, DiskRecovered))]
    assert told == [DiskTroubled("full", "no room"), DiskTroubled("full", "no room"), DiskRecovered()]


async def test_a_failed_disk_ends_the_task_and_confirms_nothing() -> None:
    bench = Bench(linger_ms=0)
    bench.disk.fail = [DiskFailedError("fsync")]
    async with running(bench) as task:
        bench.intake.receive(publishes(1), 7)
        with pytest.raises(DiskFailedError):
            await asyncio.wait_for(asyncio.shield(task), 1)
    assert bench.broker.confirmed == []


async def test_too_large_ones_are_handed_on_without_payload_and_confirmed_in_their_place() -> None:
    bench = Bench(linger_ms=0, max_payload_bytes=10)
    async with running(bench):
        bench.intake.receive([*publishes(1), *publishes(2, payload=b"x" * 11), TooLarge("t", 3, 99), *publishes(4)], 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([1, 2, 3, 4], 7)]
    items = [item for group in bench.store.groups for item in group.items]
    assert [item for item in items if isinstance(item, TooLarge)] == [TooLarge("t", 2, 11), TooLarge("t", 3, 99)]


@pytest.mark.parametrize("topic", ["edge/buffer/status", "edge/buffer/status/state", "edge/buffer/receipts/x"])
async def test_what_the_bridge_publishes_itself_is_confirmed_in_its_place_and_not_stored(topic: str) -> None:
    bench = Bench(linger_ms=0)
    async with running(bench):
        bench.intake.receive([*publishes(1), Publish(topic, b"online", 2, dup=False), *publishes(3)], 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([1, 2, 3], 7)]
    (group,) = bench.store.groups
    assert [item for item in group.items if not isinstance(item, Arrival)] == [Echo(2)]
    assert bench.saw(Echoed) == [Echoed(topic)]


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (Request("", b"1"), None),
        (Request("edge/buffer/receipts/+", b"1"), "no '#' and no '+'"),
        (Request("edge/elsewhere/x", b"1"), "it is not under edge/buffer/receipts/"),
        (Request("edge/buffer/receipts/x", b"1" * 5000), "the correlation data have more than"),
        (Request("edge/buffer/receipts/" + "x" * 2000, b"1"), "characters"),
    ],
)
async def test_a_request_that_may_not_be_answered_is_told_of_and_its_message_goes_its_way(
    request_: Request, fault: str | None
) -> None:
    bench = Bench(linger_ms=0)
    good = Request("edge/buffer/receipts/x", b"1")
    async with running(bench):
        for asked in (request_, good):
            bench.intake.receive([Publish("t", b"1", 1, dup=False, request=asked)], 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    items = [item for group in bench.store.groups for item in group.items if isinstance(item, Arrival)]
    assert [item.request for item in items] == [None, good]
    refused = bench.saw(RequestRefused)
    assert [fault in event.reason for event in refused] == ([True] if fault else [])


MANY = [Publish(f"t/{n % 3}", b'{"label":"crack","n":%d}' % n, n, dup=False) for n in range(1, 41)]
NOT_PLAIN = [
    Publish("t", b'{"prediction_id":"a"}', 9, dup=False),
    Publish("t", b"no JSON", 9, dup=False),
    Publish("t", b'{"a":\n1}', 9, dup=False),
    Publish("t", b"17", 9, dup=False),
    Publish("t", b"[1]", 0, dup=False),
    Publish("t", b"[1]", 9, dup=True),
    Publish("t", b"[1]", 9, dup=False, user_id="a"),
    Publish("t", b"[1]", 9, dup=False, content_type="application/json"),
    Publish("t", b"[1]", 9, dup=False, expiry_seconds=0),
    Publish("t", b"[1]", 9, dup=False, request=Request("edge/buffer/receipts/x", b"1")),
    Publish("t", b'"%b"' % (b"x" * 100), 9, dup=False),
    Publish("edge/buffer/status", b"[1]", 9, dup=False),
    TooLarge("t", 9, 1 << 30),
]


def pending(bench: Bench) -> list[tuple[Any, ...]]:
    """What waits to be stored, message by message."""
    found: list[tuple[Any, ...]] = []
    for item in bench.intake._pending:
        if isinstance(item, Plain):
            columns = zip(item.events, item.packet_ids, strict=True)
            found += [(event, packet_id, item.received_at, item.session) for event, packet_id in columns]
        elif isinstance(item, Arrival):
            found.append((item.data, item.packet_id, item.received_at, item.session))
        else:
            found.append(item)
    return found


@pytest.mark.parametrize("odd", [None, *NOT_PLAIN])
def test_many_that_come_together_become_what_each_would_alone(
    odd: Publish | TooLarge | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [*MANY[:20], *([odd] if odd else []), *MANY[20:]]
    together, singly = (Bench(max_payload_bytes=50) for _ in range(2))
    together.intake.receive(messages, 7)
    monkeypatch.setattr(intake_module, "_PLAIN_MIN", 1 << 20)
    singly.intake.receive(messages, 7)
    assert [*map(type, together.intake._pending)] == ([Plain] if odd is None else [*map(type, singly.intake._pending)])
    assert pending(together) == pending(singly)
    assert together.intake._held_bytes == singly.intake._held_bytes > 0
    assert together.events == singly.events


async def test_what_came_together_is_confirmed_in_order_and_given_back_whole() -> None:
    bench = Bench(linger_ms=0)
    async with running(bench):
        bench.intake.receive(publishes(99), 7)
        bench.intake.receive(MANY, 7)
        bench.intake.receive(publishes(98), 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([99, *range(1, 41), 98], 7)]
    assert bench.intake._held_bytes == 0


async def test_a_group_that_is_full_does_not_linger_for_more_of_those_that_came_together() -> None:
    bench = Bench(linger_ms=60_000, batch_messages=40)
    async with running(bench):
        bench.intake.receive(MANY, 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([*range(1, 41)], 7)]


@pytest.mark.parametrize(
    ("batch_messages", "max_messages", "sizes"),
    [(1000, 0, [2000, 2000, 1500]), (5000, 0, [5000, 500]), (1000, 1200, [1000] * 5 + [500])],
)
async def test_what_piled_up_is_stored_in_groups_of_bounded_size(
    batch_messages: int, max_messages: int, sizes: list[int]
) -> None:
    bench = Bench(queue={"max_messages": max_messages}, linger_ms=0, batch_messages=batch_messages)
    bench.disk.open.clear()
    ids = [*range(1, 5501)]
    async with running(bench):
        for start in range(0, 5500, 500):
            bench.intake.receive([Publish("t", b"{}", n, dup=False) for n in ids[start : start + 500]], 7)
        bench.disk.open.set()
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert [len(group.packet_ids) for group in bench.store.groups] == sizes
    assert [packet_id for group in bench.store.groups for packet_id in group.packet_ids] == ids
    assert bench.intake._held_bytes == 0


async def test_a_reconnect_gives_up_what_came_together_and_comes_again() -> None:
    bench = Bench(linger_ms=0, max_payload_bytes=1_000_000)
    large = [Publish("t", b'{"x":"%b"}' % (b"x" * 900_000), n, dup=False) for n in range(1, 21)]
    bench.disk.open.clear()
    async with running(bench):
        bench.intake.receive(large, 7)
        bench.intake.receive(MANY, 9)
        bench.disk.open.set()
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert [(group.epoch, len(group.packet_ids)) for group in bench.store.groups] == [(9, 40)]
    assert bench.intake._held_bytes == 0


async def test_a_conflict_is_told_of_once_a_topic() -> None:
    bench = Bench(linger_ms=0)
    bench.store.conflicts = (("t", "7"), ("t", "8"), ("u", "7"))
    async with running(bench):
        for _ in range(2):
            bench.intake.receive(publishes(1), 7)
            await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.saw(ConflictSeen) == [ConflictSeen("t", "7"), ConflictSeen("u", "7")]


async def test_the_ids_it_gives_are_different_and_in_order() -> None:
    bench = Bench()
    ids = [own_id for count in (1, 60, 0, 39) for own_id in bench.intake._made_ids(count, 1.8e9)]
    assert len(ids) == 100
    assert ids == sorted(set(ids))


async def test_topics_that_never_come_again_are_forgotten() -> None:
    bench = Bench()
    bench.intake.receive([Publish(f"t/{number}", b"1", 0, dup=False) for number in range(10_000)], 7)
    assert len(bench.intake._middles) <= 4096


async def test_qos_0_messages_are_stored_and_not_confirmed() -> None:
    bench = Bench(linger_ms=0)
    async with running(bench):
        bench.intake.receive(publishes(0, 0), 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == []
    assert [len(group.items) for group in bench.store.groups] == [2]


async def test_what_was_stored_after_its_connection_ended_is_counted_and_not_confirmed() -> None:
    bench = Bench(linger_ms=0)
    bench.broker.epoch = 8
    async with running(bench):
        bench.intake.receive(publishes(1, 2), 7)
        bench.intake.receive(publishes(1), 8)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([1], 8)]
    assert bench.saw(Withheld) == [Withheld(2)]


async def test_a_reconnect_with_much_in_hand_gives_up_what_comes_again_and_keeps_what_does_not() -> None:
    bench = Bench(linger_ms=0, max_payload_bytes=10_000_000)
    large = b'"%b"' % (b"x" * 9_000_000)
    bench.disk.open.clear()
    async with running(bench):
        bench.intake.receive(publishes(1, 0, 2, payload=large), 7)
        bench.intake.receive(publishes(1, 2), 9)
        bench.disk.open.set()
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert [(group.epoch, len(group.items), group.packet_ids) for group in bench.store.groups] == [
        (7, 1, []),
        (9, 2, [1, 2]),
    ]
    assert not bench.broker.paused
    assert bench.intake._held_bytes == 0


async def test_reading_pauses_while_too_much_is_held_and_resumes_when_it_is_stored() -> None:
    bench = Bench(linger_ms=0, max_payload_bytes=10_000_000)
    bench.disk.open.clear()
    async with running(bench):
        bench.intake.receive(publishes(1, 2, payload=b'"%b"' % (b"x" * 9_000_000)), 7)
        assert bench.broker.paused
        bench.disk.open.set()
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert not bench.broker.paused


async def test_a_full_group_does_not_linger() -> None:
    bench = Bench(linger_ms=60_000, batch_messages=3)
    async with running(bench):
        bench.intake.receive(publishes(1, 2), 7)
        await asyncio.sleep(0)
        bench.intake.receive(publishes(3), 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.confirmed == [([1, 2, 3], 7)]


async def test_what_somebody_else_paused_stays_paused() -> None:
    bench = Bench(linger_ms=0)
    bench.broker.pause_reading()  # the service, at shutdown
    async with running(bench):
        bench.intake.receive(publishes(1), 7)
        await asyncio.wait_for(bench.intake.drained(), 1)
    assert bench.broker.paused


async def test_what_comes_before_the_clock_is_set_is_marked_with_boot_and_seconds_and_what_comes_after_is_not() -> None:
    bench = Bench()
    bench.wall = 600.0
    bench.intake.receive(publishes(1), 7)
    bench.wall = 1_790_000_000.0
    bench.intake.receive(publishes(2), 7)
    events = [orjson.loads(item.data) for item in bench.intake._pending if isinstance(item, Arrival)]
    assert [(event["time"], event.get("clockunset")) for event in events] == [
        ("1970-01-01T00:10:00.000000Z", "0c2e/12.500000"),
        ("2026-09-21T14:13:20.000000Z", None),
    ]
