"""What is told of losses: grouped by topic, exact in number, and each in the counter it belongs to."""

from __future__ import annotations

from bridge.events import Died, Dropped, Refused
from bridge.loss import Gone, Loss, LossReason, by_topic, events_of


def test_messages_are_grouped_by_topic_in_order() -> None:
    gone = [Gone("a", "t", 5.0), Gone("b", "u", None), Gone(None, "t", 3.0), Gone("c", "t", 9.0)]
    assert by_topic(LossReason.EXPIRED, gone, "why") == [
        Loss(LossReason.EXPIRED, 3, "t", ("a", "c"), "why", 3.0, 9.0),
        Loss(LossReason.EXPIRED, 1, "u", ("b",), "why", None, None),
    ]


def test_each_loss_raises_one_counter_by_its_number() -> None:
    losses = [
        Loss(LossReason.TOO_LARGE, 1, "t", detail="9 bytes"),
        Loss(LossReason.MAX_BYTES, 2, "t"),
        Loss(LossReason.MAX_BYTES, 3, "u"),
        Loss(LossReason.DEAD, 4, "t", detail="refused (HTTP 422)"),
        Loss(LossReason.DEAD_REMOVED, 5, "t"),
    ]
    assert events_of(losses) == [
        Refused(1, "t", "payload of 9 bytes is too large (intake.max_payload_bytes)"),
        Dropped(5, "queue.max_bytes reached"),
        Died(4, "refused (HTTP 422)"),
    ]


def test_every_reason_has_words_and_a_counter() -> None:
    for reason in LossReason:
        assert reason.words
        assert len(events_of([Loss(reason, 1, None)])) == (reason is not LossReason.DEAD_REMOVED)
