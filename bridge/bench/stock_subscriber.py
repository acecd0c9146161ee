"""mosquitto_sub into /dev/null, and the process of ours that counts for it: the other candidate for the ceiling.

It tells no numbers, but ends by itself after so many messages (`-C`), so that the time of its end is exact. The bench
has said before how many there will be, and its session is made at the broker before it starts, so that it misses none.
Until then a report says 0, and with the end everything; duplicates are not seen. What it costs is not measured: the
process is another one in each phase.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from typing import Any

from bridge.bench import mqtt
from bridge.bench.dialogue import hear, say
from bridge.bench.null_subscriber import RECEIVE_MAXIMUM, SESSION_EXPIRY_SECONDS
from bridge.bench.predictions import Phase

_START_SECONDS = 0.5  # it is connected long before
_STOP_SECONDS = 10.0


class StockSubscriber:
    """One mosquitto_sub after another, each until it has had its messages."""

    def __init__(self, program: str, port: int, counts: dict[Phase, int]) -> None:
        self._program, self._port, self._counts = program, port, counts
        self._begin(Phase.PROBE)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Answer a command of the bench, as a tally does."""
        if command["do"] == "expect":
            self.end()
            self._begin(Phase(command["phase"]))
            return {}
        unique = self._counts[self._phase] if self._ended_ns else 0
        return {"unique": unique, "duplicates": 0, "last_ns": self._ended_ns}

    def end(self) -> None:
        """End the one that runs."""
        self._process.kill()
        self._watch.join()

    def _begin(self, phase: Phase) -> None:
        self._phase, self._ended_ns = phase, 0
        session = ("-i", f"bench-{phase.name}", "-c", "-x", str(SESSION_EXPIRY_SECONDS))
        window = ("-D", "connect", "receive-maximum", str(RECEIVE_MAXIMUM))
        command = [self._program, "-p", str(self._port), "-V", "5", "-q", "1", *session, *window]
        command += ["-t", mqtt.TOPIC_FILTER.decode()]
        subprocess.run([*command, "-E"], check=True, timeout=_STOP_SECONDS)  # ends when it is subscribed
        self._process = subprocess.Popen([*command, "-C", str(self._counts[phase])], stdout=subprocess.DEVNULL)
        self._watch = threading.Thread(target=self._note_the_end, args=(self._process,))
        self._watch.start()
        time.sleep(_START_SECONDS)

    def _note_the_end(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait() == 0:
            self._ended_ns = time.monotonic_ns()


def main() -> int:
    """Subscribe, say ready, and take until standard input ends."""
    parser = argparse.ArgumentParser(prog="bridge.bench.stock_subscriber")
    parser.add_argument("--program", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    subscriber = StockSubscriber(args.program, args.port, {Phase.PROBE: 1, Phase.THROUGHPUT: args.count})
    say({"ready": True})
    while (command := hear()) is not None:
        say(subscriber.answer(command))
    subscriber.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
