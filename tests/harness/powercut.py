"""What a power cut may leave of files: recorded operations → states, pure and repeatable by seed.

A `Disk` follows the operations and knows two contents of everything: what is certain, because it was synced, and what
only the page cache has. The rule of a cut, for each file by itself:

- a sector (512 bytes) holds what it held at the last sync, or anything it has held since, whatever became of its
  neighbours: so writes are lost, torn and reordered, but a sector is never half written;
- the file has the size of the last sync or any it has had since; what was never written of it, or was cut off, may
  be zeros;
- a name that was made, removed or changed in a folder is certain when that folder was synced. Until then each of
  these changes may have happened or not. A file whose removal is undone comes back as a cut may leave it.

A fate (`Fate`) chooses among all these: independent sectors alone would never show the simple losses.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, assert_never

from tests.harness.strace import SYNC_CALLS, Call

SECTOR_BYTES = 512
_NUMBERS = re.compile(r"(?:, \d+)*, (\d+)\) += ")


class Create(NamedTuple):
    """A file or a folder is made unless it is there."""

    path: str
    is_folder: bool = False


class Write(NamedTuple):
    path: str
    offset: int
    data: bytes


class Resize(NamedTuple):
    path: str
    size: int


class Remove(NamedTuple):
    path: str


class Rename(NamedTuple):
    path: str
    target: str


class Sync(NamedTuple):
    """A file or a folder; what it had by now is certain."""

    path: str


class Mark(NamedTuple):
    """What the recorded process says of itself; nothing for the disk."""

    words: bytes


Operation = Create | Write | Resize | Remove | Rename | Sync | Mark
State = Mapping[str, bytes | None]  # path → content, None for a folder


class Fate(Enum):
    """What becomes of the unsynced part of one file, or of the unsynced names."""

    NOTHING = "nothing of it was written"
    EVERYTHING = "all of it was written"
    IN_ORDER = "it was written in order up to a sector"
    SOME_CALLS = "some calls were written, others not"
    SOME_SECTORS = "each sector is of a time of its own"


_FATES = tuple(Fate)
_CLOSE = 3  # operations


@dataclass(slots=True)
class _File:
    """One file: its certain content, its content in the page cache, and what sectors and size were in between."""

    synced: bytes = b""
    cached: bytearray = field(default_factory=bytearray)
    calls: int = 0
    sectors: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)  # → (after which call, content)
    sizes: list[int] = field(default_factory=lambda: [0])  # after 0, 1, … calls

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.cached):
            self.cached.extend(bytes(offset - len(self.cached)))
        self.cached[offset : offset + len(data)] = data
        self._note(offset, offset + len(data))

    def resize(self, size: int) -> None:
        before = len(self.cached)
        del self.cached[size:]
        self.cached.extend(bytes(size - len(self.cached)))
        self._note(size, before)

    def sync(self) -> None:
        if self.calls:
            self.synced, self.calls, self.sizes = bytes(self.cached), 0, [len(self.cached)]
            self.sectors.clear()

    def _note(self, start: int, end: int) -> None:
        self.calls += 1
        self.sizes.append(len(self.cached))
        for sector in range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            at = sector * SECTOR_BYTES
            content = bytes(self.cached[at : at + SECTOR_BYTES]).ljust(SECTOR_BYTES, b"\0")
            self.sectors.setdefault(sector, []).append((self.calls, content))

    def after_cut(self, fate: Fate, choice: random.Random) -> bytes:
        if not self.calls:
            return self.synced
        match fate:
            case Fate.NOTHING:
                return self.synced
            case Fate.EVERYTHING:
                return bytes(self.cached)
            case Fate.IN_ORDER:
                return self._in_order(choice)
            case Fate.SOME_CALLS:
                share = choice.random()
                kept = {call for call in range(1, self.calls + 1) if choice.random() < share}
                return self._rebuilt(lambda _, calls: _last(i for i, c in enumerate(calls) if c in kept), choice)
            case Fate.SOME_SECTORS:
                return self._rebuilt(lambda _, calls: choice.randrange(-1, len(calls)), choice)
        assert_never(fate)

    def _in_order(self, choice: random.Random) -> bytes:
        """All calls but the last ones, and of the first of these some sectors: a torn write."""
        whole = choice.randint(0, self.calls)
        torn = [sector for sector, held in self.sectors.items() if any(call == whole + 1 for call, _ in held)]
        before = choice.choice([*torn, 0])
        return self._rebuilt(
            lambda sector, calls: bisect_left(calls, whole + 1 + (sector < before)) - 1,
            choice,
            self.sizes[min(self.calls, whole + bool(before))],
        )

    def _rebuilt(
        self, version: Callable[[int, Sequence[int]], int], choice: random.Random, size: int | None = None
    ) -> bytes:
        """Take of each sector the version that is chosen (-1: the synced one), and a size if none is given."""
        content = bytearray(self.synced)
        for sector, held in self.sectors.items():
            if (chosen := version(sector, [call for call, _ in held])) >= 0:
                at = sector * SECTOR_BYTES
                content.extend(bytes(max(0, at - len(content))))
                content[at : at + SECTOR_BYTES] = held[chosen][1]
        if size is None:
            size = choice.choice([max(self.sizes), choice.choice(self.sizes)])
        return bytes(content[:size]).ljust(size, b"\0")


def _last(indices: Iterable[int]) -> int:
    return max(indices, default=-1)


class _Folder:
    """A name that holds other names."""


_Change = Mapping[str, _File | _Folder | None]  # name → what it stands for from now on; None: nothing


class Disk:
    """Follows the operations below `root`, a folder that is there for certain."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._certain: dict[str, _File | _Folder] = {}
        self._names: dict[str, _File | _Folder] = {}
        self._changes: list[_Change] = []  # from the certain names to the names, in order

    def apply(self, operation: Operation) -> None:
        """Let the operation happen; KeyError for a file that was not seen being made."""
        match operation:
            case Create(path, is_folder):
                if path not in self._names:
                    self._change({path: _Folder() if is_folder else _File()})
            case Write(path, offset, data):
                self._file(path).write(offset, data)
            case Resize(path, size):
                self._file(path).resize(size)
            case Remove(path):
                self._change({path: None})
            case Rename(path, target):
                self._change({path: None, target: self._names[path]})
            case Sync(path):
                self._sync(path)
            case Mark():
                pass
            case _:
                assert_never(operation)

    def cut(self, choice: random.Random) -> State:
        """Return one of the states that a power cut at this moment may leave."""
        names = dict(self._certain)
        for change in _survivors(self._changes, choice):
            _rename(names, change)
        return self._state(names, lambda file: file.after_cut(choice.choice(_FATES), choice))

    def now(self) -> State:
        """Return what is there without a cut."""
        return self._state(self._names, lambda file: bytes(file.cached))

    def _state(self, names: Mapping[str, _File | _Folder], content: Callable[[_File], bytes]) -> State:
        state: dict[str, bytes | None] = {}
        for path, entry in sorted(names.items()):
            if _folder_of(path) in {self._root, *state}:  # else its folder never came to be
                state[path] = content(entry) if isinstance(entry, _File) else None
        return state

    def _file(self, path: str) -> _File:
        file = self._names[path]
        assert isinstance(file, _File), f"{path} is a folder"
        return file

    def _change(self, change: _Change) -> None:
        self._changes.append(change)
        _rename(self._names, change)

    def _sync(self, path: str) -> None:
        if isinstance(file := self._names.get(path), _File):
            file.sync()
            return
        synced = [change for change in self._changes if path in map(_folder_of, change)]
        for change in synced:
            _rename(self._certain, change)
            self._changes.remove(change)


def _survivors(changes: Sequence[_Change], choice: random.Random) -> Sequence[_Change]:
    match choice.choice(_FATES):
        case Fate.NOTHING:
            return ()
        case Fate.EVERYTHING:
            return changes
        case Fate.IN_ORDER:
            return changes[: choice.randint(0, len(changes))]
        case Fate.SOME_CALLS | Fate.SOME_SECTORS:
            return [change for change in changes if choice.random() < 1 / 2]
        case fate:
            assert_never(fate)


def _rename(names: dict[str, _File | _Folder], change: _Change) -> None:
    for path, entry in change.items():
        if entry is None:
            names.pop(path, None)
        else:
            names[path] = entry


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


class Cut(NamedTuple):
    """A power cut: after how many operations, what was marked since the cut before, and one state it may leave."""

    moment: int
    marks: Sequence[bytes]
    state: State


def cuts(operations: Sequence[Operation], root: str, states: int, seed: int) -> Iterator[Cut]:
    """Yield so many cuts in the order of time; the same seed and operations give the same cuts."""
    choice = random.Random(seed)
    disk, done = Disk(root), 0
    for moment in sorted(_moments(operations, states, choice)):
        passed, done = operations[done:moment], moment
        for operation in passed:
            disk.apply(operation)
        yield Cut(moment, [each.words for each in passed if isinstance(each, Mark)], disk.cut(choice))


def _moments(operations: Sequence[Operation], count: int, choice: random.Random) -> Iterator[int]:
    """Yield random moments: half of them anywhere, half close to what is not a write: most operations are writes."""
    turns = [number for number, operation in enumerate(operations) if not isinstance(operation, Write)]
    for number in range(count):
        if turns and number % 2:
            yield min(len(operations), choice.choice(turns) + choice.randint(0, _CLOSE))
        else:
            yield choice.randint(0, len(operations))


def operations(calls: Iterable[Call], root: str, marks: str) -> Iterator[Operation]:
    """Read a recording: what happened below `root`; writes to the file `marks` are Marks.

    AssertionError for a call that the model does not know: what is left out would be left out in silence.
    """
    for call in calls:
        if call.result < 0:
            continue
        if call.target == marks and call.name == "write":
            yield Mark(call.data)
        elif call.target.startswith(f"{root}/") or call.target == root:
            yield from _operation(call)


def _operation(call: Call) -> Iterator[Operation]:
    assert not (call.name == "openat" and call.data), f"{call.target} was opened by way of its folder"
    match call.name:
        case "openat":
            if "O_CREAT" in call.rest:
                yield Create(call.target)
            if "O_TRUNC" in call.rest:
                yield Resize(call.target, 0)
        case "mkdir":
            yield Create(call.target, is_folder=True)
        case "pwrite64":
            yield Write(call.target, _last_number(call), call.data[: call.result])
        case "ftruncate":
            yield Resize(call.target, _last_number(call))
        case "unlink":
            yield Remove(call.target)
        case "rename":
            yield Rename(call.target, call.data.decode())
        case name if name in SYNC_CALLS:
            yield Sync(call.target)
        case name:
            raise AssertionError(f"the model does not know what {name} does to {call.target}")


def _last_number(call: Call) -> int:
    numbers = _NUMBERS.match(call.rest)
    assert numbers, f"no number in {call}"
    return int(numbers[1])
