"""Offline first: each prediction is on this machine's disk before the loop goes on; the broker may come later."""

from __future__ import annotations

import argparse
import asyncio

from bridge.client import Prediction, PredictionClient


async def main(spool: str, frames: int) -> None:
    """Publish, then wait until nothing is held here; a kill loses nothing, the next run sends the rest."""
    async with PredictionClient(device_id="truck-7", spool=spool) as predictions:
        print(f"{predictions.held_messages} left from last time", flush=True)
        for frame in range(frames):
            await predictions.publish(Prediction(label="fine", frame=frame), until="accepted")
        while predictions.held_messages:
            print(f"{predictions.held_messages} in the spool, broker {'there' if predictions.connected else 'away'}")
            await asyncio.sleep(0.5)
        print("nothing is held any more")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spool", default="./spool")
    parser.add_argument("--frames", type=int, default=1000)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.spool, arguments.frames))
