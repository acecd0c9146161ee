"""An inference service: frames come in, a scikit-learn model answers, every answer is published."""

from __future__ import annotations

import argparse
import asyncio
import itertools

from bridge.client import Prediction, PredictionClient
from bridge.demo.classifier import MODEL_NAME, Classifier


async def serve(frames: int | None, per_second: float) -> None:
    """Classify and publish; each frame is a task of its own, so none waits for another's confirmation."""
    classifier = await asyncio.to_thread(Classifier.train, 1)
    async with PredictionClient(device_id="press-4") as predictions, asyncio.TaskGroup() as under_way:
        for frame in itertools.count() if frames is None else range(frames):
            answer = classifier.classify(frame)
            prediction = Prediction(
                label=answer.label,
                scores=answer.probabilities,
                model=MODEL_NAME,
                version=classifier.version,
                latency_ms=answer.latency_ms,
                device="press-4",
                frame=frame,
            )
            under_way.create_task(predictions.publish(prediction))
            await asyncio.sleep(1 / per_second)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, help="stop after so many")
    parser.add_argument("--per-second", type=float, default=100)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.frames, arguments.per_second))
