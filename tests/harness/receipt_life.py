"""One life of the part of the bridge that stores and gives receipts, and says each that it gives: for power cuts.

    python -m tests.harness.receipt_life FOLDER MARKS --seed 7 --steps 40 [--durability crash]
        [--tells-early]

Groups of messages go the way that intake's go (admission, disk thread, one transaction), some of them asking for
receipts; batches are taken and acked. The moment a receipt is handed to the broker a line is appended to MARKS: from
then on its producer may forget the message. `--durability` and `--tells-early` are the mistakes that a test must find.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import orjson

from bridge.admission import Arrival, Group, Store
from bridge.config import Settings
from bridge.disk_queue import DiskQueue, Receipt
from bridge.disk_thread import DiskThread
from bridge.message import Request, head, head_middle, tail
from tests.harness.powercut_life import life_options, lived

RECEIVED_AT, TIME = 1.8e9, "2027-01-15T08:00:00Z"


def arrivals(numbers: range, choice: random.Random) -> list[Arrival]:
    made = []
    for number in numbers:
        name = f"m{number}"
        what = tail(orjson.dumps("x" * choice.choice((100, 300, 5000))), is_json=True)
        request = Request("edge/buffer/receipts/press-4", name.encode(), until_delivered=choice.random() < 0.5)
        asked = request if choice.random() < 0.7 else None
        data = head(name, head_middle("edge/x", "t"), TIME) + what
        made.append(Arrival("t", name, b"never", data, RECEIVED_AT, 1, dup=False, session=0, request=asked))
    return made


async def live(disk_queue: DiskQueue, say: Callable[[Sequence[Receipt]], None], seed: int, steps: int) -> None:
    """Store groups and ack batches, several verbs waiting at a time so that they share transactions."""
    choice = random.Random(seed)
    bounds = Settings.model_validate({"device_id": "x", "upload": {"url": "http://127.0.0.1:9"}}).queue
    store = Store(bounds.model_copy(update={"min_free_disk_bytes": 0}), window=10)
    disk = DiskThread(disk_queue, keep_seconds=3600, keep_messages=1_000_000, on_receipts=say)
    next_number = disk_queue.newest_id() + 1
    for _ in range(steps):
        puts = []
        for _ in range(choice.randint(1, 3)):
            numbers = range(next_number, next_number + choice.randint(1, 30))
            next_number = numbers.stop
            group = Group(0, list(arrivals(numbers, choice)), 0)
            puts.append(disk.run(lambda queue, group=group: store(queue, group)))  # type: ignore[misc]
        rows = await disk.take(choice.randint(1, 40), 1 << 20)
        await asyncio.gather(*puts, disk.ack([row.row_id for row in rows]))
    disk.close()


def main() -> None:
    parser = life_options()
    parser.add_argument("--tells-early", action="store_true")
    given = parser.parse_args()
    with lived(given) as (disk_queue, mark):

        def say(receipts: Sequence[Receipt]) -> None:
            mark([[receipt.event_id, receipt.state] for receipt in receipts])

        if given.tells_early:
            disk_queue.receipts.give = lambda *receipt: say([Receipt(*receipt)])  # type: ignore[method-assign]
        asyncio.run(live(disk_queue, say, given.seed, given.steps))


if __name__ == "__main__":
    main()
