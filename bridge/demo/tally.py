"""The count at the end: what each witness wrote down, compared id by id.

Nothing is taken from a counter of the bridge: the cameras know what they tried and what the broker confirmed, the
disk queue's file has the ids it stored, the cloud has the ids and the payloads that reached it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ledgers:
    """Who knows what, by prediction id. `deliveries`: events that the cloud was sent, copies included."""

    tried: Mapping[str, bytes]
    confirmed: AbstractSet[str]
    stored: AbstractSet[str]
    delivered: Mapping[str, bytes]
    deliveries: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Messages. `published`: confirmed by the broker. `lost`: of those, the ones that the cloud does not have."""

    published: int
    stored: int
    delivered: int
    duplicated: int
    lost: int
    unexpected: int
    altered: int

    @property
    def is_sound(self) -> bool:
        """Nothing is missing, nothing came out of nowhere, nothing was changed, and the count counted something."""
        return self.published > 0 and not (self.lost or self.unexpected or self.altered)


def count(ledgers: Ledgers) -> Tally:
    """Compare the ledgers."""
    delivered = ledgers.delivered.keys()
    return Tally(
        published=len(ledgers.confirmed),
        stored=len(ledgers.stored),
        delivered=len(delivered),
        duplicated=ledgers.deliveries - len(delivered),
        lost=len(ledgers.confirmed - delivered),
        unexpected=len(delivered - ledgers.tried.keys()),
        altered=sum(ledgers.tried[known] != ledgers.delivered[known] for known in delivered & ledgers.tried.keys()),
    )
