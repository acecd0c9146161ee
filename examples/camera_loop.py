"""A camera loop without asyncio: results go out in the background, an alarm waits until the cloud has it."""

from __future__ import annotations

import argparse
import random

from bridge.client import NotYetError, Prediction, PredictionClient

ALARM_SCORE = 0.95


def look(frame: int) -> Prediction:
    """Stand in for camera and model."""
    score = random.random()
    return Prediction(label="crack" if score > ALARM_SCORE else "fine", scores={"crack": score}, frame=frame)


def main(frames: int) -> None:
    """Look at so many frames."""
    with PredictionClient.blocking(device_id="camera-1", when_full="wait") as predictions:
        for frame in range(frames):
            prediction = look(frame)
            if prediction.label != "crack":
                predictions.publish(prediction, until="accepted")  # does not wait for the broker
                continue
            try:
                receipt = predictions.publish(prediction, until="delivered", timeout=30)
                print(f"frame {frame}: alarm is {receipt.state}")
            except NotYetError as error:  # it goes on; sound the horn on this side meanwhile
                print(f"frame {frame}: {error}")
        predictions.flush(30)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200)
    main(parser.parse_args().frames)
