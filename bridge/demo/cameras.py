"""The producers: a few cameras whose frames are classified and published at QoS 1, at a steady pace.

Keeps the ledger that the count at the end starts from: an id is `tried` before it is sent, and `confirmed` when, and
only when, its PUBACK came. How far the cameras may go is told by the story (`allow`), so that each act has the
messages it needs on a slow machine too.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from bridge.demo.classifier import MODEL_NAME, Answer, Classifier

CAMERAS = ("press-1", "press-2", "press-3", "press-4")
TOPIC = "edge/predictions"
_UNDER_WAY_MAX = 200
_NAP_SECONDS = 0.005  # a pace is kept in steps of this size

Publish = Callable[[str, bytes], Awaitable[None]]


def prediction(prediction_id: str, camera: str, frame: int, answer: Answer, version: str, at: datetime) -> bytes:
    """Return the payload of one message."""
    content: dict[str, Any] = {
        "prediction_id": prediction_id,
        "camera": camera,
        "frame": frame,
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "label": answer.label,
        "probabilities": answer.probabilities,
        "model": {"name": MODEL_NAME, "version": version},
        "latency_ms": answer.latency_ms,
    }
    return orjson.dumps(content)


class Cameras:
    """`run` classifies and publishes `messages` frames and returns when all of them are confirmed."""

    def __init__(self, classifier: Classifier, publish: Publish, messages: int, messages_per_second: float) -> None:
        self.tried: dict[str, bytes] = {}
        self.confirmed: set[str] = set()
        self.messages = messages
        self._classifier = classifier
        self._publish = publish
        self._pause_seconds = 1 / messages_per_second
        self._right = 0
        self._allowed = asyncio.Condition()
        self._limit = 0
        self._room = asyncio.Semaphore(_UNDER_WAY_MAX)

    @property
    def accuracy(self) -> float:
        """The share of right answers so far."""
        return self._right / max(1, len(self.tried))

    async def allow(self, messages: int) -> None:
        """Let the cameras go on up to this many messages in all."""
        async with self._allowed:
            self._limit = messages
            self._allowed.notify_all()

    async def run(self) -> None:
        """Publish at the pace asked for; raises what the publisher raised."""
        due = time.monotonic()
        async with asyncio.TaskGroup() as under_way:
            for frame in range(self.messages):
                if frame >= self._limit:
                    await self._wait_for(frame)
                    due = time.monotonic()
                due += self._pause_seconds
                if (ahead_seconds := due - time.monotonic()) > _NAP_SECONDS:
                    await asyncio.sleep(ahead_seconds)
                await self._room.acquire()
                under_way.create_task(self._send(frame))

    async def _wait_for(self, frame: int) -> None:
        async with self._allowed:
            await self._allowed.wait_for(lambda: frame < self._limit)

    async def _send(self, frame: int) -> None:
        try:
            answer = self._classifier.classify(frame)
            camera, prediction_id = CAMERAS[frame % len(CAMERAS)], str(uuid.uuid4())
            payload = prediction(
                prediction_id, camera, frame // len(CAMERAS), answer, self._classifier.version, datetime.now(UTC)
            )
            self.tried[prediction_id] = payload
            self._right += answer.is_right
            await self._publish(f"{TOPIC}/{camera}", payload)
            self.confirmed.add(prediction_id)
        finally:
            self._room.release()
