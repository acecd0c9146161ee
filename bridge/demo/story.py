"""What happens in the demo, in order: flow, outage, recovery, SIGKILL, restart, drain, orderly stop, count.

Each act ends when a condition is seen from outside: the bridge's status on its MQTT topic, the cloud's own counts,
the broker's confirmations. None ends because time has passed; only a deadline ends the wait for what never comes.
What is seen goes to a `Narrator`; the outcome is the tally and a few measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from bridge.broker import Publisher
from bridge.config import MqttSettings
from bridge.demo.acts import Act
from bridge.demo.cameras import Cameras
from bridge.demo.classifier import Classifier
from bridge.demo.cloud import Cloud
from bridge.demo.stage import HOST, STATUS_TOPIC, Program, Stage, StageError
from bridge.demo.tally import Ledgers, Tally, count
from bridge.demo.watch import LOOK_SECONDS, Watch
from bridge.disk_queue import DiskQueue

# Where the acts end, as shares of all messages.
FLOW_ENDS, OUTAGE_ENDS, KILL_AT, RESTART_AT = 0.2, 0.5, 0.7, 0.85
MESSAGES_PER_SECOND_MIN = 600
PUBLISH_SECONDS = 20  # how long the cameras run, if the machine keeps up
PATIENCE_SECONDS = 60.0
DRAIN_PATIENCE_SECONDS = 30.0
STOP_SECONDS = 15.0
_POLL_SECONDS = 0.02

Condition = Callable[[], bool | Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole way at one moment; `seconds` since the demo began. See `Watch` for what the numbers mean."""

    messages: int
    published: int
    stored: int
    waiting: int
    waiting_max: int
    delivered: int
    bridge_is_there: bool
    cloud_is_there: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The tally, what was measured on the way, and how the bridge ended."""

    tally: Tally
    backlog_max: int
    outage_seconds: float
    published_in_outage: int
    drain_seconds: float
    kills: int
    bridge_down_seconds: float
    published_while_bridge_down: int
    bridge_exit_status: int
    accuracy: float
    seconds: float

    @property
    def is_good(self) -> bool:
        """Nothing was lost, and the orderly stop was one."""
        return self.tally.is_sound and self.bridge_exit_status == 0

    def to_json(self) -> dict[str, Any]:
        """Return the documented object."""
        named: dict[str, Any] = asdict(self)
        counts: dict[str, Any] = named.pop("tally")
        return {"ok": self.is_good} | counts | named


class Narrator(Protocol):
    """Tells people; called on the event loop."""

    def begin(self, act: Act) -> None:
        """Tell that an act begins."""

    def end(self, result: str) -> None:
        """Tell how it ended."""

    def show(self, snapshot: Snapshot) -> None:
        """Tell how things are; several times a second."""


class _Moment(NamedTuple):
    """When, and how many were published by then."""

    at: float
    published: int


class _Absence(NamedTuple):
    """How long somebody was away, and what was published meanwhile."""

    seconds: float
    published: int


class Story:
    """Plays once on a stage; `run` returns the outcome or raises BridgeError. All calls on one event loop."""

    def __init__(self, stage: Stage, messages: int, seed: int, narrator: Narrator) -> None:
        self._stage, self._messages, self._seed, self._narrator = stage, messages, seed, narrator
        self._mqtt = MqttSettings(host=HOST, port=stage.broker_port)
        self._cloud = Cloud(stage.cloud_port)
        self._watch = Watch(self._mqtt, self._cloud, STATUS_TOPIC)
        self._started_at = time.monotonic()
        self._cameras: Cameras | None = None

    async def run(self) -> Outcome:
        """Play all acts and count."""
        try:
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(self._watch.poll_cloud()), group.create_task(self._keep_showing())]
                classifier = await self._start()
                watching.append(group.create_task(self._watch.follow_bridge()))
                async with self._publishing(group, classifier) as cameras:
                    outcome = await self._play(cameras)
                for task in watching:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return outcome

    async def _play(self, cameras: Cameras) -> Outcome:
        await self._let_it_flow(cameras)
        outage = await self._take_the_cloud_away(cameras)
        drain_seconds = await self._wait_for_recovery(cameras)
        killed = await self._kill_the_bridge(cameras)
        down = await self._restart_the_bridge(cameras, killed)
        bridge_exit_status = await self._drain_and_stop(cameras)
        tally = await self._count(cameras)
        return Outcome(
            tally=tally,
            backlog_max=self._watch.waiting_max,
            outage_seconds=round(outage.seconds, 3),
            published_in_outage=outage.published,
            drain_seconds=round(drain_seconds, 3),
            kills=1,
            bridge_down_seconds=round(down.seconds, 3),
            published_while_bridge_down=down.published,
            bridge_exit_status=bridge_exit_status,
            accuracy=round(cameras.accuracy, 4),
            seconds=round(time.monotonic() - self._started_at, 3),
        )

    # --- the acts ----------------------------------------------------------------------------------------------

    async def _start(self) -> Classifier:
        with self._act(Act.START) as result:
            self._stage.broker.start()
            self._stage.cloud.start()
            training = asyncio.ensure_future(asyncio.to_thread(Classifier.train, self._seed))
            await self._until(self._stage.broker_answers, "the broker to listen", self._stage.broker)
            self._stage.bridge.start()
            classifier = await training
            await self._until(lambda: self._watch.cloud_answers, "the cloud to answer", self._stage.cloud)
            result.append(f"{len(classifier.images):,} images the classifier never saw")
        return classifier

    async def _let_it_flow(self, cameras: Cameras) -> None:
        with self._act(Act.FLOW) as result:
            await self._until(lambda: self._watch.bridge_is_connected, "the bridge to come up", self._stage.bridge)
            await self._publish(cameras, FLOW_ENDS)
            await self._until(lambda: self._watch.stats.unique > 0, "the first delivery", self._stage.bridge)
            result.append(f"{self._watch.stats.unique:,} delivered, as they come")

    async def _take_the_cloud_away(self, cameras: Cameras) -> _Absence:
        with self._act(Act.OUTAGE) as result:
            await asyncio.to_thread(self._cloud.lose_an_answer)
            await cameras.allow(self._share((FLOW_ENDS + OUTAGE_ENDS) / 2))  # the rest finds no cloud
            await self._until(
                lambda: asyncio.to_thread(self._cloud.has_lost_it), "an answer to get lost", self._stage.bridge
            )
            gone = self._now(cameras)
            await self._end(self._stage.cloud, signal.SIGTERM)
            await self._publish(cameras, OUTAGE_ENDS)
            await self._until(lambda: self._backlog_is_seen(cameras), "a backlog on the disk", self._stage.bridge)
            result.append(f"{self._watch.waiting:,} wait on disk, the cameras go on")
            self._stage.cloud.start()
            await self._until(lambda: self._watch.cloud_answers, "the cloud to answer again", self._stage.cloud)
            return self._since(gone, cameras)

    async def _wait_for_recovery(self, cameras: Cameras) -> float:
        with self._act(Act.RECOVERY) as result:
            back = self._now(cameras)
            await cameras.allow(self._share(KILL_AT))
            await self._until(
                lambda: self._watch.stats.unique >= back.published, "the backlog to be delivered", self._stage.bridge
            )
            seconds = self._since(back, cameras).seconds
            result.append(f"drained by itself in {seconds:.1f} s")
            await self._publish(cameras, KILL_AT)
        return seconds

    async def _kill_the_bridge(self, cameras: Cameras) -> _Moment:
        with self._act(Act.KILL) as result:
            before = self._now(cameras)
            await cameras.allow(self._share(RESTART_AT))
            await self._until(
                lambda: len(cameras.confirmed) > before.published, "the cameras to go on", self._stage.broker
            )
            killed = self._now(cameras)
            await self._end(self._stage.bridge, signal.SIGKILL)
            await self._until(lambda: self._watch.bridge_state == "offline", "its last will", self._stage.broker)
            await self._publish(cameras, RESTART_AT)
            result.append(f"the broker keeps {self._since(killed, cameras).published:,} meanwhile")
        return killed

    async def _restart_the_bridge(self, cameras: Cameras, killed: _Moment) -> _Absence:
        with self._act(Act.RESTART) as result:
            self._stage.bridge.start()
            await cameras.allow(self._messages)
            await self._until(lambda: self._watch.bridge_is_connected, "the bridge to come back", self._stage.bridge)
            down = self._since(killed, cameras)
            await self._publish(cameras, 1)
            result.append(f"back after {down.seconds:.1f} s")
        return down

    async def _drain_and_stop(self, cameras: Cameras) -> int:
        with self._act(Act.DRAIN) as result:
            with contextlib.suppress(StageError):  # what never comes is for the count to tell
                await self._until(
                    lambda: self._watch.stats.unique >= len(cameras.confirmed) and not self._watch.waiting,
                    "everything to be delivered",
                    self._stage.bridge,
                    DRAIN_PATIENCE_SECONDS,
                )
            exit_status = await self._end(self._stage.bridge, signal.SIGTERM)
            result.append(f"{self._watch.waiting:,} left on disk; exit status {exit_status}")
        return exit_status

    async def _count(self, cameras: Cameras) -> Tally:
        with self._act(Act.COUNT) as result:
            delivered = await asyncio.to_thread(self._cloud.payloads)
            stored = await asyncio.to_thread(self._stored, cameras)
            stats = await asyncio.to_thread(self._cloud.stats) or self._watch.stats
            tally = count(Ledgers(cameras.tried, cameras.confirmed, stored, delivered, stats.received))
            result.append(f"{tally.lost:,} lost")
        return tally

    # --- what acts are made of ---------------------------------------------------------------------------------

    @contextmanager
    def _act(self, act: Act) -> Iterator[list[str]]:
        """Tell of the beginning and, with what the act put in the list, of the end."""
        result: list[str] = []
        self._narrator.begin(act)
        yield result
        self._show()
        self._narrator.end(*result)

    async def _until(
        self, condition: Condition, what: str, whom: Program, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait for a condition; StageError, with the log of whom it depends on, after the deadline."""
        deadline = time.monotonic() + patience_seconds
        while not await _is_met(condition):
            self._stage.check()
            if time.monotonic() > deadline:
                raise StageError(f"waited {patience_seconds:.0f} s in vain for {what}", whom.last_lines())
            await asyncio.sleep(_POLL_SECONDS)

    async def _publish(self, cameras: Cameras, share: float) -> None:
        """Let the cameras go on up to a share of all messages, and wait until those are confirmed."""
        wanted = self._share(share)
        await cameras.allow(wanted)
        patience_seconds = PATIENCE_SECONDS + wanted / MESSAGES_PER_SECOND_MIN
        await self._until(
            lambda: len(cameras.confirmed) >= wanted, "the broker's confirmations", self._stage.broker, patience_seconds
        )

    def _backlog_is_seen(self, cameras: Cameras) -> bool:
        """Tell whether bridge and demo both find the cloud away, and all that was published is on the disk."""
        watch = self._watch
        is_away = not watch.bridge_sees_cloud and not watch.cloud_answers
        return is_away and watch.waiting > 0 and watch.stored >= len(cameras.confirmed)

    async def _end(self, program: Program, number: signal.Signals) -> int:
        program.send(number)
        await self._until(lambda: program.exit_status is not None, f"{program.name} to end", program, STOP_SECONDS)
        return program.exit_status or 0

    def _stored(self, cameras: Cameras) -> set[str]:
        """Return the ids in the file of the stopped bridge."""
        queue = DiskQueue(self._stage.queue_folder)
        try:
            return set(queue.find_events(cameras.tried))
        finally:
            queue.close()

    def _share(self, share: float) -> int:
        return round(share * self._messages)

    def _now(self, cameras: Cameras) -> _Moment:
        return _Moment(time.monotonic(), len(cameras.confirmed))

    def _since(self, moment: _Moment, cameras: Cameras) -> _Absence:
        return _Absence(time.monotonic() - moment.at, len(cameras.confirmed) - moment.published)

    @asynccontextmanager
    async def _publishing(self, group: asyncio.TaskGroup, classifier: Classifier) -> AsyncIterator[Cameras]:
        """Connect the cameras and let them run in the background; they wait to be allowed."""
        publisher = Publisher(
            self._mqtt, client_id="demo-cameras", emit=lambda _event: None, random=random.SystemRandom().random
        )
        pace = max(MESSAGES_PER_SECOND_MIN, self._messages / PUBLISH_SECONDS)
        self._cameras = Cameras(classifier, publisher.publish_confirmed, self._messages, pace)
        link, work = group.create_task(publisher.run()), group.create_task(self._cameras.run())
        yield self._cameras
        await work
        await publisher.farewell()
        await link

    # --- telling -----------------------------------------------------------------------------------------------

    async def _keep_showing(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(LOOK_SECONDS)

    def _show(self) -> None:
        watch = self._watch
        self._narrator.show(
            Snapshot(
                messages=self._messages,
                published=len(self._cameras.confirmed) if self._cameras else 0,
                stored=max(watch.stored, watch.stats.unique),  # the bridge counts once a second; the cloud knows better
                waiting=watch.waiting,
                waiting_max=watch.waiting_max,
                delivered=watch.stats.unique,
                bridge_is_there=watch.bridge_state != "offline",
                cloud_is_there=watch.cloud_answers,
                seconds=time.monotonic() - self._started_at,
            )
        )


async def _is_met(condition: Condition) -> bool:
    answer = condition()
    return answer if isinstance(answer, bool) else await answer


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error that is not itself a group."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
