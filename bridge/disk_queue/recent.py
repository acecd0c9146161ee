"""The newest rows, while nobody has taken them: what was in memory a moment ago need not be read from the file again.

A copy only: every row here is in the file, or in the transaction under way. It holds the last rows without a gap, and
serves from when the cursor comes to the first of them. It is given up if one of them is, if a transaction is undone,
or if the cursor is so far behind that it will not be here soon (an outage). Pure; holds its part of I5.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice

from bridge.message import Row, new_row

_BYTES_MAX = 6 << 20  # some groups and batches
_FAR_BYTES = _BYTES_MAX  # waiting in the file before them


class Recent:
    """Rows in order; `take` answers only what a look into the file would."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self._bytes = 0

    def add(self, events: Sequence[bytes], newest: int, cursor: int) -> None:
        """Hear of rows that were stored, of which `newest` is the last id; to take them later is nothing but that."""
        first = newest - len(events) + 1
        size_bytes = sum(map(len, events))
        if (first - 1 - cursor) * size_bytes > _FAR_BYTES * len(events):  # as if those before were of their size
            self.clear()
            return
        if self._rows and self._rows[-1].row_id + 1 != first:
            self.clear()
        self._rows.extend(map(new_row, zip(range(first, newest + 1), events, strict=True)))
        self._bytes += size_bytes
        while self._bytes > _BYTES_MAX:
            self._drop_first()

    def take(self, cursor: int, messages_max: int, bytes_max: int) -> tuple[Row, ...]:
        """Take the rows behind the cursor, at most so many and (but for the first) so many bytes; () if unknown."""
        rows = self._rows
        while rows and rows[0].row_id <= cursor:  # read from the file meanwhile
            self._drop_first()
        if not rows or rows[0].row_id != cursor + 1:
            return ()
        taken = [*islice(rows, messages_max)]
        sizes = [*accumulate([len(row.data) for row in taken])]
        count = max(1, bisect_right(sizes, bytes_max))
        for _ in range(count):
            rows.popleft()
        self._bytes -= sizes[count - 1]
        return tuple(taken[:count])

    def _drop_first(self) -> None:
        self._bytes -= len(self._rows.popleft().data)

    def clear(self) -> None:
        """Know nothing."""
        self._rows.clear()
        self._bytes = 0
