"""The model of a power cut: exactly the states that it may leave, found by trying many seeds."""

from __future__ import annotations

import random

import pytest

from tests.harness.powercut import (
    Create,
    Disk,
    Mark,
    Operation,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
    cuts,
    operations,
)
from tests.harness.strace import Call

ROOT, FILE, OTHER = "/disk", "/disk/file", "/disk/other"
A, B, C, ZERO = (letter * 512 for letter in (b"A", b"B", b"C", b"\0"))
CERTAIN = (Create(FILE), Sync(ROOT), Write(FILE, 0, A + A), Sync(FILE))  # two sectors of A


def states(*done: Operation) -> set[tuple[tuple[str, bytes | None], ...]]:
    """All states that a cut after these operations may leave; two hundred seeds find those of small cases."""
    disk = Disk(ROOT)
    for operation in done:
        disk.apply(operation)
    return {tuple(sorted(disk.cut(random.Random(seed)).items())) for seed in range(200)}


def contents(*done: Operation) -> set[bytes | None]:
    return {dict(state).get(FILE) for state in states(*done)}


def test_what_was_synced_is_certain() -> None:
    assert contents(*CERTAIN) == {A + A}


def test_each_sector_of_an_unsynced_write_is_there_or_not() -> None:
    assert contents(*CERTAIN, Write(FILE, 0, B + B)) == {A + A, A + B, B + A, B + B}


def test_what_was_synced_stays_certain_when_more_is_written() -> None:
    assert contents(*CERTAIN, Write(FILE, 0, B), Sync(FILE), Write(FILE, 512, C)) == {B + A, B + C}


def test_a_sync_ends_the_doubt_for_its_file_alone() -> None:
    doubtful = (Create(OTHER), Sync(ROOT), Write(OTHER, 0, C))
    assert {dict(state)[OTHER] for state in states(*CERTAIN, *doubtful)} >= {b"", C}
    assert contents(*CERTAIN, Write(FILE, 0, B), *doubtful, Sync(FILE)) == {B + A}


def test_a_sector_is_never_half_written() -> None:
    half = Write(FILE, 0, b"B" * 700)
    assert {content[512:] for content in contents(*CERTAIN, half) if content} == {A, b"B" * 188 + b"A" * 324}


def test_within_a_sector_a_later_write_never_comes_without_an_earlier_one() -> None:
    first, second = Write(FILE, 0, b"1"), Write(FILE, 1, b"2")
    assert {content[:2] for content in contents(*CERTAIN, first, second) if content} == {b"AA", b"1A", b"12"}


def test_a_later_write_may_come_without_an_earlier_one_elsewhere() -> None:
    assert A + C in contents(*CERTAIN, Write(FILE, 0, B), Write(FILE, 512, C))


def test_a_sector_written_twice_may_be_of_any_time() -> None:
    assert contents(*CERTAIN, Write(FILE, 0, B), Write(FILE, 0, C)) == {A + A, B + A, C + A}


def test_what_was_appended_may_be_missing_or_zeros() -> None:
    grown = contents(*CERTAIN, Write(FILE, 1024, B + B))
    assert grown == {A + A, A + A + B + B, A + A + ZERO + B, A + A + B + ZERO, A + A + ZERO + ZERO}


def test_a_gap_before_an_appended_write_is_zeros() -> None:
    assert contents(*CERTAIN, Write(FILE, 1536, B), Sync(FILE)) == {A + A + ZERO + B}


def test_a_truncation_may_not_have_happened() -> None:
    assert contents(*CERTAIN, Resize(FILE, 512)) == {A, A + A, A + ZERO}
    assert contents(*CERTAIN, Resize(FILE, 512), Sync(FILE)) == {A}


def test_a_truncation_within_a_sector_leaves_the_others_in_their_place() -> None:
    shortened = contents(*CERTAIN, Write(FILE, 1024, C), Sync(FILE), Resize(FILE, 700))
    assert {content[1024:] for content in shortened if content and len(content) > 700} == {C, ZERO}


def test_a_truncation_and_a_write_after_it_do_not_wait_for_each_other() -> None:
    assert contents(*CERTAIN, Resize(FILE, 512), Write(FILE, 0, B)) >= {A, A + A, B, B + A}


def test_a_file_that_ended_within_a_sector_goes_on_with_zeros() -> None:
    grown = contents(Create(FILE), Sync(ROOT), Write(FILE, 0, b"B" * 700), Write(FILE, 1024, C))
    assert {len(content) for content in grown if content is not None} == {0, 700, 1536}
    assert {content[512:] for content in grown if content and len(content) == 1536} == {
        first + second for first in (ZERO, b"B" * 188 + b"\0" * 324) for second in (ZERO, C)
    }


def test_a_file_that_grew_again_after_a_truncation_does_not_have_its_old_end_once_it_is_synced() -> None:
    assert contents(*CERTAIN, Resize(FILE, 700), Write(FILE, 1024, B), Sync(FILE)) == {
        A + b"A" * 188 + b"\0" * 324 + B,
    }


def test_a_new_name_is_certain_when_its_folder_was_synced_and_not_when_the_file_was() -> None:
    made = (Create(FILE), Write(FILE, 0, A), Sync(FILE))
    assert contents(*made) == {None, A}
    assert contents(*made, Sync(ROOT)) == {A}


def test_opening_a_file_that_is_there_changes_nothing() -> None:
    assert contents(*CERTAIN, Create(FILE)) == {A + A}


def test_a_removed_file_may_come_back_until_its_folder_is_synced() -> None:
    assert contents(*CERTAIN, Remove(FILE)) == {None, A + A}
    assert contents(*CERTAIN, Remove(FILE), Sync(ROOT)) == {None}


def test_a_removed_file_and_its_successor_are_two_files() -> None:
    again = (Remove(FILE), Create(FILE), Write(FILE, 0, B), Sync(FILE))
    assert contents(*CERTAIN, *again) == {A + A, B, None}
    assert contents(*CERTAIN, *again, Sync(ROOT)) == {B}


def test_a_rename_happened_or_not_but_never_by_half() -> None:
    assert states(*CERTAIN, Rename(FILE, OTHER)) == {((FILE, A + A),), ((OTHER, A + A),)}
    assert states(*CERTAIN, Rename(FILE, OTHER), Sync(ROOT)) == {((OTHER, A + A),)}


def test_a_folder_whose_name_was_not_synced_takes_all_that_is_in_it_with_it() -> None:
    folder, inside = f"{ROOT}/folder", f"{ROOT}/folder/file"
    made = (Create(folder, is_folder=True), Create(inside), Sync(folder), Write(inside, 0, A), Sync(inside))
    assert states(*made) == {(), ((folder, None), (inside, A))}
    assert states(*made, Sync(ROOT)) == {((folder, None), (inside, A))}


def test_without_a_cut_all_is_there() -> None:
    disk = Disk(ROOT)
    for operation in (*CERTAIN, Write(FILE, 512, B), Create(OTHER)):
        disk.apply(operation)
    assert disk.now() == {FILE: A + B, OTHER: b""}


def test_a_write_to_a_file_that_was_not_seen_being_made_is_an_error() -> None:
    with pytest.raises(KeyError):
        Disk(ROOT).apply(Write(FILE, 0, A))


def test_the_same_seed_gives_the_same_cuts_in_the_order_of_time() -> None:
    writes = [Write(FILE, 512 * (n % 7), B) for n in range(50)]
    done: list[Operation] = [*CERTAIN, *writes, Mark(b"confirms"), Sync(FILE)]
    once, again, other = (list(cuts(done, ROOT, 100, seed)) for seed in (1, 1, 2))
    assert once == again
    assert once != other
    assert [cut.moment for cut in once] == sorted(cut.moment for cut in once)
    assert {cut.moment for cut in once} >= {0, len(done)}
    assert [mark for cut in once for mark in cut.marks] == [b"confirms"]


def call(name: str, target: str, rest: str = ") = 0", data: bytes = b"", result: int = 0) -> Call:
    return Call(name, 0, 0, target, data, result, rest)


def test_calls_become_operations() -> None:
    recorded = [
        call("mkdir", f"{ROOT}/queue", ", 0700) = 0"),
        call("openat", FILE, ", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3", result=3),
        call("openat", FILE, ", O_RDWR|O_CLOEXEC) = 3", result=3),
        call("pwrite64", FILE, ", 4, 512) = 4", b"page", 4),
        call("pwrite64", FILE, ", 4, 516) = 2", b"page", 2),
        call("ftruncate", FILE, ", 300) = 0"),
        call("fdatasync", FILE),
        call("fsync", ROOT),
        call("rename", FILE, data=OTHER.encode()),
        call("unlink", OTHER),
        call("write", "/marks", ", 8) = 8", b"confirms", 8),
    ]
    assert list(operations(recorded, ROOT, "/marks")) == [
        Create(f"{ROOT}/queue", is_folder=True),
        Create(FILE),
        Write(FILE, 512, b"page"),
        Write(FILE, 516, b"pa"),
        Resize(FILE, 300),
        Sync(FILE),
        Sync(ROOT),
        Rename(FILE, OTHER),
        Remove(OTHER),
        Mark(b"confirms"),
    ]


def test_calls_that_failed_or_are_about_other_files_change_nothing() -> None:
    recorded = [call("fdatasync", FILE, result=-1), call("unlink", "/elsewhere"), call("write", "/disk2/file")]
    assert list(operations(recorded, ROOT, "/marks")) == []


@pytest.mark.parametrize("name", ["write", "fallocate", "renameat2", "sync_file_range"])
def test_a_call_that_the_model_does_not_know_is_an_error(name: str) -> None:
    with pytest.raises(AssertionError, match=f"does not know what {name} does"):
        list(operations([call(name, FILE)], ROOT, "/marks"))
