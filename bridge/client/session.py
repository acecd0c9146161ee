"""The client: one connection that is kept up, the outbox behind it, and `publish` before it.

`publish` makes the payload, waits for room, puts the message in the outbox and returns when it has come as far as
was asked. The connection is `bridge.broker`'s; each turn of the event loop sends what has gathered in one write.
Everything here runs on one event loop and never waits on it (I7); memory is bounded (I5).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack

import orjson

from bridge.client.blocking import BlockingPredictionClient
from bridge.client.errors import (
    BacklogFullError,
    ClosedError,
    GivenUpError,
    NotJsonError,
    NotYetError,
    RefusedError,
    UnsentError,
    UsageError,
)
from bridge.client.outbox import STAGES, Outbox, Outgoing, Receipt, Stage, State
from bridge.client.payload import encode, own_id, trace_context
from bridge.client.room import Room
from bridge.environment import Tls, broker_address, environment_device_id
from bridge.message import ID_CHARACTERS_MAX, Publish, uuid7
from bridge.topics import RECEIPTS_TOPIC, name_fault
from bridge.wire import TooLarge, string, user_properties

if TYPE_CHECKING:
    from bridge.broker import Producer
    from bridge.client.spool import Spool
    from bridge.events import Event

Until = Literal["accepted", "sent", "stored", "delivered"]

_NO_SUBSCRIBERS, _FAILURE = 0x10, 0x80  # reason codes of a PUBACK (MQTT 5, section 3.4.2.1)
# Why a broker refuses a publish (MQTT 5.0, 3.4.2.1), and what to do.
_REFUSALS = {
    0x87: ("not authorized, its ACL does not let this user publish there", "check the broker's ACL for user and topic"),
    0x90: ("it does not accept this topic", "use another topic"),
    0x97: ("a quota of its own is used up", "see the broker's configuration"),
}
_WATCH_SECONDS = 0.5
_TOPICS_MAX = 1024  # topics whose encoded form is remembered
_ERRORS_KEPT = 100  # of messages for which nobody waited

log = logging.getLogger("bridge.client")


class ClientOptions(TypedDict, total=False):
    """What `PredictionClient` takes, for `PredictionClient.blocking`."""

    device_id: str | None
    host: str | None
    port: int | None
    topic: str
    username: str | None
    password: str | None
    tls: Tls | str | Path | bool | None
    spool: str | Path | None
    spool_bytes_max: int
    client_id: str | None
    window: int
    messages_max: int
    bytes_max: int
    payload_bytes_max: int
    when_full: Literal["wait", "raise"]
    ask_again_seconds: float
    close_timeout_seconds: float


class PredictionClient:
    """Publishes predictions and knows what became of them; `async with` opens and closes it.

    What is not given comes from the environment (`BRIDGE_MQTT__HOST`, …, `BRIDGE_DEVICE_ID`), else from the default:
    a broker on 127.0.0.1:1883. Messages go to `<topic>/<device_id>`. At most `messages_max` messages or `bytes_max`
    bytes of payload are held; at the bound `publish` waits or, with `when_full="raise"`, raises BacklogFullError.
    With `spool`, a folder, every message is on this machine's disk before it is accepted, up to `spool_bytes_max`, and
    stays there until the bridge has it on its own.
    Opening needs no broker: it is connected to, and connected to again, in the background.
    """

    def __init__(  # noqa: PLR0913 - named, and each has a default
        self,
        *,
        device_id: str | None = None,
        host: str | None = None,
        port: int | None = None,
        topic: str = "edge/predictions",
        username: str | None = None,
        password: str | None = None,
        tls: Tls | str | Path | bool | None = None,
        spool: str | Path | None = None,
        spool_bytes_max: int = 1 << 30,
        client_id: str | None = None,
        window: int = 1000,
        messages_max: int = 10_000,
        bytes_max: int = 64 << 20,
        payload_bytes_max: int = 1 << 20,
        when_full: Literal["wait", "raise"] = "wait",
        ask_again_seconds: float = 5.0,
        close_timeout_seconds: float = 10.0,
    ) -> None:
        device_id = device_id or environment_device_id()
        if not device_id:
            raise UsageError("no device_id is given", 'PredictionClient(device_id="press-4"), or BRIDGE_DEVICE_ID')
        self.address = broker_address(host, port, username, password, tls)
        self.topic = _legal(f"{topic}/{device_id}")
        if min(window, messages_max, bytes_max, payload_bytes_max) < 1 or when_full not in {"wait", "raise"}:
            raise UsageError("a bound of this client is not usable", 'at least 1; when_full is "wait" or "raise"')
        self._client_id = client_id or f"{device_id}-{secrets.token_hex(4)}"
        self._receipts_topic = f"{RECEIPTS_TOPIC}/{self.address.username or device_id}/{self._client_id}"
        _legal(self._receipts_topic)
        self._window, self._payload_bytes_max = window, payload_bytes_max
        self._when_full = when_full
        self._ask_again_seconds, self._close_timeout_seconds = ask_again_seconds, close_timeout_seconds
        self._outbox = Outbox(self._receipts_topic, self._on_ended)
        self._ids = secrets.randbits(74)
        self._topics: dict[str, bytes] = {}
        self._room = Room(messages_max, bytes_max)
        self._messages_max = messages_max
        self._device_id = device_id
        self._spool_folder = None if spool is None else Path(spool)
        self._spool_bytes_max = spool_bytes_max
        self._spool: Spool | None = None
        self._may_feed = asyncio.Event()
        self._stored_rows: list[int] = []
        self._link: Producer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._is_pumping = self._is_ready = self._is_open = self._warned_of_no_subscriber = False
        self._error = "not connected yet"
        self._idle = asyncio.Event()
        self._idle.set()
        self._unheard: deque[Exception] = deque(maxlen=_ERRORS_KEPT)

    @staticmethod
    def blocking(**options: Unpack[ClientOptions]) -> BlockingPredictionClient:
        """Return the twin for code without an event loop: same options, same names."""
        return BlockingPredictionClient(lambda: PredictionClient(**options))

    # --- what a producer calls ---------------------------------------------------------------------------------

    async def publish(
        self,
        payload: Any,
        *,
        until: Until = "sent",
        topic: str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it is told what is known of the message when time is up
    ) -> Receipt:
        """Publish one message and return when it has come as far as `until` says.

        accepted: this client holds it · sent: the broker has it · stored: the bridge has it on disk · delivered: the
        cloud has it. Its id is `message_id`, else the payload's own, else a new one. Raises NotYetError after
        `timeout` seconds (the message goes on), GivenUpError if the bridge gave it up, RefusedError if the broker
        did; UsageError and NotJsonError for what cannot be published at all.
        """
        outgoing = self._outgoing(payload, until, topic, message_id)
        if timeout is None:
            return await self._submit(outgoing)
        try:
            async with asyncio.timeout(timeout):
                return await self._submit(outgoing)
        except TimeoutError:
            raise self._not_yet(outgoing, f"within {timeout:g} s") from None

    async def publish_many(
        self,
        payloads: Iterable[Any],
        *,
        until: Until = "sent",
        topic: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as publish
    ) -> list[Receipt]:
        """Publish messages in this order, a window of them under way; returns their receipts in the same order.

        The first error ends the waiting, not the messages that were accepted before.
        """
        async with asyncio.timeout(timeout):
            answers: list[asyncio.Future[Receipt]] = []
            try:
                for payload in payloads:
                    answers.append(await self._accept(self._outgoing(payload, until, topic, None)))  # noqa: PERF401
                return [await answer for answer in answers]
            finally:
                for answer in answers:
                    answer.cancel()

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as publish
        """Return when every message accepted so far has come as far as was asked.

        Raises what ended a message for which nobody waited (`until="accepted"`).
        """
        async with asyncio.timeout(timeout):
            await self._idle.wait()
        if self._unheard:
            first = self._unheard.popleft()
            self._unheard.clear()
            raise first

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        return self._is_ready and self._link is not None and self._link.connected

    @property
    def held_messages(self) -> int:
        """How many accepted messages have not come as far as was asked."""
        return self._spool.waiting if self._spool else len(self._outbox)

    # --- opening and closing -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        from bridge.broker import Producer  # brings paho, which who only imports us need not wait for

        if self._is_open or self._tasks:
            raise ClosedError("this client was opened before", "make a new PredictionClient")
        if self._spool_folder:
            from bridge.client.spool import Spool

            self._spool = Spool(self._spool_folder, f"edge/{self._device_id}", self._spool_bytes_max)
            self._note_idle()
        self._link = Producer(
            self.address,
            client_id=self._client_id,
            sink=self._on_receipts,
            emit=self._on_event,
            random=SystemRandom().random,
            filters=[self._receipts_topic],
            confirmed=self._on_confirmed,
        )
        self._is_open = True
        self._tasks = [asyncio.create_task(self._link.run(), name="prediction client")]
        self._tasks[0].add_done_callback(self._on_link_ended)
        self._tasks.append(asyncio.create_task(self._watch(), name="prediction client's watch"))
        if self._spool:
            self._tasks.append(asyncio.create_task(self._feed(self._spool), name="prediction client's spool"))
            self._tasks.append(asyncio.create_task(self._spool.housekeep(), name="prediction client's housekeeping"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except UnsentError as unsent:
            if error is None:
                raise
            log.error("%s", unsent)  # noqa: TRY400 - the error under way is the one to tell of

    async def close(self) -> None:
        """Accept nothing more, wait `close_timeout_seconds` for what is held, and disconnect.

        Raises UnsentError if messages are left that the broker never had; with a spool they wait there instead.
        """
        if not self._is_open:
            return
        self._is_open = False
        self._room.close()
        if self._spool:
            self._spool.room.close()
        try:
            await self.flush(self._close_timeout_seconds if self.connected or not self._spool else 0.0)
        except TimeoutError:
            pass
        finally:
            unsent = [outgoing.message_id for outgoing in self._outbox.held() if outgoing.reached < Stage.SENT]
            self._outbox.end_all(lambda outgoing: self._not_yet(outgoing, "before the client was closed"))
            await self._disconnect()
            if self._spool:
                await self._spool.close()
                for outgoing in self._spool.not_taken():
                    outgoing.tell(self._not_yet(outgoing, "before the client was closed"))
        if unsent and not self._spool:
            raise UnsentError(
                f"closed with {len(unsent)} messages that never reached the broker at {self.address}: {self._error}",
                "a longer close_timeout_seconds would have waited longer",
                unsent,
            )

    async def _disconnect(self) -> None:
        if self._link and not self._tasks[0].done():
            await self._link.farewell()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- a message comes in ------------------------------------------------------------------------------------

    def _outgoing(self, payload: Any, until: str, topic: str | None, message_id: str | None) -> Outgoing:
        stage = STAGES.get(until)
        if stage is None:
            raise UsageError(f"until={until!r} is not known", f"one of {', '.join(STAGES)}")
        encoded = self._encoded(payload)
        found = own_id(payload) if message_id is None else message_id
        if found is not None and not 0 < len(found) <= ID_CHARACTERS_MAX:
            raise UsageError("message_id is empty or too long", f"1 to {ID_CHARACTERS_MAX} characters")
        own = found or self._fresh_id()
        properties = user_properties({"id": own, **trace_context()})
        where = self._topics.get(topic or self.topic) or self._topic_bytes(topic or self.topic)
        return Outgoing(
            own, where, encoded, properties, stage, max(stage, Stage.STORED if self._spool_folder else Stage.SENT)
        )

    def _encoded(self, payload: Any) -> bytes:
        try:
            encoded = encode(payload)
        except (TypeError, ValueError) as error:
            kind = type(payload).__name__
            raise NotJsonError(f"a payload of type {kind} is not JSON: {error}", "see docs/CLIENT.md") from error
        if len(encoded) > self._payload_bytes_max:
            raise UsageError(
                f"the payload has {len(encoded)} bytes, {self._payload_bytes_max} are allowed",
                "payload_bytes_max here, intake.max_payload_bytes in the bridge and max_packet_size in the broker",
            )
        return encoded

    def _topic_bytes(self, topic: str) -> bytes:
        encoded = string(_legal(topic).encode())
        if len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
        self._topics[topic] = encoded
        return encoded

    def _fresh_id(self) -> str:
        self._ids = (self._ids + 1) & ((1 << 74) - 1)
        return uuid7(int(time.time() * 1000), self._ids)

    async def _submit(self, outgoing: Outgoing) -> Receipt:
        return await (await self._accept(outgoing))

    async def _accept(self, outgoing: Outgoing) -> asyncio.Future[Receipt]:
        """Wait for room, then hold the message; the future is for what its caller waits for."""
        self._check_open()
        await self._enter(self._room, outgoing)
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        if outgoing.until == Stage.ACCEPTED and not self._spool:
            answer.set_result(Receipt(outgoing.message_id, State.ACCEPTED))
        elif outgoing.until > Stage.ACCEPTED:
            outgoing.done = _teller(answer)
        self._idle.clear()
        if self._spool:
            await self._spool_first(self._spool, outgoing, answer)
        else:
            self._outbox.add(outgoing)
            self._pump_soon()
        return answer

    async def _enter(self, room: Room, outgoing: Outgoing) -> None:
        size_bytes = len(outgoing.payload)
        if room.take(size_bytes):
            return
        if self._when_full == "raise":
            raise BacklogFullError(
                f"{room.messages} messages with {room.size_bytes} bytes wait already: {self._error}",
                "messages_max, bytes_max and spool_bytes_max are the bounds",
            )
        await room.wait(size_bytes)
        self._check_open()

    # --- the spool ---------------------------------------------------------------------------------------------

    async def _spool_first(self, spool: Spool, outgoing: Outgoing, answer: asyncio.Future[Receipt]) -> None:
        size_bytes = len(outgoing.payload)
        try:
            await self._enter(spool.room, outgoing)
        except BaseException:
            self._room.give(size_bytes)
            raise

        def committed(put: asyncio.Future[int]) -> None:
            self._room.give(size_bytes)
            if error := put.exception():
                spool.room.give(size_bytes)
                outgoing.done = None
                if not answer.done():
                    answer.set_exception(error)
                self._note_idle()
                return
            spool.accepted(outgoing, put.result())
            if outgoing.until == Stage.ACCEPTED and not answer.done():
                answer.set_result(Receipt(outgoing.message_id, State.ACCEPTED))

        spool.put(outgoing, outgoing.topic[2:].decode()).add_done_callback(committed)

    async def _feed(self, spool: Spool) -> None:
        """Keep the outbox full from the spool, in order."""
        while True:
            self._may_feed.clear()
            if (room := self._messages_max - len(self._outbox)) <= 0:
                await self._may_feed.wait()
                continue
            for outgoing in await spool.take(min(room, self._window)):
                self._outbox.add(outgoing)
            self._pump_soon()

    def _leave_spool(self, spool: Spool, outgoing: Outgoing, error: Exception | None) -> None:
        if isinstance(error, NotYetError):
            return  # it stays there for the next start
        if error:
            spool.bury(outgoing.row_id, str(error)).add_done_callback(_noted)
            return
        if not self._stored_rows:
            asyncio.get_running_loop().call_soon(self._settle_stored, spool)
        self._stored_rows.append(outgoing.row_id)

    def _settle_stored(self, spool: Spool) -> None:
        stored, self._stored_rows = self._stored_rows, []
        spool.settle(stored).add_done_callback(_noted)
        self._note_idle()

    def _note_idle(self) -> None:
        if self.held_messages:
            self._idle.clear()
        else:
            self._idle.set()

    def _check_open(self) -> None:
        if not self._is_open:
            why = f": {self._error}" if self._tasks and self._tasks[0].done() else ""
            raise ClosedError(f"this client is not open{why}", "use it inside `async with PredictionClient(…)`")

    # --- the connection's side ---------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        if not self._is_pumping:
            self._is_pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pumping = False
        link = self._link
        if link is None or not self.connected:
            return
        piece = self._outbox.next_piece(min(self._window, link.window), link.packet_bytes_max, _too_large)
        if piece:
            link.send(piece)

    def _on_confirmed(self, confirmations: list[tuple[int, int]]) -> None:
        now = time.monotonic()
        for packet_id, code in confirmations:
            refusal = None
            if code >= _FAILURE:
                words, hint = _REFUSALS.get(code, ("see its log", "see the broker's log"))
                refusal = RefusedError(
                    f"the broker at {self.address} refused a message, reason 0x{code:02x}: {words}", hint
                )
            self._outbox.confirmed(packet_id, now, refusal, self._no_subscriber() if code == _NO_SUBSCRIBERS else None)
        self._pump_soon()

    def _no_subscriber(self) -> str:
        reason = "no matching subscribers"
        if not self._warned_of_no_subscriber:
            self._warned_of_no_subscriber = True
            log.warning("nobody subscribes to what is published at %s: has a bridge ever run there?", self.address)
        return reason

    def _on_receipts(self, messages: Sequence[Publish | TooLarge], epoch: int) -> None:
        for message in messages:
            if isinstance(message, Publish) and message.request:
                self._on_receipt(message.request.correlation, message.payload)
        packet_ids = [message.packet_id for message in messages if message.packet_id]
        if packet_ids and self._link:
            self._link.confirm(packet_ids, epoch)

    def _on_receipt(self, correlation: bytes, payload: bytes) -> None:
        try:
            answer = orjson.loads(payload)
            state, at, reason = State(answer["state"]), answer.get("at"), answer.get("reason")
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("what came on %s is not a receipt", self._receipts_topic)
            return
        if final := self._outbox.answered(correlation, state, at, reason):
            self._outbox.give_up(correlation, GivenUpError(final))

    def _on_event(self, event: Event) -> None:
        from bridge.events import BrokerConnected, BrokerLost, SubscriptionRefused

        if isinstance(event, BrokerConnected):
            self._is_ready, self._error = True, "connected"
            self._outbox.start_over()
            self._pump_soon()
        elif isinstance(event, BrokerLost):
            self._is_ready = False
            if event.error != self._error:
                self._error = event.error
                log.warning("%s; %d messages wait", event.error, len(self._outbox))
        elif isinstance(event, SubscriptionRefused):
            log.warning("receipts cannot be had, the broker refused %s: %s", event.topic_filter, event.reason)

    def _on_link_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._error, self._is_open = repr(error), False
            log.error("the prediction client died: %r", error)
            self._room.close()
            self._outbox.end_all(lambda outgoing: self._not_yet(outgoing, "before the client died"))

    def _on_ended(self, outgoing: Outgoing, error: Exception | None) -> None:
        if error and outgoing.done:
            outgoing.tell(error)
        elif error:
            self._unheard.append(error)
            log.warning("message %s, for which nobody waits: %s", outgoing.message_id, error)
        if self._spool:
            self._leave_spool(self._spool, outgoing, error)
            self._may_feed.set()
        else:
            self._room.give(len(outgoing.payload))
        self._note_idle()

    async def _watch(self) -> None:
        """Ask again for receipts that do not come: they are QoS 0, and the bridge may have died before its answer."""
        while True:
            await asyncio.sleep(min(_WATCH_SECONDS, self._ask_again_seconds))
            if self.connected and self._outbox.ask_again(time.monotonic(), self._ask_again_seconds):
                self._pump_soon()

    def _not_yet(self, outgoing: Outgoing, when: str) -> NotYetError:
        wanted = outgoing.until.name.lower()
        if not outgoing.number and not outgoing.row_id:
            return NotYetError(f"not accepted {when}: {self._error}", "it is not held", outgoing.message_id, None)
        known = outgoing.reached.name.lower()
        return NotYetError(
            f"message {outgoing.message_id} is {known} and was not {wanted} {when} ({self._error})",
            "it goes on its way as long as this client is open" if self._is_open else "publish it again, same id",
            outgoing.message_id,
            outgoing.reached,
        )


def _teller(answer: asyncio.Future[Receipt]) -> Callable[[Receipt | Exception], None]:
    def tell(outcome: Receipt | Exception) -> None:
        if answer.done():  # its caller gave up
            if isinstance(outcome, Exception):
                log.warning("a message for which nobody waits any more: %s", outcome)
        elif isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    return tell


def _noted(writing: asyncio.Future[None]) -> None:
    """Say what the spool could not write; its row goes out again at the next start, and the bridge knows its id."""
    if not writing.cancelled() and (error := writing.exception()):
        log.error("the spool: %s", error)


def _legal(topic: str) -> str:
    if fault := name_fault(topic):
        raise UsageError(
            f"{topic[:200]!r} is not a topic to publish to: {fault}", "for example edge/predictions/press-4"
        )
    return topic


def _too_large(packet_bytes: int) -> Exception:
    return RefusedError(f"the broker takes no packet of {packet_bytes} bytes", "max_packet_size in mosquitto.conf")
