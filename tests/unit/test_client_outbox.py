"""The outbox alone: order, window, what is held until when, and what goes out again."""

from __future__ import annotations

from bridge.client.errors import RefusedError
from bridge.client.outbox import Outbox, Outgoing, Receipt, Stage, State
from bridge.message import Publish
from bridge.wire import Splitter, string


class Sender:
    """An outbox, what it sent, and what it told."""

    def __init__(self) -> None:
        self.ended: dict[str, Exception | None] = {}
        self.told: dict[str, list[Receipt | Exception]] = {}
        self.outbox = Outbox("edge/buffer/receipts/t", self._on_ended)

    def add(self, name: str, until: Stage = Stage.SENT, payload: bytes = b"{}") -> None:
        self.told[name] = []
        hold = max(until, Stage.SENT)
        outgoing = Outgoing(name, string(b"t"), payload, b"", until, hold, done=self.told[name].append)
        self.outbox.add(outgoing)

    def send(self, window: int = 100, packet_bytes_max: int = 1 << 20) -> list[Publish]:
        piece = self.outbox.next_piece(window, packet_bytes_max, lambda size: RefusedError(f"{size} bytes"))
        publishes = list(Splitter(mqtt5=True, payload_bytes_max=1 << 20).feed(piece))
        assert all(isinstance(item, Publish) for item in publishes)
        return [item for item in publishes if isinstance(item, Publish)]

    def states(self, name: str) -> list[State]:
        return [outcome.state for outcome in self.told[name] if isinstance(outcome, Receipt)]

    def _on_ended(self, outgoing: Outgoing, error: Exception | None) -> None:
        self.ended[outgoing.message_id] = error
        if error:
            outgoing.tell(error)


def test_messages_go_out_in_order_and_never_more_than_a_window_is_unconfirmed() -> None:
    sender = Sender()
    for number in range(5):
        sender.add(str(number), payload=b"%d" % number)
    first = sender.send(window=3)
    assert [publish.payload for publish in first] == [b"0", b"1", b"2"]
    assert sender.send(window=3) == []
    sender.outbox.confirmed(first[0].packet_id, 0.0, None)
    assert [publish.payload for publish in sender.send(window=3)] == [b"3"]
    assert sender.ended == {"0": None}
    assert sender.states("0") == [State.SENT]


def test_packet_ids_are_not_used_twice_at_the_same_time() -> None:
    sender = Sender()
    sender.add("slow")
    (slow,) = sender.send()
    for number in range(65_600):
        sender.add(str(number))
        (publish,) = sender.send()
        assert publish.packet_id not in (0, slow.packet_id)
        sender.outbox.confirmed(publish.packet_id, 0.0, None)


def test_after_a_lost_connection_everything_held_goes_again_in_the_order_of_acceptance() -> None:
    sender = Sender()
    for name, until in (("a", Stage.SENT), ("b", Stage.STORED), ("c", Stage.SENT), ("d", Stage.SENT)):
        sender.add(name, until, name.encode())
    publishes = sender.send(window=3)
    sender.outbox.confirmed(publishes[0].packet_id, 0.0, None)
    sender.outbox.confirmed(publishes[1].packet_id, 0.0, None)  # b waits for its receipt
    sender.outbox.start_over()
    again = sender.send()
    assert [publish.payload for publish in again] == [b"b", b"c", b"d"]
    assert again[0].request == publishes[1].request


def test_a_message_is_held_until_it_has_come_as_far_as_was_asked() -> None:
    sender = Sender()
    sender.add("alarm", Stage.DELIVERED)
    (publish,) = sender.send()
    assert publish.request is not None
    assert publish.request.until_delivered
    sender.outbox.confirmed(publish.packet_id, 0.0, None)
    for state in (State.STORED, State.DUPLICATE):
        sender.outbox.answered(publish.request.correlation, state, "t", None)
        assert (sender.ended, sender.states("alarm")) == ({}, [])
    sender.outbox.answered(publish.request.correlation, State.DELIVERED, "t", None)
    assert (sender.ended, sender.states("alarm")) == ({"alarm": None}, [State.DELIVERED])
    assert len(sender.outbox) == 0


def test_a_receipt_that_overtakes_the_confirmation_counts_and_is_told_once() -> None:
    sender = Sender()
    sender.add("a", Stage.STORED)
    (publish,) = sender.send()
    assert publish.request is not None
    sender.outbox.answered(publish.request.correlation, State.STORED, "t", None)
    sender.outbox.confirmed(publish.packet_id, 0.0, None)
    sender.outbox.answered(publish.request.correlation, State.DUPLICATE, "t", None)
    assert sender.states("a") == [State.STORED]


def test_who_is_not_answered_asks_again_ever_more_rarely() -> None:
    sender = Sender()
    sender.add("a", Stage.STORED)
    (publish,) = sender.send()
    sender.outbox.confirmed(publish.packet_id, 100.0, None)
    asked_at = []
    for now in range(100, 140):
        if sender.outbox.ask_again(now, 5.0):
            asked_at.append(now)
            (publish,) = sender.send()
            sender.outbox.confirmed(publish.packet_id, now, None)
    assert asked_at == [105, 115, 135]


def test_a_packet_that_the_broker_would_not_take_ends_its_message_and_lets_the_next_one_go() -> None:
    sender = Sender()
    sender.add("large", payload=b"x" * 500)
    sender.add("small")
    assert [publish.payload for publish in sender.send(packet_bytes_max=300)] == [b"{}"]
    (error,) = sender.told["large"]
    assert isinstance(error, RefusedError)


def test_a_refused_message_is_not_sent_again() -> None:
    sender = Sender()
    sender.add("a")
    (publish,) = sender.send()
    refusal = RefusedError("not authorized")
    sender.outbox.confirmed(publish.packet_id, 0.0, refusal)
    sender.outbox.start_over()
    assert sender.send() == []
    assert sender.told["a"] == [refusal]


def test_what_ends_while_it_waits_does_not_go_out_and_its_late_receipt_is_nobodys() -> None:
    sender = Sender()
    sender.add("a", Stage.STORED)
    (publish,) = sender.send()
    assert publish.request is not None
    correlation = publish.request.correlation
    sender.outbox.start_over()
    final = sender.outbox.answered(correlation, State.DROPPED, "t", "the queue is at its bound")
    assert final == Receipt("a", State.DROPPED, "t", "the queue is at its bound")
    refusal = RefusedError("dropped")
    for _ in range(2):
        sender.outbox.give_up(correlation, refusal)
    assert sender.send() == []
    assert sender.told["a"] == [refusal]
    assert sender.outbox.answered(correlation, State.STORED, "t", None) is None
