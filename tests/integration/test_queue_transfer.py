"""`edge-bridge queue` in process: the same answers live and offline, events out of a queue and into one, room back.

"Live" is the control socket before the disk thread, as a bridge has them; "offline" is the file, opened by the command.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import fcntl
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from persistqueue import SQLiteAckQueue

from bridge.cli import main
from bridge.cli.queue_transfer import COLUMNS
from bridge.config import Settings
from bridge.control import Control
from bridge.disk_queue import FILE_NAME, SOCKET_NAME, DiskQueue, NewRow, Selection, serializer
from bridge.disk_queue.commands import rfc3339
from bridge.disk_queue.reserve import RESERVE_NAME
from bridge.disk_queue.selection import Listed
from bridge.disk_thread import DiskThread
from bridge.importer import GROUP_LINES
from bridge.message import DeadRow, event_id, head, head_middle, tail, unset_time_text
from tests.harness import REPOSITORY, wait_until
from tests.harness.programs import require_module
from tests.harness.small_disk import SmallDisk

LONG = b'"%b"' % (b"x" * 2000)
TIME = "2026-01-01T00:00:00.000000Z"
Run = Callable[..., tuple[int, bytes, str]]
each_way = pytest.mark.parametrize("live", [True, False], ids=["live", "offline"])


def event(name: str, payload: bytes = b"1", topic: str = "t", time: str = TIME) -> bytes:
    return head(name, head_middle("edge/x", topic), time) + tail(payload, is_json=True)


def lines(count: int, first: int = 0) -> bytes:
    return b"".join(event(f"m{number}") + b"\n" for number in range(first, first + count))


@asynccontextmanager
async def way(folder: Path, *, live: bool, **bounds: object) -> AsyncIterator[DiskThread | None]:
    """Have the commands find a running bridge, or none."""
    if not live:
        yield None
        return
    settings = Settings.model_validate({"upload": {"url": "http://127.0.0.1:1/"}, "queue": {"path": folder, **bounds}})
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    disk = DiskThread(DiskQueue(folder, durability="crash"), keep_seconds=1e6, keep_messages=10**6)
    control = Control(settings.queue, disk)
    await control.start()
    try:
        yield disk
    finally:
        await control.stop()
        await asyncio.to_thread(disk.close)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command on a queue; return its exit status, its output, its errors."""
    monkeypatch.setenv("BRIDGE_QUEUE__DURABILITY", "crash")
    monkeypatch.setenv("BRIDGE_QUEUE__MIN_FREE_DISK_BYTES", "0")

    def command(folder: Path, *words: str) -> tuple[int, bytes, str]:
        monkeypatch.setenv("BRIDGE_QUEUE__PATH", str(folder))
        status = main(["queue", *words])
        sys.stdout.flush()
        output, errors = capsysbinary.readouterr()
        return status, output, errors.decode()

    return command


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk") as disk:
        yield disk


def make_queue(folder: Path) -> None:
    """Rows of every state, and such as only another program or a broken disk leaves."""
    folder.mkdir()
    queue = DiskQueue(folder, durability="crash")
    with queue.transaction():
        queue.put_rows([NewRow(event(f"m{n}", topic=f"t/{n % 2}"), 1.0 + n, None, f"m{n}") for n in range(6000)])
        taken = [row.row_id for row in queue.take(3000, 1 << 30)]
        queue.reject([DeadRow(row_id, "refused", 422, 3, "no") for row_id in taken[:5]])
        queue.ack_rows(taken[5:])
        strange = [
            b"\xff\xfe",
            b'{\n"specversion":"1.0","id":"lines"}',
            b'"\xc3\xa9\xe2\x80\xa8"',
            b"x" * (1 << 20),
            b"",
        ]
        queue.put_rows([NewRow(data, 1.0) for data in strange])
        queue.put_rows([NewRow(event("ours"), 1.0)])
    queue.close()


QUESTIONS = (
    ("stats", "--json"),
    ("stats",),
    ("list",),
    ("list", "--json", "--state", "dead"),
    ("list", "--limit", "3", "--topic", "t/1"),
    ("show", "m2"),
    ("losses", "--json"),
    ("export",),
    ("export", "--format", "csv"),
    ("export", "--format", "csv", "--state", "dead"),
    ("export", "--format", "csv", "--topic", "t/0", "--reason", "refused"),
    ("export", "--state", "ready"),
    ("export", "--state", "dead", "--state", "delivered"),
    ("export", "--topic", "t/0", "--reason", "refused"),
    ("export", "--id", "ours", "--id", "m17"),
    ("export", "--older-than", "1h"),
)


async def test_a_running_bridge_and_a_stopped_one_say_the_same_byte_for_byte(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "queue"
    make_queue(folder)
    run(folder, "list")  # the first look marks what was only noted as delivered, and the file grows by it
    said: list[list[tuple[int, bytes, str]]] = []
    for live in (False, True):
        async with way(folder, live=live):
            said.append([await asyncio.to_thread(run, folder, *words) for words in QUESTIONS])
    for words, offline, online in zip(QUESTIONS, *said, strict=True):
        assert offline == online, words
        assert (offline[0], offline[2]) == (0, ""), words
        assert offline[1], words


def test_an_export_has_a_line_an_event_and_every_selection_picks_its_rows(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "queue"
    make_queue(folder)
    everything = run(folder, "export")[1].splitlines(keepends=True)
    assert everything[:6000] == [event(f"m{n}", topic=f"t/{n % 2}") + b"\n" for n in range(6000)]
    assert everything[6000] == b'{"data_base64":"//4="}\n'
    assert len(run(folder, "export")[1].split(b"\n")) == 6000 + 6 + 1, "a line break in a row makes no line"
    assert everything[6004:] == [b'{"data_base64":""}\n', event("ours") + b"\n"]
    assert run(folder, "export", "--state", "delivered")[1].splitlines(keepends=True) == everything[5:3000]
    assert run(folder, "export", "--reason", "refused")[1].splitlines(keepends=True) == everything[:5]
    assert run(folder, "export", "--id", "ours")[1] == event("ours") + b"\n"
    (tmp_path / "out").write_bytes(b"older and longer" * 100_000)
    assert run(folder, "export", "--output", str(tmp_path / "out")) == (0, b"", "")
    assert (tmp_path / "out").read_bytes() == b"".join(everything)


STRANGE_WORDS = ("a,b", 'say "c"', "two\nlines", "cr\r", "π", "", " ", "null")


@each_way
async def test_csv_says_of_every_row_what_there_is_whatever_stands_in_it(tmp_path: Path, run: Run, live: bool) -> None:
    folder = tmp_path / "queue"
    make_queue(folder)
    queue = DiskQueue(folder, durability="crash")
    with queue.transaction():
        queue.put_rows([NewRow(event(word, topic=other), 7.0) for word in STRANGE_WORDS for other in STRANGE_WORDS])
    rows: list[Listed] = []
    following: int | None = 0
    while following is not None:
        some, following = queue.select(Selection(), following)
        rows += some
    queue.close()
    async with way(folder, live=live):
        said = (await asyncio.to_thread(run, folder, "export", "--format", "csv"))[1].decode()
    limit = csv.field_size_limit(2 << 20)
    titles, *lines = csv.reader(io.StringIO(said, newline=""))
    csv.field_size_limit(limit)
    assert titles == list(COLUMNS)
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        number, own_id, state, topic, received_at, text, base64_text = line
        assert (int(number), own_id, state, topic) == (row.row_id, row.event_id or "", row.state, row.topic or "")
        assert received_at == rfc3339(row.received_at)
        assert (base64.b64decode(base64_text) if base64_text else text.encode()) == row.data


@each_way
async def test_imported_rows_keep_ids_and_bytes_and_come_in_once(tmp_path: Path, run: Run, live: bool) -> None:
    source, target, file = tmp_path / "source", tmp_path / "target", tmp_path / "events"
    source.mkdir()
    queue = DiskQueue(source, durability="crash")
    made = [event(f"m{n}") for n in range(2500)]
    made.append(event("early", time=unset_time_text(5.0, "boot-1", 5.0)))
    made.append(b'{ "id":"foreign","specversion":"1.0","type":"x","data":1.50}')
    with queue.transaction():  # half of them under ids that the bridge made: those are in no index
        queue.put_rows([NewRow(data, 5.0, None, event_id(data) if n % 2 else None) for n, data in enumerate(made)])
    queue.close()
    run(source, "export", "--output", str(file))
    async with way(target, live=live):
        for counts in ((2502, 0), (0, 2502)):
            done = await asyncio.to_thread(run, target, "import", str(file), "--json")
            assert (done[0], done[2]) == (0, "")
            assert json.loads(done[1]) == {"stored": counts[0], "skipped": counts[1], "dropped": 0, "refused": 0}
        assert (await asyncio.to_thread(run, target, "export"))[1] == b"".join(data + b"\n" for data in made)
    async with way(source, live=live):
        done = await asyncio.to_thread(run, source, "import", str(file))
        assert done[1] == b"0 stored, 2,502 skipped\n"


async def test_a_line_that_cannot_be_taken_is_told_by_its_number_and_keeps_no_other_out(
    tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "events"
    wrong = [b'{"specversion":"1.0"', b'{"id":"no-event"}', b'{"data_base64":"//4="}', event("m1", b"2")]
    file.write_bytes(lines(GROUP_LINES) + b"\n" + b"\r\n".join(wrong) + b"\r\n" + lines(10, GROUP_LINES))
    said = []
    for live in (True, False):
        async with way(tmp_path / str(live), live=live):
            said.append(await asyncio.to_thread(run, tmp_path / str(live), "import", str(file), "--json"))
            again = await asyncio.to_thread(run, tmp_path / str(live), "import", str(file), "--json")
            assert json.loads(again[1]) == {"stored": 0, "skipped": GROUP_LINES + 10, "dropped": 0, "refused": 4}
    assert said[0] == said[1]
    status, output, errors = said[0]
    assert (status, orjson.loads(output)["stored"], orjson.loads(output)["refused"]) == (1, GROUP_LINES + 10, 4)
    assert errors.splitlines() == [
        f"edge-bridge: error: line {GROUP_LINES + 2}: it is not JSON",
        f"edge-bridge: error: line {GROUP_LINES + 3}: it is no CloudEvent with an id",
        f"edge-bridge: error: line {GROUP_LINES + 4}: it is not JSON",
        f"edge-bridge: error: line {GROUP_LINES + 5}: another event with the id 'm1' is in the queue",
    ]


def test_a_line_that_memory_should_not_hold_is_passed_over(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.cli.queue_transfer.LINE_BYTES_MAX", 1000)
    (tmp_path / "events").write_bytes(event("a") + b"\n" + event("b", b"1" * 5000) + b"\n" + event("c"))
    status, output, errors = run(tmp_path / "queue", "import", str(tmp_path / "events"))
    assert (status, output) == (1, b"2 stored, 1 refused\n")
    assert errors.startswith("edge-bridge: error: line 2: it is longer than")


async def test_an_import_that_breaks_off_in_a_line_stores_nothing_of_its_group(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "queue"
    async with way(folder, live=True) as disk:
        assert disk
        reader, writer = await asyncio.open_unix_connection(folder / SOCKET_NAME)
        writer.write(b'{"import":100000}\n' + lines(10))
        writer.close()
        await writer.wait_closed()
        assert await reader.read() == b""
        assert (await asyncio.to_thread(run, folder, "export")) == (0, b"", "")


# --- the bounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [GROUP_LINES // 3, GROUP_LINES + 700])
def test_a_stopped_queue_that_may_lose_nothing_takes_what_it_has_room_for(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setenv("BRIDGE_QUEUE__OVERFLOW", "block")
    monkeypatch.setenv("BRIDGE_QUEUE__MAX_MESSAGES", str(bound))
    (tmp_path / "events").write_bytes(lines(3000))
    status, _, errors = run(tmp_path / "queue", "import", str(tmp_path / "events"))
    assert status == 1
    assert f"no room in the queue: queue.max_messages reached ({bound:,} stored)" in errors.splitlines()[0]
    assert run(tmp_path / "queue", "export")[1] == lines(bound)
    monkeypatch.setenv("BRIDGE_QUEUE__MAX_MESSAGES", "0")
    assert (
        run(tmp_path / "queue", "import", str(tmp_path / "events"))[1]
        == f"{3000 - bound:,} stored, {bound:,} skipped\n".encode()
    )
    assert run(tmp_path / "queue", "export")[1] == lines(3000)


async def test_a_running_bridge_without_room_is_waited_for(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "queue"
    (tmp_path / "events").write_bytes(lines(1000))
    async with way(folder, live=True, overflow="block", max_messages=400, min_free_disk_bytes=0) as disk:
        assert disk
        task = asyncio.create_task(asyncio.to_thread(run, folder, "import", str(tmp_path / "events")))
        taken: list[bytes] = []
        while not task.done():
            rows = await disk.take(100, 1 << 20)
            assert len(rows) <= 400
            taken += [row.data for row in rows]
            await disk.ack([row.row_id for row in rows])
        status, output, errors = await task
        taken += [row.data for row in await disk.take(1000, 1 << 20)]
    assert (status, output) == (0, b"1,000 stored\n")
    assert errors in {"", "waiting for room in the queue: queue.max_messages reached\n"}
    assert taken == lines(1000).splitlines()


@each_way
@pytest.mark.parametrize("overflow", ["drop-oldest", "drop-newest"])
async def test_what_an_import_gives_up_at_a_bound_is_in_the_ledger(
    tmp_path: Path,
    run: Run,
    live: bool,
    overflow: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """I9: stored + lost = imported, and the ids in the ledger are those that are gone."""
    folder, bounds = tmp_path / "queue", {"overflow": overflow, "max_messages": 2000, "min_free_disk_bytes": 0}
    for name, value in bounds.items():
        monkeypatch.setenv(f"BRIDGE_QUEUE__{name.upper()}", str(value))
    (tmp_path / "events").write_bytes(lines(2050))
    async with way(folder, live=live, **bounds):
        status, _, errors = await asyncio.to_thread(run, folder, "import", str(tmp_path / "events"))
        exported = (await asyncio.to_thread(run, folder, "export"))[1]
        losses = (await asyncio.to_thread(run, folder, "losses", "--json"))[1].splitlines()
    assert (status, errors) == (0, "")
    first = 50 if overflow == "drop-oldest" else 0
    assert exported == lines(2000, first)
    gone = [own_id for loss in losses for own_id in orjson.loads(loss)["ids"]]
    assert gone == [f"m{n}" for n in (range(50) if first else range(2000, 2050))]
    assert sum(orjson.loads(loss)["messages"] for loss in losses) == 50


# --- room ------------------------------------------------------------------------------------------------------------


@each_way
async def test_compact_makes_the_file_smaller(tmp_path: Path, run: Run, live: bool) -> None:
    folder, file = tmp_path / "queue", tmp_path / "queue" / FILE_NAME
    (tmp_path / "events").write_bytes(b"".join(event(f"m{n}", LONG) + b"\n" for n in range(2000)))
    run(folder, "import", str(tmp_path / "events"))
    before = file.stat().st_size
    async with way(folder, live=live):
        await asyncio.to_thread(run, folder, "discard", "--state", "ready", "--older-than", "1s", "--yes")
        status, output, _ = await asyncio.to_thread(run, folder, "compact", "--json")
        assert status == 0
        assert orjson.loads(output)["bytes"] > before * 0.8
        wait_until(lambda: file.stat().st_size < before * 0.2, what="smaller")
        assert (await asyncio.to_thread(run, folder, "compact"))[1] == b"0 B given back to the file system\n"


def test_a_file_of_the_stock_library_is_not_made_smaller_and_the_command_says_so(tmp_path: Path, run: Run) -> None:
    stock = SQLiteAckQueue(str(tmp_path), serializer=serializer)
    for number in range(20):
        stock.put({"x": "y" * 5000, "n": number})
    stock.close()
    assert run(tmp_path, "discard", "--state", "ready", "--yes")[0] == 0
    status, _, errors = run(tmp_path, "compact")
    assert status == 2
    assert "persist-queue" in errors.splitlines()[0]


def test_purge_and_compact_work_on_a_disk_without_a_free_byte(small_disk: SmallDisk) -> None:
    """The reserve carries them; a VACUUM would need the size of all rows again, twice."""
    folder, file = small_disk.inside / "queue", small_disk.folder / "queue" / FILE_NAME
    variables = {
        "BRIDGE_QUEUE__PATH": str(folder),
        "BRIDGE_QUEUE__MIN_FREE_DISK_BYTES": "0",
        "PYTHONPATH": str(REPOSITORY),
    }

    def queue(*words: str, stdin: bytes = b"") -> bytes:
        command = [*small_disk.wrapper, sys.executable, "-m", "bridge", "queue", *words]
        done = subprocess.run(command, env=os.environ | variables, input=stdin, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), (words, done.stderr)
        return done.stdout

    queue("import", "-", stdin=b"".join(event(f"m{n}", LONG[:400] + b'"') + b"\n" for n in range(4000)))
    (small_disk.folder / "queue" / RESERVE_NAME).write_bytes(bytes(1 << 20))  # as a bridge keeps it on so small a disk
    before = file.stat().st_size
    small_disk.fill()
    assert queue("discard", "--state", "ready", "--yes") == b"4,000 rows discarded and in the loss ledger\n"
    assert queue("compact").endswith(b"given back to the file system\n")
    assert file.stat().st_size < before / 4


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_an_export_into_a_pipe_makes_it_wide_so_that_both_ends_work_at_once(tmp_path: Path) -> None:
    make_queue(folder := tmp_path / "queue")
    command = (sys.executable, "-m", "bridge", "queue", "export")
    environment = os.environ | {"BRIDGE_QUEUE__PATH": str(folder), "BRIDGE_QUEUE__DURABILITY": "crash"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        first = process.stdout.readline()
        assert fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ) == 1 << 20  # what pipe(7) allows anybody
        rest = process.stdout.read()
    assert (process.returncode, (first + rest).count(b"\n")) == (0, 6006)


def test_parquet_has_the_columns_of_csv(tmp_path: Path, run: Run) -> None:
    parquet = require_module("pyarrow.parquet")
    make_queue(tmp_path / "queue")
    assert run(tmp_path / "queue", "export", "--format", "parquet", "--output", str(tmp_path / "out"))[0] == 0
    table = parquet.read_table(tmp_path / "out").to_pylist()
    assert len(table) == 6006
    assert [table[number]["event_base64"] for number in (5999, 6000)] == [None, "//4="]
    assert table[6000]["event"] is None
    assert (table[7]["id"], table[7]["event"], table[7]["row"]) == ("m7", event("m7", topic="t/1").decode(), 8)


def test_without_pyarrow_parquet_says_what_to_install(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    make_queue(tmp_path / "queue")
    status, _, errors = run(tmp_path / "queue", "export", "--format", "parquet")
    assert (status, errors.splitlines()[1]) == (2, "hint: `pip install pyarrow`, or --format ndjson")
