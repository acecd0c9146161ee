"""Promise 13: a queue that cannot be used is refused: one clear line, exit status 2, within 10 s, not a byte changed.

What is damaged but was ours is another matter (promise 10). Before MQTT is touched, so nothing listens there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, wait_until
from tests.harness.bridge import BridgeProcess, refused
from tests.harness.cloud_stage import on_stage
from tests.harness.mosquitto import Mosquitto

STOCK_TABLE = "CREATE TABLE ack_queue_default (_id INTEGER PRIMARY KEY, data BLOB, timestamp FLOAT, status INTEGER)"
FOLDER_HINT = "make it a folder that this user may write to, or set queue.path to another one"
FILE_HINT = "make it a regular file that this user may write to, or set queue.path to another folder"
ELSEWHERE_HINT = "nothing was changed; move it away, or set queue.path to another folder"
NOT_OURS_HINT = "nothing was changed; move the file away, mend its rights, or change queue.path"


def under_a_file(queue: Path) -> Path:
    queue.write_text("in the way")
    return queue / "below"


def a_file(queue: Path) -> Path:
    queue.write_text("in the way")
    return queue


def where_nobody_may_write(_queue: Path) -> Path:
    return Path("/proc/edge-bridge")  # not even root


def dangling_link(queue: Path) -> Path:
    queue.symlink_to(queue.with_name("nowhere"))
    return queue


def with_a_link_for_a_lock(queue: Path) -> Path:
    queue.mkdir()
    (queue / "bridge.lock").symlink_to(queue.with_name("victim"))
    return queue


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (under_a_file, "Not a directory"),
        (a_file, "File exists"),
        (where_nobody_may_write, "No such file or directory"),
        (dangling_link, "File exists"),
        (with_a_link_for_a_lock, "Too many levels of symbolic links"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, settings: dict[str, object], make: Callable[[Path], Path], reason: str
) -> None:
    folder = make(tmp_path / "queue")
    error, hint = refused(tmp_path, settings | {"queue.path": str(folder)})
    assert error == f"the queue folder {folder} cannot be used: {reason}"
    assert hint == FOLDER_HINT
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "victim").exists()


def another_programs_tables(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.execute("INSERT INTO recipes VALUES ('soup')")


def our_tables_name_with_other_columns(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE ack_queue_default (name TEXT)")


def a_newer_format(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(STOCK_TABLE)
        connection.execute("PRAGMA user_version = 999")


def no_database_at_all(file: Path) -> None:
    file.write_bytes(b"Dear diary, today I lost nothing. " * 200)


def a_few_bytes(file: Path) -> None:
    file.write_bytes(b"xyz")  # a single byte would be an empty database to SQLite


def a_folder(file: Path) -> None:
    file.mkdir()


def a_link(file: Path) -> None:
    file.with_name("target").write_bytes(b"somebody's")
    file.symlink_to(file.with_name("target"))


def a_pipe(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("make", "words", "hint"),
    [
        (another_programs_tables, "is a database of another program (its tables: recipes)", ELSEWHERE_HINT),
        (
            our_tables_name_with_other_columns,
            "is a database of another program (its tables: ack_queue_default)",
            ELSEWHERE_HINT,
        ),
        (
            a_newer_format,
            "was written by a newer edge-bridge (format 999, this one knows 3)",
            "nothing was changed; install that version again, or drain the queue with it first",
        ),
        (no_database_at_all, "is not a SQLite database", NOT_OURS_HINT),
        (a_few_bytes, "is not a SQLite database", NOT_OURS_HINT),
        (a_folder, "cannot be used: Is a directory", FILE_HINT),
        (a_link, "cannot be used: Too many levels of symbolic links", FILE_HINT),
        (a_pipe, "is not a regular file", "move it away, or set queue.path to another folder"),
    ],
)
def test_a_data_file_that_is_not_ours_is_refused_and_not_changed(
    tmp_path: Path, settings: dict[str, object], make: Callable[[Path], None], words: str, hint: str
) -> None:
    folder = tmp_path / "queue"
    folder.mkdir()
    make(folder / "data.db")
    before = fingerprint(folder)
    assert refused(tmp_path, settings) == [f"{folder / 'data.db'} {words}", hint]
    (folder / "bridge.lock").unlink()
    assert fingerprint(folder) == before


def fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of everything in a folder."""
    return {
        path.name: (
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.iterdir()
    }


def test_a_view_by_the_name_of_our_table_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    (tmp_path / "queue").mkdir()
    with closing(sqlite3.connect(tmp_path / "queue" / "data.db")) as connection:
        connection.execute("CREATE VIEW ack_queue_default AS SELECT 1 AS _id, 2 AS data, 3 AS timestamp, 4 AS status")
    error, hint = refused(tmp_path, settings)
    assert error.startswith(f"{tmp_path / 'queue' / 'data.db'} is a database of another program")
    assert hint == ELSEWHERE_HINT


def test_a_folder_that_others_use_keeps_its_rights(tmp_path: Path, settings: dict[str, object]) -> None:
    """A slip like queue.path = "/home/me" must not close that folder to everybody else."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "somebody.txt").write_text("else")
    bridge = BridgeProcess(tmp_path / "run", settings | {"queue.path": str(shared)})
    with bridge:
        wait_until(lambda: not bridge.running or (shared / "data.db").exists(), what="open or refused")
    assert shared.stat().st_mode & 0o777 == 0o755


def test_a_linked_folder_and_an_empty_file_are_fine(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The other side of the line: /var/lib/edge-bridge may be a link to a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "data.db").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    with on_stage(tmp_path, mosquitto, settings={"queue.path": str(tmp_path / "linked")}) as stage:
        stage.publish_numbered(3)
        stage.wait_delivered()
    assert (tmp_path / "linked").is_symlink()


# ---- rights: as another user, on a read-only file system ----

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may reach, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="edge-bridge-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def skip_unless(command: Sequence[str], why: str) -> None:
    """Skip where a wrapper of the bridge cannot do what the test wants of it: it takes root, or a real kernel."""
    try:
        works = subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        works = False
    if not works:
        pytest.skip(why)


def as_nobody() -> Sequence[str]:
    """Return the wrapper that runs the bridge as a user who may do nothing."""
    looks = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import bridge.service"
    skip_unless([*AS_NOBODY, sys.executable, "-c", looks], "cannot run the bridge as another user here")
    return AS_NOBODY


def read_only(folder: Path) -> Sequence[str]:
    """Return the wrapper in whose eyes the folder is on a read-only file system."""
    mount = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    wrapper = ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
    skip_unless([*wrapper, "true"], "cannot mount here")
    return wrapper


def a_queue_of_ours(folder: Path) -> Path:
    """Make a sound queue with a row in it."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "data.db")) as connection, connection:
        connection.execute(STOCK_TABLE)
        connection.execute("INSERT INTO ack_queue_default VALUES (1, '{}', 1.0, 1)")
    return folder


def test_another_users_file_is_refused_and_kept(open_folder: Path, settings: dict[str, object]) -> None:
    queue = a_queue_of_ours(open_folder / "queue")
    os.chown(queue, NOBODY, NOBODY)
    (queue / "data.db").chmod(0o600)  # root's, in a folder of nobody's
    before = fingerprint(queue)
    lines = refused(open_folder, settings | {"queue.path": str(queue)}, wrapper=as_nobody())
    assert lines == [f"{queue / 'data.db'} cannot be used: Permission denied", FILE_HINT]
    (queue / "bridge.lock").unlink()
    assert {name: content for name, (_, content) in fingerprint(queue).items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_another_users_folder_is_refused_and_kept(open_folder: Path, settings: dict[str, object]) -> None:
    queue = a_queue_of_ours(open_folder / "queue")
    before = fingerprint(queue)
    lines = refused(open_folder, settings | {"queue.path": str(queue)}, wrapper=as_nobody())
    assert lines == [f"the queue folder {queue} cannot be used: Permission denied", FOLDER_HINT]
    assert fingerprint(queue) == before


def test_a_folder_that_cannot_be_made_is_refused(open_folder: Path, settings: dict[str, object]) -> None:
    queue = open_folder / "queue"
    lines = refused(open_folder, settings | {"queue.path": str(queue)}, wrapper=as_nobody())
    assert lines == [f"the queue folder {queue} cannot be used: Permission denied", FOLDER_HINT]
    assert not queue.exists()


def test_a_read_only_file_system_is_refused_and_kept(tmp_path: Path, settings: dict[str, object]) -> None:
    queue = a_queue_of_ours(tmp_path / "queue")
    before = fingerprint(queue)
    lines = refused(tmp_path, settings, wrapper=read_only(queue))
    assert lines == [f"the queue folder {queue} cannot be used: Read-only file system", FOLDER_HINT]
    assert fingerprint(queue) == before


def test_a_file_alone_on_a_read_only_file_system_is_refused_and_kept(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    queue = a_queue_of_ours(tmp_path / "queue")
    before = fingerprint(queue)
    lines = refused(tmp_path, settings, wrapper=read_only(queue / "data.db"))
    assert lines == [f"{queue / 'data.db'} cannot be used: Read-only file system", FILE_HINT]
    (queue / "bridge.lock").unlink()
    assert fingerprint(queue)["data.db"] == before["data.db"]
