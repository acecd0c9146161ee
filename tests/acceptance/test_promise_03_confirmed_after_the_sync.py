"""Promise 3: PUBACK is written only after the fdatasync of its row returned, in order of arrival; as strace sees it.

I1 at the only place where it cannot be talked about: the bytes on the broker's socket and the calls on the WAL. The
checker is tested too: it must find a bridge that confirms before it commits.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import figures
from tests.harness.packets import PUBACK, PUBLISH, packet_id, packets
from tests.harness.stage import Stage
from tests.harness.strace import SYNC_CALLS, Call, calls, watching

FRAME = re.compile(rb'"frame":"(frame-\d+)"')
PAGES = frozenset({"write", "pwrite64", "pwritev"})


@dataclass
class Traffic:
    """What went over one connection to the broker: the bytes, and for each piece sent where it starts and when."""

    received: bytearray = field(default_factory=bytearray)
    sent: bytearray = field(default_factory=bytearray)
    sent_from: list[int] = field(default_factory=list)
    sent_at: list[int] = field(default_factory=list)

    @property
    def arrivals(self) -> list[tuple[int, str]]:
        """(packet id, frame) of each PUBLISH, in order."""
        publishes = (body for _, kind, body in packets(self.received) if kind == PUBLISH)
        return [(packet_id(PUBLISH, body), found[1].decode()) for body in publishes if (found := FRAME.search(body))]

    @property
    def confirmations(self) -> list[tuple[int, int]]:
        """(packet id, when its first byte was handed to the kernel) of each PUBACK, in order."""
        ends = ((end, packet_id(kind, body)) for end, kind, body in packets(self.sent) if kind == PUBACK)
        return [(name, self.sent_at[bisect(self.sent_from, end - 4) - 1]) for end, name in ends]


@dataclass
class Sight:
    """A run as strace saw it: when each frame was first in the WAL, and from when to when a sync of the WAL took."""

    connections: dict[str, Traffic] = field(default_factory=dict)
    written_at: dict[str, int] = field(default_factory=dict)
    syncs: list[tuple[int, int]] = field(default_factory=list)

    def note(self, call: Call, port: int) -> None:
        if call.target.endswith("/data.db-wal"):
            self._note_wal(call)
        elif call.target.endswith(f"->127.0.0.1:{port}]") and call.result > 0:
            traffic = self.connections.setdefault(call.target, Traffic())
            if call.name == "recvfrom":
                traffic.received += call.data
            else:
                traffic.sent_from.append(len(traffic.sent))
                traffic.sent_at.append(call.began)
                traffic.sent += call.data[: call.result]

    def _note_wal(self, call: Call) -> None:
        if call.name in SYNC_CALLS and call.result == 0:
            self.syncs.append((call.began, call.returned))
        elif call.name in PAGES:
            for frame in FRAME.findall(call.data):
                self.written_at.setdefault(frame.decode(), call.returned)

    def synced_at(self, frame: str) -> float:
        """When the first sync that began after the frame was written had returned; infinity if none did."""
        written_at = self.written_at.get(frame)
        ends = (end for began, end in self.syncs if written_at is not None and began > written_at)
        return min(ends, default=float("inf"))


def sight(observed: Iterable[Call], port: int) -> Sight:
    seen = Sight()
    for call in observed:
        seen.note(call, port)
    return seen


def watched_run(stage: Stage, folder: Path, messages: int, sabotage: str = "") -> tuple[list[str], int]:
    """Let messages pass under strace; return the violations and how many confirmations were looked at."""
    log = folder / "strace.log"
    bridge = stage.launch(sabotage, wrapper=watching(log))
    publisher = stage.publish(messages)
    stage.drain()
    bridge.terminate()
    assert bridge.wait() == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)
    seen = sight(calls(log), stage.broker.port)
    (traffic,) = (one for one in seen.connections.values() if one.arrivals)
    arrivals, confirmations = traffic.arrivals, traffic.confirmations
    syncs_of = {frame: seen.synced_at(frame) for _, frame in arrivals}
    violations = []
    for (arrived, frame), (confirmed, at) in zip(arrivals, confirmations, strict=False):
        if arrived != confirmed:
            violations.append(f"{frame} came as {arrived}, in its turn {confirmed} was confirmed")
        if not syncs_of[frame] < at:
            violations.append(f"{frame} was confirmed at {at}, its sync returned at {syncs_of[frame]}")
    return violations, min(len(arrivals), len(confirmations))


def test_no_confirmation_of_ten_thousand_is_written_before_its_sync_returned_or_out_of_order(
    stage: Stage, tmp_path: Path, strace_installed: None
) -> None:
    violations, confirmations = watched_run(stage, tmp_path, 10_000)
    figures.count(confirmations=confirmations, violations=len(violations))
    assert violations == []
    assert confirmations == 10_000, "some were never seen, so nothing is known of them"


def test_the_same_look_finds_a_bridge_that_confirms_before_it_commits(
    stage: Stage, tmp_path: Path, strace_installed: None
) -> None:
    violations, confirmations = watched_run(stage, tmp_path, 1000, "confirm-before-commit")
    assert confirmations == 1000
    assert len(violations) > 900
