"""The count at the end of every promise: what was tried, what was confirmed, what the cloud has.

`lost = confirmed - stored`, `unexpected = stored - tried`, `duplicates` = stored more than once. A promise holds when
nothing is lost, nothing is unexpected, and there are no more duplicates than it allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.harness import figures


@dataclass(frozen=True, slots=True)
class Audit:
    """`duplicates` maps an id to how often it was stored again; `confirmed` is how many there were to lose."""

    lost: frozenset[str]
    unexpected: frozenset[str]
    duplicates: Mapping[str, int]
    confirmed: int

    @property
    def duplicate_count(self) -> int:
        return sum(self.duplicates.values())

    def assert_kept(self, duplicates_max: int | None = None) -> None:
        """Fail, naming a few ids, unless the promise holds; None: any number of duplicates may be."""
        figures.count(confirmed=self.confirmed, lost=len(self.lost), duplicates=self.duplicate_count)
        assert not self.lost, f"lost {len(self.lost)}: {_some(self.lost)}"
        assert not self.unexpected, f"unexpected {len(self.unexpected)}: {_some(self.unexpected)}"
        too_many = duplicates_max is not None and self.duplicate_count > duplicates_max
        assert not too_many, f"{self.duplicate_count} duplicates, {duplicates_max} allowed: {_some(self.duplicates)}"


def audit(tried: Iterable[str], confirmed: Iterable[str], stored: Iterable[str]) -> Audit:
    """Count. `stored` has an id as often as it was stored (`Cloud.arrivals`)."""
    times, all_confirmed = Counter(stored), frozenset(confirmed)
    return Audit(
        lost=all_confirmed - times.keys(),
        unexpected=frozenset(times) - frozenset(tried),
        duplicates={event_id: count - 1 for event_id, count in times.items() if count > 1},
        confirmed=len(all_confirmed),
    )


def _some(ids: Iterable[str]) -> str:
    return ", ".join(sorted(ids)[:5])
