"""The doctor's visit at the broker: connect, subscribe to what the bridge subscribes to, publish one message, leave.

A guest that takes nothing away: a client id of its own, no session that stays behind, and for a shared subscription a
group of its own, or else messages meant for the bridge would go to us. What arrives is a copy; it is confirmed so that
the window stays open, and thrown away. The one publish goes to a topic of the bridge's own, below its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from functools import partial

from bridge.broker import Publisher, watch_topic
from bridge.config import Settings
from bridge.doctor.judge import AtBroker, Granted
from bridge.errors import BridgeError, FaultError, OperatorError
from bridge.events import Event, SubscriptionGranted, SubscriptionRefused
from bridge.message import Publish
from bridge.monitor import first
from bridge.topics import unshared
from bridge.wire import TooLarge

_ANSWER_SECONDS = 2.0  # for each of: the SUBACK, the PUBACK
_RETURN_SECONDS = 0.5  # for our own message to come back, once it is confirmed
_WINDOW = 100


async def visit(settings: Settings) -> AtBroker:
    """Visit the broker; never raises."""
    try:
        return await _Visit(settings).run()
    except OperatorError as error:  # a certificate of ours that cannot be used
        return AtBroker(error=error.message)


class _Visit:
    def __init__(self, settings: Settings) -> None:
        mark = uuid.uuid4().hex[:8]
        self._topic, self._payload = f"{settings.status.topic}/doctor", mark.encode()
        self._came_back = asyncio.Event()
        self._granted: dict[str, Granted] = {}
        self._asked = {_for_a_guest(name, mark): name for name in settings.mqtt.topics}
        self._broker = Publisher(
            settings.mqtt.model_copy(update={"receive_maximum": _WINDOW}),
            client_id=f"edge-bridge-doctor-{mark}",
            emit=self._hear,
            random=lambda: 0.0,
            sink=self._take,
            filters=[*self._asked, self._topic],
        )

    async def run(self) -> AtBroker:
        if error := await self._broker.connect():
            return AtBroker(error=error)
        holding = asyncio.ensure_future(self._broker.hold())
        try:
            subscribed = asyncio.ensure_future(self._broker.subscribed.wait())
            await asyncio.wait({subscribed, holding}, timeout=_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            subscribed.cancel()
            if not self._broker.subscribed.is_set():
                why = holding.result() if holding.done() else "no answer to SUBSCRIBE"
                return AtBroker(error=f"connected, and then: {why}")
            return await self._publish()
        finally:
            holding.cancel()
            await self._broker.farewell()

    async def _publish(self) -> AtBroker:
        refusal, confirmed = "", False
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._broker.publish_confirmed(self._topic, self._payload)
            confirmed = True
        except TimeoutError:
            pass
        except FaultError as error:
            refusal = error.message.rpartition(": ")[2]
        if confirmed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETURN_SECONDS):
                    await self._came_back.wait()
        granted = tuple(self._granted[name] for name in self._asked.values() if name in self._granted)
        return AtBroker("", granted, self._topic, refusal, confirmed, self._came_back.is_set())

    def _hear(self, event: Event) -> None:
        if isinstance(event, SubscriptionGranted | SubscriptionRefused) and event.topic_filter in self._asked:
            name = self._asked[event.topic_filter]
            if isinstance(event, SubscriptionGranted):
                self._granted[name] = Granted(name, event.qos, event.wanted_qos)
            else:
                self._granted[name] = Granted(name, 0, 0, event.reason)

    def _take(self, messages: Sequence[Publish | TooLarge], epoch: int) -> None:
        for message in messages:
            if isinstance(message, Publish) and (message.topic, message.payload) == (self._topic, self._payload):
                self._came_back.set()
        if packet_ids := [message.packet_id for message in messages if message.packet_id]:
            self._broker.confirm(packet_ids, epoch)


def _for_a_guest(topic_filter: str, mark: str) -> str:
    plain = unshared(topic_filter)
    return topic_filter if plain == topic_filter else f"$share/edge-bridge-doctor-{mark}/{plain}"


async def retained_status(settings: Settings, limit_seconds: float) -> bytes:
    """Return what the bridge last said of itself, as it is retained at the broker; b"" if nothing can be had."""
    try:
        return await first(partial(watch_topic, settings.mqtt, settings.status.topic), limit_seconds) or b""
    except BridgeError:
        return b""
