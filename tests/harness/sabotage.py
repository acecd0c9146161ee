"""The real command with one thing broken in it, for tests that must see the difference.

    python -m tests.harness.sabotage confirm-before-commit run
    python -m tests.harness.sabotage raise-at=3 run
    python -m tests.harness.sabotage gate=FIFO run
    python -m tests.harness.sabotage hang=uploader run

`confirm-before-commit`: intake confirms first and stores then, 20 ms later as on an SD card: the mistake that promise
1 is about. `raise-at=N`: the N-th call of the message callback raises, after a line `raised at SECONDS` on standard
error. `gate=FIFO`: each put waits for a byte in the FIFO, after a line `at the gate`; a test lets them through one by
one. `hang=PART`: from the first connection to the broker on, or from the first message on, that part never comes back:
`disk`, `broker`, `uploader`, or `loop` for the whole event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bridge.admission import Group, Outcome
from bridge.broker import Broker
from bridge.cli import main
from bridge.disk_queue import DiskQueue, NewRow
from bridge.intake import Intake
from bridge.uploader import Uploader

CARD_SECONDS = 0.02


def confirm_before_commit(_: str) -> None:
    confirm, store = Intake._confirm, Intake._stored

    async def stored(self: Intake, group: Group) -> Outcome:
        confirm(self, group)
        await asyncio.sleep(CARD_SECONDS)
        return await store(self, group)

    _replace(Intake, _stored=stored, _confirm=lambda _self, _group: None)


def raise_at(call: str) -> None:
    receive, calls = Intake.receive, itertools.count(1)

    def received(self: Intake, messages: Any, epoch: int) -> None:
        if next(calls) == int(call):
            _tell(f"raised at {time.time()}")
            raise RuntimeError("sabotage")
        receive(self, messages, epoch)

    _replace(Intake, receive=received)


def gate(fifo: str) -> None:
    put_rows, passes = DiskQueue.put_rows, os.open(fifo, os.O_RDWR)

    def put(self: DiskQueue, rows: Sequence[NewRow]) -> None:
        _tell("at the gate")
        os.read(passes, 1)
        put_rows(self, rows)

    _replace(DiskQueue, put_rows=put)


def hang(part: str) -> None:
    async def forever(*_: object) -> Any:
        await asyncio.Event().wait()

    def asleep(*_: object) -> Any:
        time.sleep(3600)

    match part:
        case "disk":
            _replace(DiskQueue, put_rows=asleep)
        case "broker":
            _replace(Broker, hold=forever)
        case "uploader":
            _replace(Uploader, post=forever)
        case "loop":
            _replace(Intake, receive=asleep)
        case _:
            raise ValueError(part)


SABOTAGES: dict[str, Callable[[str], None]] = {
    "confirm-before-commit": confirm_before_commit,
    "raise-at": raise_at,
    "gate": gate,
    "hang": hang,
}


def _replace(owner: type, **members: Callable[..., object]) -> None:
    for name, member in members.items():
        assert hasattr(owner, name), f"{owner.__name__} has no {name} any more: mend the sabotage"
        setattr(owner, name, member)


def _tell(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    what, _, argument = sys.argv[1].partition("=")
    SABOTAGES[what](argument)
    raise SystemExit(main(sys.argv[2:]))
