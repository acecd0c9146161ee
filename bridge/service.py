"""The service: builds every part from the settings, runs each as a named task, and ends them in order.

One TaskGroup holds all of it. A task that ends without being asked takes the service down loudly, by its name,
with exit status 1, so that a supervisor starts it anew; what was confirmed is on disk, what was not comes again.

Shutdown in order: read no more from the broker, store and confirm what was read, finish the POST in flight within
the grace time, say `offline`, leave the broker with a farewell, close the file. Takes the queue's lock before it
touches MQTT.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson

from bridge import __version__, liveness
from bridge.announcer import Announcer, StatusBoard, system_now
from bridge.broker import Broker
from bridge.clock import this_boot
from bridge.control import Control
from bridge.disk_queue import DiskQueue, FolderLock, open_queue, requeue_dead, written_bytes
from bridge.disk_thread import DiskThread
from bridge.errors import (
    BridgeError,
    ConfigError,
    OperatorError,
    PassingError,
    QueueDamagedError,
    TaskDiedError,
    shortage,
)
from bridge.events import (
    BrokerConnected,
    BrokerLost,
    DiskRecovered,
    DiskTroubled,
    Event,
    Hung,
    Moving,
    QueueCounted,
    QueueDamaged,
    RowsMissing,
    Stopping,
)
from bridge.forwarder import Forwarder
from bridge.intake import Intake
from bridge.liveness import Pulse
from bridge.log import EventLogger
from bridge.loss import Loss, LossReason, events_of
from bridge.loss_teller import LossTeller
from bridge.message import CLOCK_SET_SINCE, adopt, redated, uuid7
from bridge.receipt_giver import ReceiptGiver
from bridge.rescue import Rescue
from bridge.status import Bounds, CloudState, Status, leaf_will, object_will
from bridge.supervisor import Supervisor
from bridge.topics import own_trees
from bridge.uploader import Uploader

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.config import Settings, Supervision

_STALL_SECONDS = 5.0  # a commit that takes longer is reported; promise 6
_TICK_SECONDS = 1.0
_BEAT_SECONDS_MAX = 10.0  # between two looks at whether every part moves
_DAMAGES_MAX = 5  # files that one process sets aside while it runs; then the medium is at its end, and so are we
_FILTERS_NOTE = "topic_filters"

log = logging.getLogger("bridge")
_random = random.SystemRandom().random

Reload = Callable[[], "Settings"]


class Service:
    """The whole bridge. `run()` returns after an orderly stop and raises BridgeError after anything else."""

    def __init__(self, settings: Settings, reload: Reload, supervision: Supervision) -> None:
        self._settings = settings
        self._reload = reload
        self._supervisor = Supervisor(supervision.notify_socket)
        self._hang_grace_seconds = supervision.watchdog_seconds or liveness.GRACE_SECONDS
        self._stop, self._hangup = asyncio.Event(), asyncio.Event()
        self._stopping = False
        self._boot = this_boot()
        self._source_name = f"edge/{settings.device_id}"
        bounds = Bounds(settings.queue.max_messages, settings.queue.min_free_disk_bytes)
        self._board = StatusBoard(Status.starting(__version__, settings.device_id, system_now(), bounds))
        self._event_log = EventLogger(time.monotonic)
        self._receipt_giver = ReceiptGiver(self._emit, time.time)
        self._status_link_error = ""
        self._disk_full = False

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop in order; a queue that turns out to be damaged is begun anew."""
        async with AsyncExitStack() as stack:
            stack.callback(self._supervisor.close)
            stack.enter_context(self._signals())
            lock = FolderLock(self._settings.queue.path)
            stack.callback(lock.release)
            damages = 0
            while True:
                try:
                    await self._run_once()
                    break
                except QueueDamagedError as error:
                    damages += 1
                    if self._stopping or damages == _DAMAGES_MAX:
                        raise
                    self._emit(QueueDamaged(error.message))

    async def _run_once(self) -> None:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            end: BridgeError | None = None
            try:
                await self._serve()
            except* BridgeError as errors:
                end = _first(errors)
            if end:  # not raised up there: Python before 3.11.4, such as Debian 12's, makes a group of that again
                raise end

    async def _open(self, stack: AsyncExitStack) -> None:
        settings = self._settings

        def make(folder: Path) -> DiskQueue:
            return DiskQueue(
                folder,
                durability=settings.queue.durability,
                adopt=lambda data, at: adopt(data, at, self._source_name, secrets.randbits(74)),
                redate=self._redate,
                max_bytes=settings.queue.max_bytes,
            )

        queue, damage, salvagers = open_queue(settings.queue.path, make)
        for salvager in salvagers:
            stack.callback(salvager.close)
        if damage:
            self._emit(QueueDamaged(damage.message))
        if queue.gap:
            self._emit(RowsMissing(*queue.gap))
        self._disk = DiskThread(
            queue,
            keep_seconds=settings.queue.keep_delivered_seconds,
            keep_messages=settings.queue.keep_delivered_messages,
            on_losses=self._tell_losses,
            on_receipts=self._receipt_giver.give,
        )
        stack.push_async_callback(asyncio.to_thread, self._disk.close)
        former: list[str] = await self._disk.run(lambda queue: queue.noted(_FILTERS_NOTE, _filters, []))
        self._filters_noted = former == list(settings.mqtt.topics)
        await self._count()
        free = settings.queue.min_free_disk_bytes
        self._rescue = Rescue(self._disk, settings.queue.path, salvagers, self._emit, min_free_disk_bytes=free)
        self._uploader = await stack.enter_async_context(Uploader(settings.upload, __version__))
        window = settings.mqtt.receive_maximum
        self._forwarder = Forwarder(self._disk, self._uploader, settings.upload, self._emit, unwritten_max=window)
        self._intake = Intake(
            settings.intake,
            settings.queue,
            source_name=self._source_name,
            own_trees=own_trees(settings.status.topic),
            disk=self._disk,
            emit=self._emit,
            wall=time.time,
            boot=self._boot,
            random_bits=secrets.randbits,
        )
        self._teller = LossTeller(
            self._disk,
            settings.queue,
            upload=lambda: self._forwarder.destination.settings,
            cloud_is_online=lambda: self._board.status.cloud.state is CloudState.ONLINE,
            source_name=self._source_name,
            wall=time.time,
            fresh_id=lambda: uuid7(int(time.time() * 1000), secrets.randbits(74)),
        )
        self._connect_parts(former)
        await stack.enter_async_context(self._control())
        await stack.enter_async_context(self._web())
        log.info(
            "edge-bridge %s as %s: queue in %s with %d waiting, uploading to %s",
            __version__,
            settings.device_id,
            settings.queue.path,
            self._board.status.queue.ready,
            settings.upload.url.partition("?")[0],  # what comes behind may be a secret (I8)
        )

    def _connect_parts(self, former_filters: list[str]) -> None:
        settings = self._settings
        # An MQTT connection has one will, and both the object and the leaf `state` must turn offline: two connections.
        self._broker = Broker(
            settings.mqtt,
            client_id=settings.mqtt.client_id,
            sink=self._intake.receive,
            emit=self._emit,
            random=_random,
            filters=settings.mqtt.topics,
            former_filters=[former for former in former_filters if former not in settings.mqtt.topics],
            will=object_will(settings.status.topic, __version__, settings.device_id),
            payload_bytes_max=settings.intake.max_payload_bytes,
            on_session=self._intake.session,
        )
        self._intake.source = self._broker
        self._receipt_giver.send = self._broker.send
        self._status_link = Broker(
            settings.mqtt,
            client_id=f"{settings.mqtt.client_id}-status",
            sink=lambda _messages, _epoch: None,
            emit=self._on_status_link,
            random=_random,
            will=leaf_will(settings.status.topic),
            persistent=False,
        )
        self._announcer = Announcer(
            self._status_link.publish, self._board, settings.status.topic, settings.status.interval_seconds
        )

    @asynccontextmanager
    async def _control(self) -> AsyncIterator[None]:
        """Answer `edge-bridge queue`; a file system without sockets must not keep predictions from being stored."""
        control = Control(self._settings.queue, self._disk)
        try:
            await control.start()
        except OperatorError as error:
            log.warning("%s; going on without it (%s)", error.message, error.hint)
        try:
            yield
        finally:
            await control.stop()

    @asynccontextmanager
    async def _web(self) -> AsyncIterator[None]:
        """Serve the page; a port that is taken must not keep predictions from being stored."""
        if not self._settings.web.port:
            yield
            return
        from bridge.web import DeadRows, WebServer  # not loaded where it is off

        settings = self._settings.web
        token = None if settings.token is None else settings.token.get_secret_value()
        dead_rows = DeadRows(
            newest=lambda rows_max: self._disk.run(lambda queue: queue.dead_rows(rows_max)), requeue=self._requeue
        )
        server = WebServer(settings.host, settings.port, self._board, dead_rows, token)
        try:
            await server.start()
        except OperatorError as error:
            log.warning("%s; going on without it (%s)", error.message, error.hint)
        try:
            yield
        finally:
            await server.stop()

    async def _requeue(self, row_ids: Sequence[int]) -> int:
        wanted = frozenset(row_ids)
        requeued = await self._disk.run(lambda queue: requeue_dead(queue, wanted))
        self._disk.wake()
        log.info("%d dead rows requeued from the web page", requeued)
        return requeued

    # --- running -----------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._named(name, work), name=name)
                for name, work in {
                    "broker": self._broker.run(),
                    "status link": self._status_link.run(),
                    "intake": self._intake.run(),
                    "forwarder": self._forwarder.run(),
                    "announcer": self._announcer.run(),
                    "housekeeping": self._housekeep(),
                    "loss teller": self._teller.run(),
                    "disk watch": self._watch_disk(),
                    "salvage": self._salvage(),
                    "reload": self._reload_on_hangup(),
                    "liveness": self._watch_parts(),
                }.items()
            ]
            self._supervisor.ready()
            await self._stop.wait()
            await self._stop_in_order()
            for task in tasks:
                task.cancel()

    async def _named(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run one part; whatever ends it before it is stopped is fatal and says its name."""
        try:
            await work
        except (asyncio.CancelledError, BridgeError):
            raise
        except Exception as error:
            if isinstance(error, ExceptionGroup) and (known := error.subgroup(BridgeError)):
                raise _first(known) from error  # of a part that has tasks of its own
            if short := shortage(error, f"task {name}"):
                raise short from error
            log.exception("task %s died", name)
            raise TaskDiedError(f"task {name} died: {error!r}", "this is a defect: please report it") from error
        if not self._stopping:
            raise TaskDiedError(f"task {name} ended although nobody stopped it", "this is a defect: please report it")

    async def _stop_in_order(self) -> None:
        self._stopping = True
        self._supervisor.stopping()
        grace_seconds = self._settings.shutdown_grace_seconds
        deadline = time.monotonic() + grace_seconds
        self._broker.pause_reading()
        await _within(deadline, self._intake.drained())
        await _within(deadline + 1.0, self._forwarder.stop(max(0.0, deadline - time.monotonic())))
        self._emit(Stopping())
        self._announcer.goodbye()
        await self._broker.farewell()
        await self._status_link.farewell()

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._receipt_giver.offer()
            with contextlib.suppress(PassingError):  # a state that is told below, not an end
                await self._disk.housekeep()
                await self._put_times_right()
                await self._drop_too_old()
                await self._note_filters()
            with contextlib.suppress(PassingError):
                await self._count()

    async def _put_times_right(self) -> None:
        while time.time() >= CLOCK_SET_SINCE and await self._disk.run(lambda queue: queue.put_times_right()):
            pass

    def _redate(self, stored: bytes) -> tuple[bytes, float] | None:
        """Date what came in this boot before the clock was set; in the disk thread."""
        now = time.time()
        return redated(stored, self._boot.id, now - self._boot.seconds()) if now >= CLOCK_SET_SINCE else None

    async def _drop_too_old(self) -> None:
        bounds = self._settings.queue
        dropped = self._board.status.queue.ready if bounds.max_age_seconds else 0
        while dropped:
            before = time.time() - bounds.max_age_seconds
            reason = LossReason.MAX_AGE
            dropped, _ = await self._disk.run(lambda queue: queue.drop_oldest(1000, 0, reason, before))  # noqa: B023

    async def _note_filters(self) -> None:
        """Write down what is subscribed to, once the broker has heard what is not any more."""
        if self._broker.subscribed.is_set() and not self._filters_noted:
            filters = orjson.dumps(self._settings.mqtt.topics).decode()
            await self._disk.run(lambda queue: queue.write_note(_FILTERS_NOTE, filters))
            self._filters_noted = True

    async def _count(self) -> None:
        def look(queue: DiskQueue) -> tuple[QueueCounted, str]:
            counts, oldest = queue.counts(), queue.oldest_received_at()
            counted = QueueCounted(
                counts.ready,
                counts.taken,
                counts.delivered,
                counts.dead,
                counts.size_bytes,
                self._settings.queue.max_bytes,
                queue.disk_free_bytes(),
                None if oldest is None else max(0.0, time.time() - oldest),
                queue.commits,
                written_bytes(),
            )
            return counted, queue.full_reason(self._settings.queue.min_free_disk_bytes)

        counted, full_reason = await self._disk.run(look)
        self._emit(counted)
        self._tell_full(full_reason)

    def _tell_full(self, reason: str) -> None:
        """Tell of a full disk also while no message comes; whether it takes one that does is intake's to tell."""
        if reason:
            self._emit(DiskTroubled("full", reason))
        elif self._disk_full:
            self._emit(DiskRecovered())
        self._disk_full = bool(reason)

    async def _salvage(self) -> None:
        await self._rescue.run()
        await asyncio.Event().wait()  # done, and a task must not end by itself

    async def _watch_disk(self) -> None:
        stalled = False
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            seconds = self._disk.stalled_seconds()
            if seconds > _STALL_SECONDS and not stalled:
                stalled = True
                self._emit(DiskTroubled("stalled", f"a commit has not returned for {seconds:.0f} s"))
            elif stalled and seconds <= _STALL_SECONDS:
                stalled = False
                self._emit(DiskRecovered())

    async def _watch_parts(self) -> None:
        """Feed the watchdog as long as every part moves when it said it would; the cloud has no say in it."""
        while True:
            pulses = (
                Pulse("disk thread", self._disk.due()),
                Pulse("connection to the broker", self._broker.due),
                Pulse("uploader", self._forwarder.due()),
            )
            hang = liveness.hang(pulses, time.monotonic(), self._hang_grace_seconds)
            if hang != self._board.status.hung:
                self._emit(Hung(hang) if hang else Moving())
            status = self._board.status
            self._supervisor.beat(f"{status.state}: {status.reason}" if status.reason else status.state, alive=not hang)
            await asyncio.sleep(min(self._hang_grace_seconds / 4, _BEAT_SECONDS_MAX))

    # --- small crossings ---------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        self._board.emit(event)
        self._event_log(event)
        if isinstance(event, BrokerConnected):
            self._announcer.reconnected()  # the broker may have published this connection's will meanwhile

    def _tell_losses(self, losses: Sequence[Loss]) -> None:
        """Raise the counters by what the ledger got, and by nothing else: so they equal it."""
        for event in events_of(losses):
            self._emit(event)

    def _on_status_link(self, event: Event) -> None:
        if isinstance(event, BrokerConnected):
            self._announcer.reconnected()
        elif isinstance(event, BrokerLost) and self._broker.connected and event.error != self._status_link_error:
            self._status_link_error = event.error
            log.warning("the status cannot be published, messages flow: %s", event.error)

    @contextlib.contextmanager
    def _signals(self) -> Any:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def _reload_on_hangup(self) -> None:
        """At each SIGHUP read the configuration again and apply what can change while running."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._supervisor.reloading()
            await self._reread()
            self._supervisor.ready()

    async def _reread(self) -> None:
        try:
            settings = await asyncio.to_thread(self._reload)
            await self._uploader.reload(settings.upload)
        except ConfigError as error:
            log.error("configuration not reloaded, going on as before: %s", "; ".join(error.problems))  # noqa: TRY400
            return
        self._forwarder.reconfigure(settings.upload)
        logging.getLogger("bridge").setLevel(settings.log.level.upper())
        now = self._settings
        log_as_it_was = settings.log.model_copy(update={"level": now.log.level})
        rest = settings.model_copy(update={"upload": now.upload, "log": log_as_it_was})
        fixed = [name for name in type(rest).model_fields if getattr(rest, name) != getattr(now, name)]
        log.info("configuration reloaded%s", f"; only a restart changes {', '.join(fixed)}" if fixed else "")


async def _within(deadline: float, work: Awaitable[None]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.01, deadline - time.monotonic())):
            await work


def _filters(note: str) -> list[str]:
    return [str(one) for one in orjson.loads(note)]


def _first(errors: BaseExceptionGroup[BridgeError]) -> BridgeError:
    """Return the error that took the service down: the first that is not itself a group."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
