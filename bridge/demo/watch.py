"""What can be seen of the bridge and the cloud from outside, kept up to date: the story's conditions look here only.

The bridge by its status topic, will included; the cloud by its own counts. Knows nothing that another program on the
same machine could not know.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import orjson

from bridge.broker import watch_topic
from bridge.config import MqttSettings
from bridge.demo.cloud import Cloud, Stats

LOOK_SECONDS = 0.25


class Watch:
    """The last that was seen. `waiting`: rows on the disk that the cloud has not confirmed, as the bridge says."""

    def __init__(self, mqtt: MqttSettings, cloud: Cloud, status_topic: str) -> None:
        self._mqtt, self._cloud, self._status_topic = mqtt, cloud, status_topic
        self.bridge_state = "offline"
        self.bridge_is_connected = False  # to the broker
        self.bridge_sees_cloud = True
        self.stored = self.waiting = self.waiting_max = 0
        self.stats = Stats(0, 0, 0)
        self.cloud_answers = False

    async def follow_bridge(self) -> None:
        """Follow the status topic, until cancelled. FaultError if the broker goes away."""
        async with aclosing(watch_topic(self._mqtt, self._status_topic)) as publications:
            async for payload in publications:
                self.take(orjson.loads(payload))

    async def poll_cloud(self) -> None:
        """Ask the cloud several times a second, until cancelled."""
        while True:
            stats = await asyncio.to_thread(self._cloud.stats)
            self.cloud_answers = stats is not None
            self.stats = stats or self.stats
            await asyncio.sleep(LOOK_SECONDS)

    def take(self, tree: dict[str, Any]) -> None:
        """Take a status object in. The bridge's will brings its head only: the rest stays as it was last seen."""
        self.bridge_state = tree["state"]
        self.bridge_is_connected = tree.get("broker", {}).get("connected", False)
        if "queue" in tree:
            queue = tree["queue"]
            self.bridge_sees_cloud = tree["cloud"]["state"] == "online"
            self.waiting = queue["ready"] + queue["taken"]
            self.waiting_max = max(self.waiting_max, self.waiting)
            self.stored = self.waiting + queue["delivered"] + queue["dead"]
