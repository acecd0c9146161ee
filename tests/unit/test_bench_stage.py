"""The bench's broker: as shipped, but it never drops what a slow contender leaves to it."""

from __future__ import annotations

from pathlib import Path

from bridge.bench.stage import broker_conf
from bridge.demo.stage import mosquitto_conf


def test_the_broker_is_the_shipped_one_but_for_the_size_of_its_queue() -> None:
    folder = Path("/somewhere/broker")
    shipped, ours = mosquitto_conf(1234, folder).splitlines(), broker_conf(1234, folder).splitlines()
    changed = {new.split(" ")[0] for old, new in zip(shipped, ours, strict=True) if old != new}
    assert changed == {"max_queued_messages", "max_queued_bytes"}


def test_the_brokers_queue_has_room_for_the_largest_run_that_the_command_allows() -> None:
    values = dict(line.split(" ", 1) for line in broker_conf(1234, Path("/x")).splitlines())
    assert int(values["max_queued_messages"]) >= 10_000_000
    assert int(values["max_queued_bytes"]) >= 4 << 30
