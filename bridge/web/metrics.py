"""The status object as Prometheus text: one table, a line a metric, and the renderer for it.

The text format is small enough that writing it costs less than importing a library for it at every start on an
edge device (prometheus-client: about 0.1 s). Pure: it reads the tree of `bridge.status` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from bridge.status import LOAD_WINDOWS, CloudState, Leaf, State, Tree

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[Labels, Leaf]
Getter = Callable[[Tree], Iterable[Sample]]


class Metric(NamedTuple):
    """One row of the table. `samples` yields (labels, value); null values are left out."""

    name: str
    kind: str
    meaning: str
    samples: Getter


def leaf_at(status_tree: Tree, *path: str) -> Leaf:
    """Return the leaf at this path of the status object; it must be there."""
    node: Tree | Leaf = status_tree
    for name in path:
        if not isinstance(node, dict):
            raise KeyError(path)
        node = node[name]
    if isinstance(node, dict):
        raise KeyError(path)
    return node


def _one(*path: str) -> Getter:
    return lambda status_tree: [({}, leaf_at(status_tree, *path))]


def _time(*path: str) -> Getter:
    def samples(status_tree: Tree) -> Iterator[Sample]:
        moment = leaf_at(status_tree, *path)
        yield {}, None if moment is None else datetime.fromisoformat(str(moment)).timestamp()

    return samples


def _member(states: Iterable[str], *path: str) -> Getter:
    names = tuple(states)
    return lambda status_tree: [({"state": name}, leaf_at(status_tree, *path) == name) for name in names]


def _rows(status_tree: Tree) -> Iterator[Sample]:
    for name in ("ready", "taken", "delivered", "dead"):
        yield {"state": name}, leaf_at(status_tree, "queue", name)


def _receipts(status_tree: Tree) -> Iterator[Sample]:
    for name in ("given", "unsent", "refused"):
        yield {"outcome": name}, leaf_at(status_tree, "receipts", name)


def _latency(status_tree: Tree) -> Iterator[Sample]:
    for name, quantile in (("p50", "0.5"), ("p99", "0.99")):
        milliseconds = leaf_at(status_tree, "cloud", "latency_ms", name)
        yield {"quantile": quantile}, milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def _load(direction: str) -> Getter:
    return lambda tree: [({"window": window}, leaf_at(tree, "load", direction, window)) for window, _ in LOAD_WINDOWS]


def _information(status_tree: Tree) -> Iterator[Sample]:
    yield {name: str(leaf_at(status_tree, name)) for name in ("version", "bridge_id")}, 1


def _counter(name: str, meaning: str) -> Metric:
    return Metric(f"edge_bridge_messages_{name}_total", "counter", meaning, _one("messages", name))


def _gauge(name: str, meaning: str, samples: Getter) -> Metric:
    return Metric(f"edge_bridge_{name}", "gauge", meaning, samples)


METRICS = (
    _gauge("info", "Which bridge this is.", _information),
    _gauge("state", "1 for the state the bridge is in.", _member(State, "state")),
    _gauge("uptime_seconds", "Seconds since the process started.", _one("uptime_seconds")),
    _gauge("broker_connected", "1 while the MQTT broker is connected.", _one("broker", "connected")),
    Metric("edge_bridge_broker_reconnects_total", "counter", "Reconnects to the broker.", _one("broker", "reconnects")),
    Metric(
        "edge_bridge_broker_stale_confirms_total",
        "counter",
        "Messages stored but not confirmed, for their connection had ended; they come again.",
        _one("broker", "stale_confirms"),
    ),
    _gauge("cloud_state", "1 for the state the destination is in.", _member(CloudState, "cloud", "state")),
    _gauge(
        "cloud_last_success_timestamp_seconds",
        "Unix time when an answer last covered rows.",
        _time("cloud", "last_success_at"),
    ),
    _gauge(
        "cloud_next_attempt_timestamp_seconds",
        "Unix time of the next try; absent while the destination is online.",
        _time("cloud", "next_attempt_at"),
    ),
    _gauge("cloud_latency_seconds", "Duration of a POST over the last answers.", _latency),
    _gauge("queue_rows", "Rows of the disk queue by state.", _rows),
    _gauge("queue_bytes", "Bytes the queue takes.", _one("queue", "bytes")),
    _gauge("queue_limit_bytes", "Bytes the queue may take; 0 = no bound.", _one("queue", "limit_bytes")),
    _gauge("queue_disk_free_bytes", "Free bytes on the file system of the queue.", _one("queue", "disk_free_bytes")),
    _gauge("queue_oldest_age_seconds", "Age of the oldest row that waits.", _one("queue", "oldest_age_seconds")),
    _gauge("queue_full_in_seconds", "Forecast; absent when not heading there.", _one("queue", "full_in_seconds")),
    _gauge("queue_empty_in_seconds", "Forecast; absent when not heading there.", _one("queue", "empty_in_seconds")),
    Metric("edge_bridge_disk_commits_total", "counter", "Transactions written to the queue.", _one("disk", "commits")),
    Metric(
        "edge_bridge_disk_written_bytes_total",
        "counter",
        "Bytes that the process gave to its disks to write; absent where the system does not tell.",
        _one("disk", "written_bytes"),
    ),
    Metric(
        "edge_bridge_payload_bytes_total",
        "counter",
        "Payload bytes read from the broker.",
        _one("disk", "payload_bytes"),
    ),
    _counter("received", "Messages read from the broker."),
    _counter("stored", "Messages committed to the disk queue."),
    _counter("delivered", "Messages that an answer of the destination covered."),
    _counter("duplicate", "Messages recognised as copies and not stored again."),
    _counter("conflict", "Messages whose id had been used for another payload; stored under a fresh one."),
    _counter("dead", "Messages refused for good and set aside."),
    _counter("dropped", "Messages given up: at a bound of the queue, expired, or discarded by hand."),
    _counter("refused", "Messages not taken, such as oversize ones."),
    _counter("salvaged", "Messages brought back from a damaged file."),
    Metric("edge_bridge_receipts_total", "counter", "Receipts for producers by what became of them.", _receipts),
    _gauge("load_received_messages_per_second", "Moving average, as $SYS/broker/load.", _load("received")),
    _gauge("load_delivered_messages_per_second", "Moving average, as $SYS/broker/load.", _load("delivered")),
)


def exposition(status_tree: Tree) -> str:
    """Return the text that Prometheus scrapes."""
    return "".join(f"{line}\n" for metric in METRICS for line in _lines(metric, status_tree))


def _lines(metric: Metric, status_tree: Tree) -> Iterator[str]:
    yield f"# HELP {metric.name} {_escape(metric.meaning)}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for labels, value in metric.samples(status_tree):
        if isinstance(value, int | float):
            # true is 1; repr keeps every digit of a float where "%g" would round a Unix time
            yield f"{metric.name}{_braces(labels)} {int(value) if isinstance(value, bool) else value!r}"


def _braces(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
