"""Contract §4.2 and the bounds, on a real queue: what is stored once, what is kept twice, what is given up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import orjson
import pytest

from bridge.admission import Arrival, Group, Outcome, Plain, Store
from bridge.config import Settings
from bridge.disk_queue import DiskQueue
from bridge.disk_queue.receipts import ReceiptState
from bridge.loss import LossReason
from bridge.message import DeadRow, Request, event_id, head, head_middle, parse_json, producer_id, tail, uuid7
from bridge.wire import TooLarge

TIME = "2026-11-23T18:00:00.000000Z"


@pytest.fixture
def disk_queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path, durability="crash")
    yield queue
    queue.close()


def make_store(**bounds: object) -> Store:
    settings = Settings.model_validate({"upload": {"url": "http://127.0.0.1:1/"}, "queue": bounds})
    return Store(settings.queue, window=100)


NUMBERS = count(1)


def arrival(
    payload: bytes, *, packet_id: int = 1, dup: bool = False, topic: str = "edge/predictions", session: int = 0
) -> Arrival:
    is_json, value = parse_json(payload)
    own_id = producer_id(value, ("prediction_id",))
    made_id = uuid7(0, next(NUMBERS))
    data = head(own_id or made_id, head_middle("edge/x", topic), TIME) + tail(payload, is_json=is_json)
    return Arrival(topic, own_id, made_id.encode(), data, 1.0, packet_id, dup, session)


def put(queue: DiskQueue, store: Store, *items: Arrival | Plain | TooLarge, epoch: int = 1) -> Outcome:
    with queue.transaction():
        outcome = store(queue, Group(epoch, list(items), 0))
    store.stored()
    return outcome


def stored_payloads(queue: DiskQueue) -> list[object]:
    with queue.transaction():
        rows = queue.take(1000, 1 << 30)
        queue.release([row.row_id for row in rows])
    return [orjson.loads(row.data)["data"] for row in rows]


def test_the_same_id_with_the_same_payload_is_stored_once(disk_queue: DiskQueue) -> None:
    store = make_store()
    first = arrival(b'{"prediction_id":"a","x":1}')
    assert put(disk_queue, store, first, first) == Outcome(stored=1, duplicates=1)
    assert put(disk_queue, store, first) == Outcome(duplicates=1)
    assert disk_queue.counts().ready == 1


def test_the_same_id_is_still_known_while_the_delivered_row_is_kept(disk_queue: DiskQueue) -> None:
    store = make_store()
    put(disk_queue, store, arrival(b'{"prediction_id":"a"}'))
    with disk_queue.transaction():
        disk_queue.ack_rows([row.row_id for row in disk_queue.take(10, 1000)])
    assert put(disk_queue, store, arrival(b'{"prediction_id":"a"}')).duplicates == 1


def test_the_same_id_with_another_payload_keeps_both_the_later_under_a_fresh_id(disk_queue: DiskQueue) -> None:
    store = make_store()
    later = arrival(b'{"prediction_id":"a","x":2}')
    outcome = put(disk_queue, store, arrival(b'{"prediction_id":"a","x":1}'), later)
    assert (outcome.stored, outcome.duplicates, outcome.conflicts) == (2, 0, (("edge/predictions", "a"),))
    with disk_queue.transaction():
        rows = disk_queue.take(10, 10_000)
    assert [event_id(row.data) for row in rows] == ["a", later.made_id.decode()]
    assert [orjson.loads(row.data)["data"]["x"] for row in rows] == [1, 2]


def test_messages_without_an_id_are_all_stored_however_alike(disk_queue: DiskQueue) -> None:
    store = make_store()
    assert put(disk_queue, store, *[arrival(b'{"label":"cat"}', packet_id=n) for n in range(1, 6)]).stored == 5


def test_a_redelivery_of_a_stored_message_without_an_id_is_recognised(disk_queue: DiskQueue) -> None:
    put(disk_queue, make_store(), *[arrival(b'{"label":"cat"}', packet_id=n) for n in (1, 2, 3)])
    after_restart = make_store()
    outcome = put(
        disk_queue,
        after_restart,
        arrival(b'{"label":"cat"}', packet_id=2, dup=True),
        arrival(b'{"label":"cat"}', packet_id=3, dup=True),
        arrival(b'{"label":"cat"}', packet_id=4, dup=True),
        epoch=7,
    )
    assert (outcome.stored, outcome.duplicates) == (1, 2)


def plain(*packet_ids: int, session: int = 0) -> Plain:
    return Plain([arrival(b'{"n":%d}' % n).data for n in packet_ids], packet_ids, 1.0, session)


def test_what_came_together_is_stored_in_its_place(disk_queue: DiskQueue) -> None:
    own = arrival(b'{"prediction_id":"a"}', packet_id=3)
    assert put(disk_queue, make_store(), plain(1, 2), own, plain(4, 5)) == Outcome(stored=5)
    assert stored_payloads(disk_queue) == [{"n": 1}, {"n": 2}, {"prediction_id": "a"}, {"n": 4}, {"n": 5}]


def test_a_redelivery_of_what_came_together_is_recognised_unless_the_session_was_forgotten(
    disk_queue: DiskQueue,
) -> None:
    store = make_store()
    store.session = 1
    put(disk_queue, store, plain(1, 2, session=1), plain(3, 4, session=0))
    again = [arrival(b'{"n":%d}' % n, packet_id=n, dup=True, session=1) for n in (1, 2, 3, 4)]
    outcome = put(disk_queue, store, *again, epoch=3)
    assert (outcome.stored, outcome.duplicates) == (2, 2)


def test_a_redelivery_under_a_known_packet_id_but_another_payload_or_topic_is_stored(disk_queue: DiskQueue) -> None:
    store = make_store()
    put(disk_queue, store, arrival(b'{"label":"cat"}', packet_id=1))
    other = arrival(b'{"label":"dog"}', packet_id=1, dup=True)
    elsewhere = arrival(b'{"label":"cat"}', packet_id=1, dup=True, topic="edge/predictions/2")
    assert put(disk_queue, store, other, elsewhere, epoch=2).stored == 2


def test_a_redelivery_is_not_mistaken_for_a_row_of_a_session_the_broker_forgot(disk_queue: DiskQueue) -> None:
    store = make_store()
    put(disk_queue, store, arrival(b'{"label":"cat"}', packet_id=1))
    store.session = 1
    late = arrival(b'{"label":"cat"}', packet_id=2, session=0)  # read before the session was lost, stored after
    put(disk_queue, store, late)
    again = [arrival(b'{"label":"cat"}', packet_id=n, dup=True, session=1) for n in (1, 2)]
    assert put(disk_queue, store, *again, epoch=3).stored == 2


def test_only_rows_that_can_be_unconfirmed_answer_for_a_redelivery(disk_queue: DiskQueue) -> None:
    store = make_store()  # a window of 100
    put(disk_queue, store, arrival(b'{"label":"cat"}', packet_id=500))
    put(disk_queue, store, *[arrival(b'{"label":"cat"}', packet_id=n) for n in range(1, 101)])
    assert put(disk_queue, store, arrival(b'{"label":"cat"}', packet_id=500, dup=True), epoch=2).stored == 1


def test_a_conflict_that_is_redelivered_is_not_stored_a_third_time(disk_queue: DiskQueue) -> None:
    store = make_store()
    put(disk_queue, store, arrival(b'{"prediction_id":"a","x":1}', packet_id=1))
    put(disk_queue, store, arrival(b'{"prediction_id":"a","x":2}', packet_id=2))
    again = arrival(b'{"prediction_id":"a","x":2}', packet_id=2, dup=True)
    assert put(disk_queue, store, again, epoch=2) == Outcome(duplicates=1)


def test_too_large_ones_are_in_the_ledger(disk_queue: DiskQueue) -> None:
    outcome = put(disk_queue, make_store(), TooLarge("edge/predictions/9", 4, 2_000_000))
    assert outcome == Outcome()
    (loss,) = disk_queue.losses()
    assert (loss.reason, loss.messages, loss.topic, loss.detail) == (
        "too_large",
        1,
        "edge/predictions/9",
        "2000000 bytes",
    )


def test_drop_oldest_keeps_the_newest_and_writes_down_the_others(disk_queue: DiskQueue) -> None:
    store = make_store(max_messages=3, overflow="drop-oldest")
    for n in range(5):
        put(disk_queue, store, arrival(b'{"prediction_id":"m%d"}' % n))
    assert stored_payloads(disk_queue) == [{"prediction_id": f"m{n}"} for n in (2, 3, 4)]
    assert [(loss.reason, loss.event_ids) for loss in disk_queue.losses()] == [("max_messages", ("m0", "m1"))]


def test_drop_newest_keeps_the_oldest_and_writes_down_the_others(disk_queue: DiskQueue) -> None:
    store = make_store(max_messages=3, overflow="drop-newest")
    outcome = put(disk_queue, store, *[arrival(b'{"prediction_id":"m%d"}' % n) for n in range(5)])
    assert outcome.stored == 3
    assert stored_payloads(disk_queue) == [{"prediction_id": f"m{n}"} for n in (0, 1, 2)]
    assert [loss.event_ids for loss in disk_queue.losses()] == [("m3", "m4")]


def test_block_stores_nothing_of_a_group_that_does_not_fit(disk_queue: DiskQueue) -> None:
    store = make_store(max_messages=3, overflow="block")
    put(disk_queue, store, *[arrival(b"%d" % n, packet_id=n) for n in (1, 2, 3)])
    outcome = put(disk_queue, store, arrival(b"4", packet_id=4))
    assert (outcome.blocked, outcome.reason) == ("blocked", "queue.max_messages reached")
    assert (disk_queue.counts().ready, disk_queue.losses()) == (3, [])


def test_a_disk_that_others_filled_blocks_and_drops_nothing(disk_queue: DiskQueue) -> None:
    store = make_store(min_free_disk_bytes=1 << 49)
    outcome = put(disk_queue, store, arrival(b"1"))
    assert outcome.blocked == "full"
    assert "MiB free on the disk" in outcome.reason
    assert disk_queue.losses() == []


def pad(kilobytes: int, n: int = 0) -> bytes:
    return b'{"n":%d,"pad":"%b"}' % (n, b"x" * 1000 * kilobytes)


def test_the_same_id_and_payload_on_another_topic_is_another_message(disk_queue: DiskQueue) -> None:
    payload = b'{"prediction_id":1,"label":"ok"}'
    outcome = put(disk_queue, make_store(), arrival(payload, topic="cam/a"), arrival(payload, topic="cam/b"))
    assert (outcome.stored, outcome.conflicts) == (2, (("cam/b", "1"),))


def test_a_group_larger_than_the_bound_is_let_in_when_nothing_waits(disk_queue: DiskQueue) -> None:
    store = make_store(max_messages=3, overflow="block")
    assert put(disk_queue, store, *[arrival(b"%d" % n) for n in range(5)]).stored == 5
    assert put(disk_queue, store, arrival(b"6")).blocked == "blocked"


def test_drop_oldest_drops_what_just_came_where_all_else_is_in_flight(disk_queue: DiskQueue) -> None:
    store = make_store(max_messages=4, overflow="drop-oldest")
    put(disk_queue, store, *[arrival(b'{"prediction_id":"m%d"}' % n) for n in range(3)])
    with disk_queue.transaction():
        disk_queue.take(3, 1 << 20)
    outcome = put(disk_queue, store, *[arrival(b'{"prediction_id":"m%d"}' % n) for n in range(3, 6)])
    assert outcome.stored == 1
    assert disk_queue.counts()[:2] == (1, 3)
    assert disk_queue.losses()[-1].event_ids == ("m3", "m4")


@pytest.mark.parametrize("kilobytes", [(1, 100), (100, 1)], ids=["large after small", "small after large"])
def test_the_bound_in_bytes_counts_bytes_and_not_rows(disk_queue: DiskQueue, kilobytes: tuple[int, int]) -> None:
    store = make_store(max_bytes=2_000_000, overflow="drop-oldest")
    offered = 0
    for size in kilobytes:
        for n in range(0, 4_000 // size, 5):
            put(disk_queue, store, *[arrival(pad(size, n + i)) for i in range(5)])
            offered += 5
    counts = disk_queue.counts()
    assert counts.size_bytes < 2_400_000
    assert counts.size_bytes > 1_000_000, "no more is dropped than must be"
    assert counts.ready + sum(loss.messages for loss in disk_queue.losses()) == offered


def test_the_bound_in_bytes_holds_while_everything_is_in_flight(disk_queue: DiskQueue) -> None:
    store = make_store(max_bytes=500_000, overflow="drop-oldest")
    for n in range(0, 1000, 10):
        put(disk_queue, store, *[arrival(pad(2, n + i)) for i in range(10)])
        with disk_queue.transaction():
            disk_queue.take(1000, 1 << 30)
    counts = disk_queue.counts()
    assert counts.size_bytes <= 600_000
    assert counts.ready + counts.taken + sum(loss.messages for loss in disk_queue.losses()) == 1000


def test_delivered_rows_are_the_first_to_go_at_the_bound(disk_queue: DiskQueue) -> None:
    store = make_store(max_bytes=1_000_000, overflow="drop-oldest")
    for n in range(300):
        put(disk_queue, store, *[arrival(pad(2, n)) for _ in range(5)])
        with disk_queue.transaction():
            disk_queue.ack_rows([row.row_id for row in disk_queue.take(5, 1 << 20)])
    assert disk_queue.losses() == []
    assert disk_queue.counts().size_bytes < 1_100_000


def test_rows_from_before_the_clock_was_set_do_not_expire(disk_queue: DiskQueue) -> None:
    put(disk_queue, make_store(), arrival(b"1"), arrival(b"2")._replace(received_at=1_750_000_000.0))
    with disk_queue.transaction():
        assert disk_queue.drop_oldest(1000, 0, LossReason.MAX_AGE, received_before=1_760_000_000.0)[0] == 1
    assert stored_payloads(disk_queue) == [1]


def test_a_redelivery_that_asks_for_a_receipt_hears_of_its_first_copy(disk_queue: DiskQueue) -> None:
    store, request = make_store(), Request("edge/buffer/receipts/me", b"c")
    put(disk_queue, store, arrival(b'{"label":"cat"}', packet_id=1))
    again = arrival(b'{"label":"cat"}', packet_id=1, dup=True)._replace(request=request)
    with disk_queue.transaction():
        assert store(disk_queue, Group(2, [again], 0)).duplicates == 1
    (receipt,) = disk_queue.receipts.recent
    assert (receipt.event_id, receipt.state) == (event_id(disk_queue.stored_event(1) or b""), "duplicate")


def owe(queue: DiskQueue, *names: str) -> None:
    with queue.transaction():
        for name in names:
            queue.receipts.owe(1, Request("edge/buffer/receipts/me", name.encode()), "m0")


def settle_first(queue: DiskQueue) -> list[tuple[bytes, str | None, str]]:
    with queue.transaction():
        queue.receipts.settle([1, 2], ReceiptState.DELIVERED)
    return [(told.request.correlation, told.event_id, told.state) for told in queue.receipts.recent]


def test_all_who_asked_for_a_receipt_are_told_once(disk_queue: DiskQueue) -> None:
    owe(disk_queue, "a", "b", "a")
    assert settle_first(disk_queue) == [(b"a", "m0", "delivered"), (b"b", "m0", "delivered")]
    assert settle_first(disk_queue) == []


def test_receipts_are_owed_beyond_a_restart_and_to_eight_a_row_at_most(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    owe(queue, *"abcdefghij")
    queue.close()
    queue = DiskQueue(tmp_path, durability="crash")
    assert [correlation for correlation, *_ in settle_first(queue)] == [bytes([one]) for one in b"abcdefgh"]
    queue.close()


def test_without_a_bound_on_bytes_everything_fits(disk_queue: DiskQueue) -> None:
    store = make_store(max_bytes=0)
    assert (
        put(disk_queue, store, *[arrival(b'"%b"' % (b"x" * 100_000), packet_id=n) for n in range(1, 20)]).stored == 19
    )


def test_the_dead_go_before_any_that_waits(disk_queue: DiskQueue) -> None:
    store = make_store(max_bytes=1 << 20, overflow="drop-oldest")
    payload = b'"%b"' % (b"x" * 100_000)
    put(disk_queue, store, *[arrival(payload, packet_id=n) for n in range(1, 6)])
    with disk_queue.transaction():
        disk_queue.reject([DeadRow(row.row_id, "refused") for row in disk_queue.take(3, 1 << 30)])
    put(disk_queue, store, *[arrival(payload, packet_id=n) for n in range(6, 11)])
    assert disk_queue.counts().ready == 7
    assert disk_queue.counts().dead == 0
    assert disk_queue.ledger.totals() == {"dead": 3, "dead_removed": 3}
