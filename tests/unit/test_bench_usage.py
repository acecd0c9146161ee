"""Reading /proc: what a process used, and which file system a folder is on."""

from __future__ import annotations

import pytest

from bridge.bench.machine import type_of_mount
from bridge.bench.usage import Usage, cpu_seconds, status_bytes
from bridge.disk_queue.wear import parsed

FIELDS = "S 1 42 42 0 -1 4194560 2181 0 0 0 310 45 7 9 20 0 3 0 1234 1000 200"
MOUNTS = [
    "/dev/sda1 / ext4 rw 0 0",
    "tmpfs /run tmpfs rw 0 0",
    "/dev/sdb1 /var xfs rw 0 0",
    "overlay /var overlay rw 0 0",
]


@pytest.mark.parametrize("name", ["python", "a) b", "x (S 1 2) 3 4"])
def test_cpu_time_is_user_and_system_of_the_process_whatever_it_is_called(name: str) -> None:
    assert cpu_seconds(f"42 ({name}) {FIELDS}", ticks_a_second=100) == pytest.approx(3.55)


def test_sizes_are_told_in_bytes_and_found_by_their_whole_name() -> None:
    status = "Name:\tx\nVmPeak:\t   900 kB\nVmHWM:\t   200 kB\nVmRSS:\t   100 kB\nThreads:\t3\n"
    assert (status_bytes(status, "VmHWM"), status_bytes(status, "VmRSS")) == (204_800, 102_400)
    assert status_bytes(status, "VmSwap") is None


def test_what_was_taken_back_was_not_written() -> None:
    assert parsed("rchar: 1\nwchar: 2\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n") == 4096


def test_a_system_that_says_nothing_gives_no_figure() -> None:
    assert cpu_seconds("", ticks_a_second=100) is None
    assert status_bytes("", "VmRSS") is None
    assert parsed("") is None


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/", "ext4"), ("/run", "tmpfs"), ("/run/x", "tmpfs"), ("/running", "ext4"), ("/var/lib", "overlay")],
)
def test_the_nearest_mount_above_a_folder_says_its_type_and_the_last_one_covers_others(folder: str, kind: str) -> None:
    assert type_of_mount(MOUNTS, folder) == kind


def test_several_processes_use_what_each_of_them_does() -> None:
    assert Usage.sum([Usage(0.5, 10, 20, 300), Usage(0.25, 1, 2, 3)]) == Usage(0.75, 11, 22, 303)


def test_what_one_of_several_does_not_tell_is_not_told_of_all() -> None:
    assert Usage.sum([Usage(0.5, 10, 20, None), Usage(0.25, 1, 2, 3)]) == Usage(0.75, 11, 22, None)
