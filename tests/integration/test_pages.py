"""A file that is read without SQLite says what SQLite says of it; SQLite itself is asked, and the format's own words.

Many sizes of pages, values, lengths and depths; then the WAL, written here by the letter of the format, so that each
place of it can be wrong alone.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sqlite3
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bridge.disk_queue.pages import Pages, Place, Record, Wal, read_wal

ID_MAX = 2**63 - 1
PAGE_SIZES = [512, 1024, 4096, 65_536]
INTEGERS = [
    *(0, 1, 2, -1),
    *(sign * 2**bits + off for bits in (7, 15, 23, 31, 47) for sign in (1, -1) for off in (-1, 0, 1)),
    *(2**63 - 1, -(2**63)),
]
OTHERS = [None, 0.5, -1e300, "", "text", "ümläut", b"", b"\0\xff", b"x" * 57, b"x" * 58, "y" * 200]
ROW_IDS = [n for bits in range(7, 63, 7) for n in (2**bits - 1, 2**bits)] + [2**62, ID_MAX - 1, ID_MAX]


def database(file: Path, page_bytes: int) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(f"PRAGMA page_size = {page_bytes}")
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


@contextmanager
def read(file: Path) -> Iterator[Pages]:
    pages = Pages(file)
    try:
        yield pages
    finally:
        pages.close()


def said_by_sqlite(connection: sqlite3.Connection, table: str) -> list[Record]:
    """In order; the row id is in front of the columns."""
    rows = connection.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid")  # noqa: S608 - named in this file
    return [Record(row_id, tuple(values)) for row_id, *values in rows]


# ---- values, lengths, depths ----


@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_every_value_and_row_id_reads_as_sqlite_reads_it(tmp_path: Path, page_bytes: int) -> None:
    file = tmp_path / "file"
    with closing(database(file, page_bytes)) as connection:
        connection.execute("CREATE TABLE one (a, b)")
        connection.executemany("INSERT INTO one VALUES (?, ?)", [(value, 7) for value in [*INTEGERS, *OTHERS]])
        connection.execute("CREATE TABLE far (a)")
        connection.executemany("INSERT INTO far (rowid, a) VALUES (?, ?)", [(n, str(n)) for n in ROW_IDS])
        connection.execute("CREATE TABLE least (a)")
        connection.execute("INSERT INTO least VALUES (NULL), (NULL)")  # four bytes each, the last ones of the page
        said = {table: said_by_sqlite(connection, table) for table in ("one", "far", "least")}
    with read(file) as pages:
        assert pages.page_bytes == page_bytes
        roots = pages.roots()
        assert {table: list(pages.table(roots[table])) for table in said} == said
        assert [pages.records(place.page)[1] for place in pages.places(roots["one"])].count(0) > 0
    assert [type(record.values[0]) for record in said["one"]] == [type(value) for value in [*INTEGERS, *OTHERS]]


@pytest.mark.parametrize("page_bytes", [512, 1024, 4096])
def test_payloads_are_read_whole_wherever_they_leave_their_page(tmp_path: Path, page_bytes: int) -> None:
    """https://sqlite.org/fileformat2.html#payload: the last that fits, the first that does not, whole chains."""
    local_max, local_min, chained = page_bytes - 35, (page_bytes - 12) * 32 // 255 - 23, page_bytes - 4
    borders = [local_max, local_min + chained, local_max + chained, local_min + 2 * chained, local_max + 5 * chained]
    lengths = sorted({max(0, border + off) for border in borders for off in range(-8, 9)})
    file = tmp_path / "file"
    with closing(database(file, page_bytes)) as connection:
        connection.execute("CREATE TABLE one (a)")
        pattern = bytes(itertools.islice(itertools.cycle(range(251)), lengths[-1]))
        connection.executemany("INSERT INTO one VALUES (?)", [(pattern[:length],) for length in lengths])
        said = said_by_sqlite(connection, "one")
    with read(file) as pages:
        assert list(pages.table(pages.roots()["one"])) == said
    assert [len(bytes(record.values[0] or b"")) for record in said] == lengths  # type: ignore[arg-type] # all are blobs


@pytest.mark.parametrize(("page_bytes", "rows"), [(512, 12_000), (1024, 3000), (65_536, 9000)])
def test_the_places_of_a_deep_tree_cover_all_ids_in_order_and_each_row_is_where_it_belongs(
    tmp_path: Path, page_bytes: int, rows: int
) -> None:
    file = tmp_path / "file"
    with closing(database(file, page_bytes)) as connection:
        connection.execute("CREATE TABLE one (a)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO one (rowid, a) VALUES (?, ?)", ((3 * n, b"x" * 20) for n in range(1, rows)))
        connection.execute("DELETE FROM one WHERE rowid % 9 = 0")
        connection.execute("COMMIT")
        said = said_by_sqlite(connection, "one")
    with read(file) as pages:
        places = pages.places(pages.roots()["one"])
        assert (places[0].after, places[-1].last) == (0, ID_MAX)
        assert all(before.last == place.after for before, place in itertools.pairwise(places))
        assert all(place.page for place in places)
        found = []
        for place in places:
            records, unreadable = pages.records(place.page)
            assert unreadable == 0
            assert all(place.after < record.row_id <= place.last for record in records)
            found += records
    assert found == said


def test_a_negative_row_id_is_none_of_a_queues(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with closing(database(file, 4096)) as connection:
        connection.execute("CREATE TABLE one (a)")
        connection.execute("INSERT INTO one (rowid, a) VALUES (-5, 'x')")
    with read(file) as pages:
        assert list(pages.table(pages.roots()["one"])) == [Record(0, ("x",))]


@pytest.mark.parametrize("page_bytes", [512, 4096])
def test_a_table_without_row_ids_is_read_as_far_as_its_rows_fit_on_their_page(tmp_path: Path, page_bytes: int) -> None:
    local_max = (page_bytes - 12) * 64 // 255 - 23
    file = tmp_path / "file"
    with closing(database(file, page_bytes)) as connection:
        connection.execute("CREATE TABLE one (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        header_bytes = 3 if local_max - 4 < (128 - 12) // 2 else 4  # a length of two bytes from 58 on
        fits = b"x" * (local_max - header_bytes - len("a"))
        connection.executemany("INSERT INTO one VALUES (?, ?)", [("a", fits), ("b", fits + b"x"), ("c", 1)])
    with read(file) as pages:
        assert list(pages.keyed(pages.roots()["one"])) == [("a", fits), ("c", 1)]
        assert list(pages.keyed(None)) == []
        assert list(pages.keyed(1)) == [], "a table of another kind"


@pytest.mark.parametrize("page_bytes", [512, 4096])
def test_every_free_page_is_known_and_none_else(tmp_path: Path, page_bytes: int) -> None:
    """More of them than a page of the list has room for."""
    file = tmp_path / "file"
    with closing(database(file, page_bytes)) as connection:
        connection.execute("CREATE TABLE one (a)")
        connection.executemany("INSERT INTO one VALUES (?)", [(b"x" * (page_bytes - 100),)] * (page_bytes // 2))
        connection.execute("CREATE TABLE two (a)")
        connection.execute("INSERT INTO two VALUES (1)")
        connection.execute("DELETE FROM one WHERE rowid % 5 > 0")
        count = connection.execute("PRAGMA freelist_count").fetchone()[0]
        kept = said_by_sqlite(connection, "one")
    with read(file) as pages:
        free = pages.free_pages()
        assert len(free) == count > page_bytes // 4
        places = pages.places(pages.roots()["one"])
        assert not free & {place.page for place in places}
        assert [record for place in places for record in pages.records(place.page)[0]] == kept
        leaves = {n for n in range(2, pages.count + 1) if pages.page(n)[0] == 13}
        known = {place.page for place in places}
        assert set(pages.other_leaves(known)) == leaves - known


def test_the_roots_are_those_of_the_tables_whose_entry_can_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with closing(database(file, 512)) as connection:
        for name in ("one", "two", "three", "four", "five", "six"):
            connection.execute(f"CREATE TABLE {name} (a)")
        connection.execute("CREATE INDEX by_a ON one (a)")
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'").fetchall())
        count = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute("PRAGMA writable_schema = ON")
        for name, change in (
            ("two", "rootpage = 'x'"),
            ("three", "rootpage = 0"),
            ("four", f"rootpage = {count + 1}"),
            ("five", "name = x'00'"),
            ("six", f"rootpage = {count}"),
        ):
            connection.execute(f"UPDATE sqlite_master SET {change} WHERE name = '{name}'")  # noqa: S608 - above
    with read(file) as pages:
        assert pages.roots() == {"one": roots["one"], "six": count}


def test_a_page_that_is_not_there_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with closing(database(file, 512)) as connection:
        connection.execute("CREATE TABLE one (a)")
    with file.open("ab") as opened:
        opened.write(b"\x0d" * 511)
    with read(file) as pages:
        assert pages.count == 3
        assert [len(pages.page(n)) for n in (0, 1, 2, 3, 4)] == [0, 512, 512, 0, 0]
        assert list(pages.other_leaves(set())) == [2]
    with read(tmp_path / "no file") as pages:
        assert (pages.count, pages.page(1), pages.roots()) == (0, b"", {})
        assert pages.page_bytes == 4096


# ---- trees that are broken ----


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with many leaves, in pages of 512 bytes; row ids from 1 on."""
    file = tmp_path / "file"
    with closing(database(file, 512)) as connection:
        connection.execute("CREATE TABLE one (a)")
        connection.executemany("INSERT INTO one VALUES (?)", [(b"x" * 100,)] * 60)
    return file


def overwrite(file: Path, page: int, at: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek((page - 1) * 512 + at)
        opened.write(content)


def leaves(file: Path) -> tuple[int, list[Place]]:
    with read(file) as pages:
        root = pages.roots()["one"]
        return root, pages.places(root)


def test_where_a_page_is_destroyed_stands_a_hole_of_its_ids(tree: Path) -> None:
    root, sound = leaves(tree)
    assert len(sound) > 10
    overwrite(tree, sound[3].page, 0, bytes(512))
    assert leaves(tree) == (root, [*sound[:3], sound[3]._replace(page=0), *sound[4:]])
    overwrite(tree, root, 0, bytes(512))
    assert leaves(tree) == (root, [Place(0, 0, ID_MAX)])


def test_a_tree_that_leads_back_to_itself_ends(tree: Path) -> None:
    root, sound = leaves(tree)
    content = tree.read_bytes()[(root - 1) * 512 : root * 512]
    overwrite(tree, root, content.index(sound[3].page.to_bytes(4), 12), root.to_bytes(4))
    assert leaves(tree) == (root, [*sound[:3], sound[3]._replace(page=0), *sound[4:]])


@pytest.mark.parametrize(("depth", "leaf"), [(20, 21), (21, 0)])
def test_a_tree_may_be_as_deep_as_sqlite_allows_and_not_deeper(tmp_path: Path, depth: int, leaf: int) -> None:
    """Each page but the last leads to the next one alone."""
    first = b"SQLite format 3\0" + (512).to_bytes(2)
    interiors = [struct.pack(">BHHHBI", 5, 0, 0, 512, 0, number + 1) for number in range(2, depth + 1)]
    pages_of_file = [first, *interiors, struct.pack(">BHHHB", 13, 0, 0, 512, 0)]
    (tmp_path / "file").write_bytes(b"".join(page.ljust(512, b"\0") for page in pages_of_file))
    with read(tmp_path / "file") as pages:
        assert pages.places(2) == [Place(leaf, 0, ID_MAX)]


def test_a_flipped_key_hides_nothing_that_comes_behind_it(tree: Path) -> None:
    """The leaves on its two sides are still read, whatever it says."""
    root, sound = leaves(tree)
    content = tree.read_bytes()[(root - 1) * 512 : root * 512]
    key_at = content.index(sound[3].page.to_bytes(4), 12) + 4
    overwrite(tree, root, key_at, b"\x01")
    _, places = leaves(tree)
    assert [place.page for place in places] == [place.page for place in sound]
    assert (places[3].after, places[3].last, places[4].after) == (sound[3].after, sound[3].after, sound[3].after)
    assert places[4].last == sound[4].last


def test_cells_that_cannot_be_read_are_counted(tree: Path) -> None:
    _, sound = leaves(tree)
    page = sound[2].page
    with read(tree) as pages:
        whole, unreadable = pages.records(page)
        count = len(whole)
        assert (count > 2, unreadable) == (True, 0)
        assert pages.records(pages.roots()["one"]) == ([], 1), "no leaf"
    first_cell = int.from_bytes(tree.read_bytes()[(page - 1) * 512 + 8 : (page - 1) * 512 + 10])
    overwrite(tree, page, first_cell, b"\x7f")  # longer than it is
    with read(tree) as pages:
        assert pages.records(page) == (whole[1:], 1)
    overwrite(tree, page, 8, b"\xff\xff")  # a cell outside of the page
    with read(tree) as pages:
        assert pages.records(page) == (whole[1:], 1)


@pytest.mark.parametrize(
    "change",
    [
        {0: 0x66},  # the payload is one byte shorter than its columns
        {0: 0x68},  # longer
        {2: 2, 4: 0x56},  # the column's type ends behind the header, and its length makes up for that
        {2: 4},
        {3: 0x80, 4: 10},  # a type that there is not
        {3: 0x80, 4: 11},
    ],
)
def test_a_record_whose_lengths_do_not_add_up_cannot_be_read(tree: Path, change: dict[int, int]) -> None:
    _, sound = leaves(tree)
    page = sound[2].page
    content = tree.read_bytes()[(page - 1) * 512 : page * 512]
    cell = int.from_bytes(content[8:10])
    assert content[cell] == 0x67
    assert content[cell + 2 : cell + 5] == b"\x03\x81\x54", "three bytes of header, and a blob of 100"
    for at, byte in change.items():
        overwrite(tree, page, cell + at, bytes([byte]))
    with read(tree) as pages:
        found, unreadable = pages.records(page)
    assert ([record.row_id for record in found], unreadable) == (list(range(sound[2].after + 2, sound[2].last + 1)), 1)


def test_a_count_of_more_cells_than_a_page_has_room_for_costs_none_of_those_that_are_there(tree: Path) -> None:
    root, sound = leaves(tree)
    with read(tree) as pages:
        whole, _ = pages.records(sound[2].page)
    for page in (root, sound[2].page):
        overwrite(tree, page, 3, b"\xff\xff")
    with read(tree) as pages:
        found, unreadable = pages.records(sound[2].page)
        assert found[: len(whole)] == whole
        assert unreadable > 0
        assert [place.page for place in pages.places(root)][: len(sound) - 1] == [place.page for place in sound[:-1]]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A row of 2000 bytes, in pages of 512 bytes: its leaf (page 2) and four more behind it."""
    file = tmp_path / "chain"
    with closing(database(file, 512)) as connection:
        connection.execute("CREATE TABLE one (a)")
        connection.execute("INSERT INTO one VALUES (?)", (b"x" * 2000,))
    return file


def test_a_row_whose_chain_is_broken_cannot_be_read(chain: Path) -> None:
    with read(chain) as pages:
        assert pages.records(2) == ([Record(1, (b"x" * 2000,))], 0)
    overwrite(chain, 5, 0, bytes(4))  # it ends too early
    with read(chain) as pages:
        assert pages.records(2) == ([], 1)


def test_a_row_that_claims_to_be_longer_than_the_file_is_not_gathered(chain: Path) -> None:
    """Round a chain that leads back to itself it would be until there is no memory left."""
    content = chain.read_bytes()[512:1024]
    cell = int.from_bytes(content[8:10])
    overwrite(chain, 2, cell, b"\xff\xff\xff\xff\xff\x7f")
    for page in range(3, 7):
        overwrite(chain, page, 0, (3).to_bytes(4))
    with read(chain) as pages:
        assert pages.records(2) == ([], 1)


def test_a_freelist_that_cannot_be_is_followed_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with closing(database(file, 512)) as connection:
        connection.execute("CREATE TABLE one (a)")
        connection.executemany("INSERT INTO one VALUES (?)", [(b"x" * 400,)] * 50)
        connection.execute("DELETE FROM one")
    trunk = int.from_bytes(file.read_bytes()[32:36])
    with read(file) as pages:
        free = pages.free_pages()
        assert len(free) > 40
    overwrite(file, trunk, 4, b"\xff\xff\xff\xff")  # more than a page has room for
    with read(file) as pages:
        assert pages.free_pages() >= free
    overwrite(file, trunk, 0, trunk.to_bytes(4))  # back to itself
    with read(file) as pages:
        assert pages.free_pages() >= free
    overwrite(file, 1, 32, b"\1")  # a page that is not there
    with read(file) as pages:
        assert pages.free_pages() == set()


# ---- the WAL ----

MAGIC = 0x377F0682
OF_THIS_MACHINE, OF_THE_OTHER = (MAGIC, MAGIC + 1) if sys.byteorder == "little" else (MAGIC + 1, MAGIC)
SALTS = b"saltSALT"


def summed(block: bytes, order: str, seed: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """https://sqlite.org/fileformat2.html#checksum_algorithm, as it is written there."""
    one, two = seed
    words = struct.unpack(f"{order}{len(block) // 4}I", block)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two


def wal_of(
    frames: Sequence[tuple[int, int]], *, magic: int = MAGIC, page_bytes: int = 512, salts: bytes = SALTS
) -> bytearray:
    """Frames of (page, size of the database after a commit), each page filled with the number of its frame."""
    order = ">" if magic & 1 else "<"
    header = struct.pack(">IIII", magic, 3_007_000, page_bytes, 0) + salts
    sums = summed(header, order)
    written = bytearray(header + struct.pack(">II", *sums))
    for number, (page, size_pages) in enumerate(frames, start=1):
        head, content = struct.pack(">II", page, size_pages), bytes([number % 256]) * page_bytes
        sums = summed(head + content, order, sums)
        written += head + salts + struct.pack(">II", *sums) + content
    return written


def image_at(number: int, page_bytes: int = 512) -> int:
    """Return where the content of a frame begins; the first is number 1."""
    return 32 + number * 24 + (number - 1) * page_bytes


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    return tmp_path / "file-wal"


@pytest.mark.parametrize("magic", [MAGIC, MAGIC + 1])
@pytest.mark.parametrize("page_bytes", [512, 4096, 65_536])
def test_a_sound_wal_gives_the_newest_committed_image_of_each_page(wal: Path, magic: int, page_bytes: int) -> None:
    frames = [(1, 0), (2, 2), (2, 0), (3, 3), (1, 0)]
    wal.write_bytes(wal_of(frames, magic=magic, page_bytes=page_bytes))
    expected = {1: image_at(1, page_bytes), 2: image_at(3, page_bytes), 3: image_at(4, page_bytes)}
    assert read_wal(wal) == Wal(expected, page_bytes)


def test_more_frames_than_are_proven_at_once(wal: Path) -> None:
    count = 2 * 256 + 1
    content = wal_of([(number, number) for number in range(1, count + 1)])
    wal.write_bytes(content)
    assert read_wal(wal) == Wal({number: image_at(number) for number in range(1, count + 1)}, 512)
    content[image_at(300)] ^= 1
    wal.write_bytes(content)
    found = read_wal(wal)
    assert (found.bad_frames, found.is_damaged) == (count - 299, True)
    assert set(range(1, count + 1)) - found.images.keys() == {300}


FOUR = [(1, 1), (2, 0), (3, 3), (4, 4)]


@pytest.mark.parametrize(
    ("number", "bad_frames", "is_damaged", "pages"),
    [
        (1, 4, True, {2, 3, 4}),
        (2, 3, True, {1, 3, 4}),  # the commit in frame 3 had been synced before frame 4 was written
        (3, 2, True, {1, 2, 4}),
        (4, 1, False, {1, 2, 3}),  # a torn end
    ],
)
def test_frames_behind_a_bad_one_are_read_and_it_is_damage_if_a_commit_was_followed(
    wal: Path, number: int, bad_frames: int, is_damaged: bool, pages: set[int]
) -> None:
    content = wal_of(FOUR)
    content[image_at(number) + 511] ^= 0x80
    wal.write_bytes(content)
    assert read_wal(wal) == Wal({page: image_at(page) for page in pages}, 512, bad_frames, is_damaged)


def test_an_older_generation_behind_the_newest_frames_is_not_read(wal: Path) -> None:
    older, newer = wal_of(FOUR, salts=b"SALTsalt"), wal_of([(9, 9), (8, 8)])
    wal.write_bytes(newer + older[len(newer) :])
    assert read_wal(wal) == Wal({9: image_at(1), 8: image_at(2)}, 512)
    wal.write_bytes(newer[:32] + older[32:])
    assert read_wal(wal) == Wal({}, 512), "a new generation of which nothing is written yet"


@pytest.mark.parametrize(
    ("magic", "at"),
    [
        *((OF_THIS_MACHINE, at) for at in range(32)),
        *((OF_THE_OTHER, at) for at in range(4, 32)),  # whose magic says that its words are turned round
    ],
)
def test_one_flipped_bit_in_the_header_loses_no_frame(wal: Path, at: int, magic: int) -> None:
    """SQLite throws such a WAL away as a whole."""
    content = wal_of(FOUR, magic=magic, page_bytes=4096)
    content[at] ^= 4
    wal.write_bytes(content)
    found = read_wal(wal)
    assert found.images == {number: image_at(number, 4096) for number in range(1, 5)}
    assert (found.bad_frames, found.is_damaged) == (4, True)
    one = wal_of(FOUR[:1], magic=magic, page_bytes=4096)
    one[at] ^= 4
    wal.write_bytes(one)
    found = read_wal(wal)
    assert (found.images, found.bad_frames, found.is_damaged) == ({1: 56}, 1, False)


def test_a_frame_of_no_page_is_not_sound_whatever_its_checksum_says(wal: Path) -> None:
    wal.write_bytes(wal_of([(1, 1), (0, 2), (3, 3)]))
    assert read_wal(wal) == Wal({1: image_at(1), 3: image_at(3)}, 512, 2, is_damaged=True)


def test_a_single_page_is_committed(wal: Path) -> None:
    wal.write_bytes(wal_of([(1, 1)]))
    assert read_wal(wal) == Wal({1: image_at(1)}, 512)
    wal.write_bytes(wal_of([(1, 0)]))
    assert read_wal(wal) == Wal({}, 512)


@pytest.mark.parametrize("bad", range(1, 65))
def test_a_bad_frames_commit_counts_if_no_cut_can_have_left_it_without_its_checksum(wal: Path, bad: int) -> None:
    """Sectors are written whole: what stands in one with the checksum is as new as the checksum."""
    content = wal_of([(number, 9 if number == bad else 0) for number in range(1, 67)])
    header_at = image_at(bad) - 24
    sectors = {at // 512 for at in range(header_at + 4, header_at + 24)}
    content[image_at(bad)] ^= 1
    wal.write_bytes(content)
    assert read_wal(wal).is_damaged is (len(sectors) == 1)


class BadSector:
    """A medium that refuses to read one place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self._at, self._pread = at, os.pread
        monkeypatch.setattr(os, "pread", self.pread)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if offset <= self._at < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._pread(descriptor, size, offset)


def test_a_bad_sector_in_the_wal_is_its_end(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wal.write_bytes(wal_of([(1, 1), (2, 2), (3, 3)]))
    BadSector(monkeypatch, image_at(3))
    assert read_wal(wal) == Wal({1: image_at(1), 2: image_at(2)}, 512)


def test_a_bad_sector_in_the_database_is_a_hole(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, sound = leaves(tree)
    BadSector(monkeypatch, (sound[3].page - 1) * 512 + 7)
    with read(tree) as pages:
        assert pages.places(root) == [*sound[:3], sound[3]._replace(page=0), *sound[4:]]
        assert pages.records(sound[3].page) == ([], 1)
        assert pages.page(sound[3].page) == b""


@pytest.mark.parametrize(("lost", "may_be_mixed"), [(0, False), (1, True)])
def test_one_lost_image_is_enough_for_a_tree_to_be_older_than_its_leaves(
    wal: Path, lost: int, may_be_mixed: bool
) -> None:
    content = wal_of(FOUR)
    content[-1] ^= lost
    wal.write_bytes(content)
    with read(wal.with_name("file")) as pages:
        assert pages.may_be_mixed is may_be_mixed


def test_no_descriptor_is_left_open(wal: Path) -> None:
    wal.write_bytes(wal_of(FOUR))
    wal.with_name("file").write_bytes(bytes(512))
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_wal(wal)
    with read(wal.with_name("file")) as pages:
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
        pages.close()  # and once more behind this
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("content", [None, b"", bytes(31), bytes(wal_of([])), bytes(wal_of(FOUR))[: 32 + 24 + 511]])
def test_a_wal_without_a_whole_frame_is_empty(wal: Path, content: bytes | None) -> None:
    if content is not None:
        wal.write_bytes(content)
    assert (read_wal(wal).images, read_wal(wal).bad_frames, read_wal(wal).is_damaged) == ({}, 0, False)


def test_what_stands_in_the_wal_is_laid_over_the_database(tmp_path: Path) -> None:
    (tmp_path / "living").mkdir()
    file = tmp_path / "living" / "file"
    with closing(database(file, 512)) as connection:
        connection.execute("CREATE TABLE one (a)")
        connection.executemany("INSERT INTO one VALUES (?)", [(b"x" * 100,)] * 60)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE one SET a = randomblob(100) WHERE rowid % 7 = 0")
        connection.executemany("INSERT INTO one VALUES (?)", [(b"y" * 100,)] * 60)
        said = said_by_sqlite(connection, "one")
        shutil.copytree(tmp_path / "living", tmp_path / "copy")
    with read(tmp_path / "copy" / "file") as pages:
        assert pages.count > (tmp_path / "copy" / "file").stat().st_size // 512, "the WAL makes it longer"
        assert list(pages.table(pages.roots()["one"])) == said
        assert not pages.may_be_mixed
