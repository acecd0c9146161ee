"""The client library beside bare paho, both publishing at QoS 1 with the same window to the same broker.

    python benchmarks/client.py --port 1883        # a broker that may be filled; nobody need subscribe

One process each, in turn, five times; the median counts. Both get the payload as a dict and make the JSON themselves.
The exit status says whether the library reaches 0.9 of bare paho.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import orjson

WINDOW = 1000
RUNS = 5
RATIO_MIN = 0.9


def payloads(count: int) -> list[dict[str, Any]]:
    return [{"frame": frame, "label": "crack", "score": 0.97, "pad": "x" * 200} for frame in range(count)]


async def library(port: int, count: int, *, many: bool) -> float:
    """Publish from as many tasks as there are messages, or with publish_many; messages a second at until="sent"."""
    from bridge.client import PredictionClient

    values = payloads(count)
    async with PredictionClient(device_id="bench", port=port, window=WINDOW) as predictions:
        await predictions.publish({"frame": -1})
        begun = time.perf_counter()
        if many:
            await predictions.publish_many(values)
        else:
            await asyncio.gather(*(predictions.publish(value) for value in values))
        return count / (time.perf_counter() - begun)


def bare_paho(port: int, count: int) -> float:
    """Publish in a loop, paho's own thread does the rest; messages a second until the last confirmation."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    values, confirmed, connected = payloads(count), threading.Semaphore(0), threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.max_inflight_messages_set(WINDOW)
    client.on_publish = lambda *_: confirmed.release()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    connected.wait()
    begun = time.perf_counter()
    for value in values:
        client.publish("edge/predictions/bench", orjson.dumps(value), qos=1)
    for _ in values:
        confirmed.acquire()
    rate = count / (time.perf_counter() - begun)
    client.disconnect()
    client.loop_stop()
    return rate


def main() -> int:
    """Run each in a process of its own, in turn, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--only", choices=("paho", "tasks", "many"))
    args = parser.parse_args()
    if args.only == "paho":
        print(bare_paho(args.port, args.count))
    elif args.only:
        print(asyncio.run(library(args.port, args.count, many=args.only == "many")))
    else:
        return compare(args.port, args.count)
    return 0


def compare(port: int, count: int) -> int:
    rates: dict[str, list[float]] = {"paho": [], "tasks": [], "many": []}
    for _ in range(RUNS):
        for name, results in rates.items():
            command = [sys.executable, __file__, "--port", str(port), "--count", str(count), "--only", name]
            results.append(float(subprocess.run(command, capture_output=True, check=True).stdout))
    medians = {name: statistics.median(results) for name, results in rates.items()}
    for name, rate in medians.items():
        print(f"{name:6} {rate:10,.0f} messages/s   {rate / medians['paho']:5.2f} of bare paho")
    return 0 if medians["tasks"] >= RATIO_MIN * medians["paho"] else 1


if __name__ == "__main__":
    sys.exit(main())
