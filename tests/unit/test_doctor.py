"""The doctor's judgement by table: what was found → ok, warn or fail, with the words that matter. And what it hides."""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.batch import Batch
from bridge.doctor import judge
from bridge.doctor.bundle import pack
from bridge.doctor.certificate import Validity, validity
from bridge.doctor.judge import AtBroker, Bounds, Granted, Mount, Queue, Room
from bridge.doctor.line import Line
from bridge.doctor.probes import mount_in
from bridge.verdict import Reply

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MIB = 1 << 20
BOUNDS = Bounds(max_bytes=100 * MIB, min_free_disk_bytes=50 * MIB, reserve_bytes=16 * MIB)


def grade(line: Line) -> str:
    assert bool(line.advice) or line.grade.value == "ok", "who reads of a trouble is told what to do"
    return line.grade.value


@pytest.mark.parametrize(
    ("said", "found", "shown"),
    [
        ({"state": "online", "reason": None}, "ok", "online, by its own status"),
        ({"state": "degraded", "reason": "cloud away\x1b[2J"}, "warn", "degraded, by its own status: cloud away"),
        ({"state": "offline"}, "warn", "offline, by its own status"),
    ],
)
def test_a_running_bridge_is_told_by_what_it_says_of_itself(said: dict[str, Any], found: str, shown: str) -> None:
    line = judge.bridge(said)
    assert (grade(line), line.check) == (found, "bridge")
    assert line.found.startswith(shown)
    assert line.found.isprintable()


@pytest.mark.parametrize(
    ("reply", "wanted", "words"),
    [
        (Reply(200, body=b"{}"), "ok", "counts as delivered"),
        (Reply(200, body=b'{"results":[]}'), "ok", "counts as delivered"),
        (Reply(400), "ok", "lets us in"),
        (Reply(422), "ok", "lets us in"),
        (Reply(413), "ok", "lets us in"),
        (Reply(200, content_type="text/html", body=b"<html>log in"), "fail", "captive portal"),
        (Reply(207), "fail", "nothing counts as delivered"),
        (Reply(401), "fail", "401 Unauthorized"),
        (Reply(302), "fail", "302 Found, to elsewhere"),
        (Reply(302, location="https://portal.example"), "fail", "302 Found, to https://portal.example."),
        (Reply(404), "fail", "404 Not Found"),
        (Reply(500), "fail", "its own fault"),
        (Reply(429, retry_after="7"), "warn", "left alone for 7 s"),
        (Reply(503, retry_after="7"), "warn", "left alone for 7 s"),
        (Reply(409), "warn", "in progress"),
        (Reply(None, error="cannot connect: timed out", sent=False), "fail", "cannot connect: timed out"),
        (Reply(None, error="no whole answer within 4 s"), "fail", "no whole answer"),
    ],
)
def test_an_answer_of_the_cloud_is_told_in_words(reply: Reply, wanted: str, words: str) -> None:
    line = judge.cloud(reply, Batch(()), require_receipt=False, now=0.0)
    assert (grade(line), words in line.found) == (wanted, True), line


def test_a_cloud_that_gives_no_receipt_is_found_out_where_one_is_required() -> None:
    key = Batch(()).key
    assert grade(judge.cloud(Reply(200), Batch(()), require_receipt=True, now=0.0)) == "fail"
    assert grade(judge.cloud(Reply(200, echoed_key=key), Batch(()), require_receipt=True, now=0.0)) == "ok"


@pytest.mark.parametrize(
    ("visit", "mqtt5", "grades"),
    [
        (AtBroker("x:1 refused the connection: Not authorized"), True, ["fail"]),
        (AtBroker("", (Granted("a/#", 1, 1),), "s/doctor", "", True, True), True, ["ok", "ok", "ok"]),
        (AtBroker("", (Granted("a/#", 0, 1),), "s/doctor", "", True, True), True, ["ok", "warn", "ok"]),
        (AtBroker("", (Granted("a/#", 0, 0, "no"),), "s/doctor", "", True, True), True, ["ok", "fail", "ok"]),
        (AtBroker("", (), "s/doctor", "Not authorized", False, False), True, ["ok", "fail"]),
        (AtBroker("", (), "s/doctor", "", True, False), True, ["ok", "ok"]),
        (AtBroker("", (), "s/doctor", "", True, False), False, ["ok", "warn"]),  # 3.1.1 cannot tell a refusal
        (AtBroker("", (), "s/doctor", "", False, False), True, ["ok", "fail"]),
    ],
)
def test_a_visit_at_the_broker_is_told_line_by_line(visit: AtBroker, mqtt5: bool, grades: list[str]) -> None:
    assert [grade(line) for line in judge.broker("x:1", visit, username=None, mqtt5=mqtt5)] == grades


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("x:1 refused the connection: Bad user name or password", "mqtt.password"),
        ("cannot connect to x:1: the broker's certificate is not accepted: expired", "mqtt.tls.ca"),
        ("cannot connect to x:1: Connection refused", "is the broker running"),
        ("x:1 does not answer like an MQTT broker", "mqtt.tls.enabled"),
        ("cannot connect to x:1: Connection reset by peer", "mqtt.tls.enabled"),
        ("the connection to x:1 broke", "mqtt.tls.enabled"),
    ],
)
def test_each_way_not_to_reach_the_broker_has_its_own_advice(error: str, words: str) -> None:
    (line,) = judge.broker("x:1", AtBroker(error), username="bridge", mqtt5=True)
    assert words in line.advice


def test_who_came_without_a_name_is_told_that_one_is_wanted() -> None:
    (line,) = judge.broker("x:1", AtBroker("x:1 refused the connection: Not authorized"), username=None, mqtt5=True)
    assert line.advice.startswith("the broker wants a name")


def test_a_subscription_that_is_granted_is_no_proof_that_the_acl_lets_messages_through() -> None:
    visit = AtBroker("", (Granted("a/#", 1, 1),), "s/doctor", "", confirmed=True, came_back=True)
    for username, advice in (("bridge", "topic read a/#"), (None, "")):
        _, subscription, _ = judge.broker("x:1", visit, username=username, mqtt5=True)
        assert (grade(subscription), subscription.advice.endswith(advice)) == ("ok", True)
        assert bool(subscription.advice) == bool(username)


def test_a_certificate_that_is_refused_has_its_own_advice() -> None:
    reply = Reply(None, error="TLS certificate not accepted: unable to get local issuer certificate", sent=False)
    assert "upload.tls.ca" in judge.cloud(reply, Batch(()), require_receipt=False, now=0.0).advice


@pytest.mark.parametrize(
    ("since_days", "until_days", "wanted"),
    [(-90, 31, "ok"), (-90, 29, "warn"), (-90, 0, "fail"), (-90, -3, "fail"), (1, 90, "fail")],
)
def test_a_certificate_is_judged_by_its_dates(since_days: int, until_days: int, wanted: str) -> None:
    dates = Validity(NOW + timedelta(since_days), NOW + timedelta(until_days))
    assert grade(judge.certificate("cloud TLS", "it", dates, NOW)) == wanted


@pytest.mark.parametrize("year", [2029, 2051])  # UTCTime, and from 2050 on GeneralizedTime
def test_the_dates_are_read_from_the_certificate_itself(year: int) -> None:
    until = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    issued = trustme.CA().issue_cert("broker.example", not_before=NOW, not_after=until)
    pem = issued.cert_chain_pems[0].bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert validity(der) == (NOW, until)
    for length in range(0, 120, 7):
        with pytest.raises(ValueError, match="certificate"):
            validity(der[:length])


@pytest.mark.parametrize(
    ("off_seconds", "wanted"), [(-60, "warn"), (-6, "warn"), (-4, "ok"), (0, "ok"), (5.9, "ok"), (6.5, "warn")]
)
def test_the_clock_is_held_against_the_clouds(off_seconds: float, wanted: str) -> None:
    there = "Mon, 01 Jun 2026 12:00:00 GMT"
    assert grade(judge.clock(NOW.timestamp() + off_seconds, there)) == wanted


def test_a_clock_that_was_never_set_is_found_without_a_cloud() -> None:
    assert grade(judge.clock(86_400.0, None)) == "fail"
    assert grade(judge.clock(NOW.timestamp(), None)) == "ok"
    assert grade(judge.clock(NOW.timestamp(), "yesterday")) == "ok"


@pytest.mark.parametrize(
    ("free_bytes", "free_files", "wanted", "words"),
    [
        (500 * MIB, None, "ok", "the queue has 10 MiB of 100 MiB"),
        (139 * MIB, None, "warn", "before queue.max_bytes"),
        (141 * MIB, 1000, "ok", ""),
        (141 * MIB, 3, "fail", "3 files"),
        (49 * MIB, None, "fail", "nothing is stored or confirmed"),
        (15 * MIB, None, "fail", "the reserve"),
    ],
)
def test_the_disk_is_judged_by_the_bounds(free_bytes: int, free_files: int | None, wanted: str, words: str) -> None:
    line = judge.disk_space("/q", Room(1000 * MIB, free_bytes, free_files), 10 * MIB, BOUNDS)
    assert (grade(line), words in line.found) == (wanted, True), line


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        ("ext4", {"rw"}, "ok"),
        ("ext4", {"ro"}, "fail"),
        ("ext4", {"rw", "nobarrier"}, "warn"),
        *((kind, {"rw"}, "warn") for kind in ("tmpfs", "overlay", "nfs4", "vfat")),
    ],
)
def test_the_file_system_is_judged_by_what_a_power_cut_does(kind: str, options: set[str], wanted: str) -> None:
    assert grade(judge.file_system(Mount(kind, frozenset(options)))) == wanted


def test_the_mount_of_a_folder_is_the_nearest_and_the_last_one() -> None:
    table = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 8:2 / /mnt/a\\040b rw,noatime shared:1 - vfat /dev/b rw\n"
        "3 1 8:3 / /mnt rw - xfs /dev/c rw\n"
        "4 1 0:9 / /mnt rw - tmpfs none ro\n"
    )
    assert mount_in(table, Path("/mnt/a b/queue")) == Mount("vfat", frozenset({"rw", "noatime"}))
    assert mount_in(table, Path("/mnt/other")) == Mount("tmpfs", frozenset({"rw", "ro"}))
    assert mount_in(table, Path("/var")) == Mount("ext4", frozenset({"rw"}))


@pytest.mark.parametrize(("seconds", "wanted"), [(0.001, "ok"), (0.049, "ok"), (0.05, "warn"), (2.0, "warn")])
def test_a_slow_sync_is_a_warning(seconds: float, wanted: str) -> None:
    assert grade(judge.sync(seconds)) == wanted


SOUND = Queue(pid=7, waiting=3, delivered=5, dead=0, size_bytes=MIB, losses={})


@pytest.mark.parametrize(
    ("found", "grades"),
    [
        (SOUND, ["ok"]),
        (SOUND._replace(size_bytes=95 * MIB), ["warn"]),
        (SOUND._replace(dead=2, losses={"dead": 2, "dead_removed": 1}), ["ok", "warn"]),
        (SOUND._replace(losses={"max_bytes": 2, "too_large": 0}), ["ok", "warn"]),
        (SOUND._replace(pid=None, troubles=("its end is missing",)), ["fail"]),
        (SOUND._replace(set_aside=("data.db.damaged-1",)), ["ok", "warn"]),
        (SOUND._replace(set_aside=("d",), unsalvaged=("d",)), ["ok", "warn"]),
    ],
)
def test_the_queue_is_told_with_what_is_dead_lost_or_damaged(found: Queue, grades: list[str]) -> None:
    assert [grade(line) for line in judge.queue(found, 100 * MIB)] == grades


def test_no_secret_stands_in_a_bundle_in_any_spelling() -> None:
    secret = 'pa"ss wörd/1'
    said = f'{secret} pa%22ss%20w%C3%B6rd%2F1 pa\\"ss wörd/1 cGEic3Mgd8O2cmQvMQ== fine'.encode()
    with tarfile.open(fileobj=io.BytesIO(pack({"log.txt": said}, [secret, "ab"]))) as tar:
        (member,) = tar.getmembers()
        opened = tar.extractfile(member)
        assert opened
        assert opened.read() == b"*** *** *** ***== fine"
        assert member.mode == 0o600
