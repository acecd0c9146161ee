"""The client library: for the code that makes predictions and wants to know what became of them.

    async with PredictionClient(device_id="press-4") as predictions:
        await predictions.publish({"label": "crack", "score": 0.97})              # the broker has it
        await predictions.publish(verdict, until="stored", timeout=5)             # the bridge has it on disk
        await predictions.publish(alarm, until="delivered")                       # the cloud has it

Before the life of a message in the bridge begins: `payload` makes the JSON and finds the id, `outbox` keeps order
and remembers what is not done yet, `session` is the client itself over one connection of `bridge.broker`, `blocking`
its twin for code without an event loop. Imports nothing of the server: paho only when it connects.

Never forgets in silence: a message that was accepted is sent, or somebody hears of it.
"""

from __future__ import annotations

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
from bridge.client.outbox import Receipt, Stage, State
from bridge.client.payload import Prediction
from bridge.client.session import PredictionClient
from bridge.environment import Tls

__all__ = [
    "BacklogFullError",
    "BlockingPredictionClient",
    "ClosedError",
    "GivenUpError",
    "NotJsonError",
    "NotYetError",
    "Prediction",
    "PredictionClient",
    "Receipt",
    "RefusedError",
    "Stage",
    "State",
    "Tls",
    "UnsentError",
    "UsageError",
]
