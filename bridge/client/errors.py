"""What the client library raises: each says what is known about the message, and is the standard error nearest to it.

All are `bridge.errors.BridgeError`s: one line, and a hint. Never carries a payload (I8).
"""

from __future__ import annotations

from bridge.client.outbox import Receipt, Stage
from bridge.errors import BridgeError, FaultError, OperatorError


class UsageError(OperatorError, ValueError):
    """A call that cannot be right: a wildcard in the topic, a payload above the limit, an unknown `until`."""


class NotJsonError(OperatorError, TypeError):
    """The payload cannot be written as JSON."""


class ClosedError(BridgeError, RuntimeError):
    """The client is not open (any more)."""


class BacklogFullError(FaultError):
    """The bound of what may wait is reached and the client was asked to raise; this message was not accepted."""


class RefusedError(FaultError):
    """The broker refused it: it is nowhere, and will not be tried again."""


class NotYetError(FaultError, TimeoutError):
    """The time is up. `reached` is how far message `message_id` is known to have come; None: it was not accepted.

    An accepted message stays accepted: it goes on without its caller.
    """

    def __init__(self, message: str, hint: str, message_id: str, reached: Stage | None) -> None:
        super().__init__(message, hint)
        self.message_id, self.reached = message_id, reached


class GivenUpError(FaultError):
    """The bridge answered that it gave the message up, as `receipt` says: dead or dropped."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__(
            f"message {receipt.id} is {receipt.state}: {receipt.reason or 'no reason given'}",
            "the bridge's loss ledger has it",
        )
        self.receipt = receipt


class UnsentError(FaultError):
    """The client was closed with messages that never reached the broker; `message_ids` are those."""

    def __init__(self, message: str, hint: str, message_ids: list[str]) -> None:
        super().__init__(message, hint)
        self.message_ids = message_ids
