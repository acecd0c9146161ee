"""The demo's producers: what they publish, and that their ledger says no more than what they know."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridge.demo.cameras import CAMERAS, Cameras, prediction
from bridge.demo.classifier import Answer, Classifier
from bridge.errors import FaultError, OperatorError

AT_ONCE = 1e9  # messages a second


def classifier() -> Classifier:
    """Stand in for a trained one: says 7 to everything; two of three images are a 7."""
    model = SimpleNamespace(
        classes_=np.array([3, 7]), predict_proba=lambda images: np.array([[0.25, 0.75]] * len(images))
    )
    return Classifier(model, "test-1", np.zeros((3, 64)), np.array([7, 7, 3]))


class Broker:
    """Takes publishes, and confirms them when told to."""

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.confirms = asyncio.Event()

    async def publish(self, topic: str, payload: bytes) -> None:
        self.published.append((topic, json.loads(payload)))
        await self.confirms.wait()


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_prediction_carries_all_that_the_contract_names() -> None:
    answer = Answer("7", {"3": 0.25, "7": 0.75}, latency_ms=0.123, is_right=True)
    at = datetime(2026, 2, 3, 4, 5, 6, 789_000, UTC)
    assert json.loads(prediction("id-1", "press-1", 42, answer, "v1", at)) == {
        "prediction_id": "id-1",
        "camera": "press-1",
        "frame": 42,
        "timestamp": "2026-02-03T04:05:06.789Z",
        "label": "7",
        "probabilities": {"3": 0.25, "7": 0.75},
        "model": {"name": "digits-logistic-regression", "version": "v1"},
        "latency_ms": 0.123,
    }


async def test_only_a_confirmation_makes_a_message_confirmed() -> None:
    broker = Broker()
    cameras = Cameras(classifier(), broker.publish, 8, AT_ONCE)
    await cameras.allow(8)
    running = asyncio.create_task(cameras.run())
    await settled()
    assert (len(cameras.tried), cameras.confirmed) == (8, set())
    broker.confirms.set()
    await running
    assert cameras.confirmed == set(cameras.tried)


async def test_each_message_has_an_id_of_its_own_and_each_camera_counts_its_frames() -> None:
    broker = Broker()
    broker.confirms.set()
    cameras = Cameras(classifier(), broker.publish, 8, AT_ONCE)
    await cameras.allow(8)
    await cameras.run()
    assert {uuid.UUID(content["prediction_id"]).version for _, content in broker.published} == {4}
    assert len({content["prediction_id"] for _, content in broker.published}) == 8
    assert sorted((topic, content["frame"]) for topic, content in broker.published) == [
        (f"edge/predictions/{camera}", frame) for camera in CAMERAS for frame in (0, 1)
    ]


async def test_they_go_no_further_than_they_are_allowed() -> None:
    broker = Broker()
    broker.confirms.set()
    cameras = Cameras(classifier(), broker.publish, 10, AT_ONCE)
    running = asyncio.create_task(cameras.run())
    await settled()
    assert len(cameras.tried) == 0
    await cameras.allow(4)
    await settled()
    assert len(cameras.tried) == 4
    await cameras.allow(10)
    await running
    assert len(cameras.confirmed) == 10


async def test_a_message_that_the_broker_refuses_ends_them() -> None:
    async def refuse(_topic: str, _payload: bytes) -> None:
        raise FaultError("refused")

    cameras = Cameras(classifier(), refuse, 3, AT_ONCE)
    await cameras.allow(3)
    with pytest.raises(ExceptionGroup) as caught:
        await cameras.run()
    assert caught.group_contains(FaultError, match="refused")
    assert cameras.confirmed == set()


async def test_accuracy_is_the_share_of_right_answers() -> None:
    broker = Broker()
    broker.confirms.set()
    cameras = Cameras(classifier(), broker.publish, 6, AT_ONCE)
    await cameras.allow(6)
    await cameras.run()
    assert cameras.accuracy == pytest.approx(4 / 6)


def test_a_missing_scikit_learn_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(OperatorError, match="scikit-learn") as caught:
        Classifier.train(1)
    assert "pip install 'edge-bridge[demo]'" in caught.value.hint
    assert "make setup" in caught.value.hint
