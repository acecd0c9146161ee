"""How soon a `stored` receipt comes: one producer at a modest rate, a real Mosquitto, a real bridge with its defaults.

    python benchmarks/receipts.py [--rate 500] [--seconds 20]

Times are from the call to the receipt. The exit status says whether the 99th percentile is below 30 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from bridge.bench.contenders import Bridge
from bridge.bench.results import latency
from bridge.bench.stage import set_stage
from bridge.client import PredictionClient

P99_MS_MAX = 30


async def receipts(folder: Path, rate: int, seconds: float) -> list[int]:
    """Publish at this rate for so long; return how many nanoseconds each receipt took."""
    took_ns: list[int] = []
    async with (
        set_stage(folder, Bridge("power", "none"), 300) as stage,
        PredictionClient(device_id="bench", port=stage.broker_port) as predictions,
    ):

        async def publish(frame: int) -> None:
            begun_ns = time.monotonic_ns()
            await predictions.publish({"frame": frame, "label": "crack", "pad": "x" * 250}, until="stored", timeout=30)
            took_ns.append(time.monotonic_ns() - begun_ns)

        await publish(-1)
        took_ns.clear()
        begun = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for frame in range(int(rate * seconds)):
                await asyncio.sleep(begun + frame / rate - time.monotonic())
                tasks.create_task(publish(frame))
    return took_ns


def main() -> int:
    """Measure, print a line, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=int, default=500, help="messages a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure")  # noqa: S108
    args = parser.parse_args()
    found = latency(asyncio.run(receipts(args.folder, args.rate, args.seconds)))
    if found is None:
        return 1
    percentiles = f"p50 {found.p50_ms}, p99 {found.p99_ms}, p99.9 {found.p999_ms}, longest {found.max_ms} ms"
    print(f"{found.samples} stored receipts at {args.rate} messages/s: {percentiles} (p99 wanted: {P99_MS_MAX})")
    return int(found.p99_ms >= P99_MS_MAX)


if __name__ == "__main__":
    sys.exit(main())
