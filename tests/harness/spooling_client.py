"""A producer that is to be killed: publishes with a spool for ever, and says on standard output what it was told.

`accepted ID` and `stored ID`, one a line, flushed when the client library said so. With `--drain` it publishes
nothing and ends when the spool is empty.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from bridge.client import PredictionClient
from bridge.client.session import Until

PUBLISHERS = 4
PAUSE_SECONDS = 0.01


def say(word: str, message_id: str) -> None:
    os.write(1, f"{word} {message_id}\n".encode())


async def produce(predictions: PredictionClient, name: str, until: Until) -> None:
    for number in itertools.count():
        frame = {"prediction_id": f"{name}-{number}", "frame": f"{name}-{number}"}
        await predictions.publish(frame, until=until)
        say(until, f"{name}-{number}")
        await asyncio.sleep(PAUSE_SECONDS)


async def main(port: int, spool: Path, name: str) -> None:
    async with PredictionClient(device_id="press-4", port=port, spool=spool, ask_again_seconds=0.5) as predictions:
        if name == "--drain":
            await predictions.flush(60)
            return
        async with asyncio.TaskGroup() as group:
            for number in range(PUBLISHERS):
                group.create_task(produce(predictions, f"{name}-a{number}", "accepted"))
                group.create_task(produce(predictions, f"{name}-s{number}", "stored"))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
