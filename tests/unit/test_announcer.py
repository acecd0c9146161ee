"""When which status topic is published. Time is the event loop's own and is turned forward, never waited for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from bridge.announcer import Announcer, StatusBoard
from bridge.events import BrokerConnected, BrokerLost, CloudAnswered, CloudFailed, QueueCounted, Received
from bridge.status import Now, Status

PREFIX = "edge/buffer/status"
START = Now(0.0, 1_790_000_000.0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._skipped_seconds = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]  # asyncio's own name
        really_select = selector.select

        def select(timeout: float | None = None) -> Any:
            self._skipped_seconds += timeout or 0.0
            return really_select(0)

        selector.select = select

    def time(self) -> float:
        return self._skipped_seconds


class Broker:
    """Remembers what was published and when; away while `there` is false."""

    def __init__(self) -> None:
        self.there = True
        self.published: list[tuple[float, str, bytes]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        assert retain
        if self.there:
            self.published.append((asyncio.get_running_loop().time(), topic, payload))
        return self.there

    def times(self, topic: str) -> list[float]:
        return [round(at, 2) for at, published_topic, _ in self.published if published_topic == topic]

    def last(self, topic: str) -> bytes:
        return next(payload for _, published_topic, payload in reversed(self.published) if published_topic == topic)

    def holds(self, topic: str) -> bool:
        return any(published_topic == topic for _, published_topic, _ in self.published)


Story = Callable[[Broker, StatusBoard, Announcer], Awaitable[None]]


def play(story: Story, *, connected: bool = True) -> tuple[Broker, StatusBoard]:
    """Tell the story while an announcer with an interval of 5 s runs; checks that it is still running at the end."""

    async def main() -> tuple[Broker, StatusBoard]:
        loop = asyncio.get_running_loop()
        board = StatusBoard(
            Status.starting("1.2.3", "press-4", START), lambda: Now(loop.time(), START.wall + loop.time())
        )
        board.emit(BrokerConnected(session_present=True, reconnects=0))
        broker = Broker()
        broker.there = connected
        announcer = Announcer(broker.publish, board, PREFIX, 5.0)
        running = asyncio.create_task(announcer.run())
        await story(broker, board, announcer)
        assert not running.done() or running.exception() is None
        running.cancel()
        await asyncio.wait([running])
        return broker, board

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


def test_the_object_is_published_at_the_start_and_every_interval() -> None:
    async def story(_broker: Broker, _board: StatusBoard, _announcer: Announcer) -> None:
        await asyncio.sleep(16)

    broker, _ = play(story)
    assert broker.times(PREFIX) == [0, 5, 10, 15]


def test_of_the_leaves_only_those_that_changed_are_published_again() -> None:
    async def story(_broker: Broker, board: StatusBoard, _announcer: Announcer) -> None:
        await asyncio.sleep(7)
        board.emit(QueueCounted(42, 0, 0, 0, 0, 0, 0, None))
        await asyncio.sleep(9)

    broker, _ = play(story)
    assert broker.times(f"{PREFIX}/queue/ready") == [0, 10]
    assert broker.last(f"{PREFIX}/queue/ready") == b"42"
    assert broker.times(f"{PREFIX}/queue/dead") == [0]
    assert broker.times(f"{PREFIX}/uptime_seconds") == [0, 5, 10, 15]


def test_the_state_is_said_at_every_interval_in_case_an_old_will_came_late() -> None:
    async def story(_broker: Broker, _board: StatusBoard, _announcer: Announcer) -> None:
        await asyncio.sleep(11)

    broker, _ = play(story)
    assert broker.times(f"{PREFIX}/state") == [0, 5, 10]


def test_a_change_of_state_is_published_at_once() -> None:
    async def story(_broker: Broker, board: StatusBoard, _announcer: Announcer) -> None:
        await asyncio.sleep(2)
        board.emit(CloudFailed("timed out", 1.0))
        await asyncio.sleep(1)

    broker, _ = play(story)
    assert broker.times(PREFIX) == [0, 2]
    assert broker.last(f"{PREFIX}/state") == b"degraded"
    assert orjson.loads(broker.last(PREFIX))["cloud"]["state"] == "offline"


def test_numbers_alone_wait_for_the_interval() -> None:
    async def story(_broker: Broker, board: StatusBoard, _announcer: Announcer) -> None:
        await asyncio.sleep(1)
        board.emit(Received(1000))
        await asyncio.sleep(1)

    broker, _ = play(story)
    assert broker.times(PREFIX) == [0]


def test_a_state_that_flaps_is_published_four_times_a_second_at_most() -> None:
    """I5: everything is bounded."""

    async def story(_broker: Broker, board: StatusBoard, _announcer: Announcer) -> None:
        for turn in range(1000):
            board.emit(CloudAnswered() if turn % 2 else CloudFailed("flapping", 0.1))
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)

    broker, _ = play(story)
    times = broker.times(PREFIX)
    assert 4 <= len(times) <= 6
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 0.25
    assert broker.last(f"{PREFIX}/state") == b"online"


def test_while_the_broker_is_away_nothing_is_kept_and_the_next_connection_gets_everything() -> None:
    async def story(broker: Broker, board: StatusBoard, announcer: Announcer) -> None:
        await asyncio.sleep(12)
        board.emit(BrokerLost("gone", 1.0))
        await asyncio.sleep(1)
        broker.there = True
        announcer.reconnected()
        await asyncio.sleep(0.5)

    broker, _ = play(story, connected=False)
    assert broker.times(PREFIX) == [13]
    assert broker.times(f"{PREFIX}/queue/dead") == [13]


def test_after_a_reconnect_unchanged_leaves_are_published_again() -> None:
    async def story(_broker: Broker, _board: StatusBoard, announcer: Announcer) -> None:
        await asyncio.sleep(2)
        announcer.reconnected()
        await asyncio.sleep(1)

    broker, _ = play(story)
    assert broker.times(f"{PREFIX}/queue/dead") == [0, 2]


def test_a_publish_that_fails_half_way_is_made_up_for_at_the_next_interval() -> None:
    async def story(broker: Broker, _board: StatusBoard, _announcer: Announcer) -> None:
        await asyncio.sleep(4)
        broker.there = False
        await asyncio.sleep(2)
        broker.there = True
        await asyncio.sleep(5)

    broker, _ = play(story)
    assert broker.times(f"{PREFIX}/queue/dead") == [0, 10]


def test_every_five_minutes_all_leaves_are_published_again() -> None:
    async def story(_broker: Broker, _board: StatusBoard, _announcer: Announcer) -> None:
        await asyncio.sleep(302)

    broker, _ = play(story)
    assert broker.times(f"{PREFIX}/queue/dead") == [0, 300]


def test_goodbye_says_offline_on_both_topics_and_nothing_after_it() -> None:
    async def story(_broker: Broker, board: StatusBoard, announcer: Announcer) -> None:
        board.emit(QueueCounted(7, 0, 0, 0, 0, 0, 0, None))
        await asyncio.sleep(1)
        assert announcer.goodbye()
        board.emit(CloudFailed("late", 1.0))
        await asyncio.sleep(20)

    broker, _ = play(story)
    last = orjson.loads(broker.last(PREFIX))
    assert broker.times(PREFIX) == [0, 1]
    assert (last["state"], last["reason"], last["queue"]["ready"]) == ("offline", "stopped", 7)
    assert broker.last(f"{PREFIX}/state") == b"offline"


def test_goodbye_admits_that_a_broker_that_is_away_was_not_told() -> None:
    async def story(_broker: Broker, _board: StatusBoard, announcer: Announcer) -> None:
        assert not announcer.goodbye()

    play(story, connected=False)


def test_the_moving_averages_advance_at_every_interval() -> None:
    async def story(_broker: Broker, board: StatusBoard, _announcer: Announcer) -> None:
        board.emit(Received(600))
        await asyncio.sleep(61)

    _, board = play(story)
    assert board.status.ticked == 60.0
    assert board.status.received_load.averages[0] > 0
