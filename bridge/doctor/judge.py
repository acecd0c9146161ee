"""The doctor's judgement: what was found → a line that says how it is and what to do. Pure, no clock, no network.

Each bound stands here once, with where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NamedTuple, assert_never

from bridge.batch import Batch
from bridge.doctor.certificate import Validity
from bridge.doctor.line import Line, fail, ok, warn
from bridge.log import printable
from bridge.loss import LossReason
from bridge.message import CLOCK_SET_SINCE
from bridge.status import NEARLY_FULL, State, Tree
from bridge.verdict import Cause, Dead, Delivered, Halve, Later, Meaning, Partly, Pause, Reply, judge, meaning

CERTIFICATE_DAYS = 30  # Let's Encrypt renews that long before the end: whatever renews has failed by then
CLOCK_SECONDS = 5.0  # NTP holds a machine within a tenth; the header's whole seconds and a slow answer explain the rest
SYNC_SECONDS = 0.05  # a good SD card needs 5 to 20 ms; a confirmation waits for up to two syncs
_YEAR_DAYS = 365
FREE_FILES = 100

_DOUBTFUL = (
    (
        {"tmpfs", "ramfs"},
        "lives in memory: whatever waits is gone at a power cut or restart",
        "set queue.path to a folder on a disk",
    ),
    (
        {"overlay", "aufs", "squashfs"},
        "is a container's own layer: whatever waits is gone with the container",
        "mount a volume and set queue.path to it",
    ),
    (
        {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "fuse.sshfs"},
        "is another machine's: its locks and syncs are not ours to promise, and the network's outages stop the queue",
        "set queue.path to a local disk",
    ),
    (
        {"vfat", "msdos", "exfat", "ext2"},
        "has no journal: a power cut may damage the whole folder",
        "use ext4, xfs, btrfs or f2fs for queue.path",
    ),
)
_UNSYNCED = {"nobarrier", "barrier=0", "data=writeback"}


def size(byte_count: float) -> str:
    """Return a size for people."""
    for unit in ("B", "KiB", "MiB"):
        if byte_count < 1024:  # noqa: PLR2004  what the unit is about
            return f"{byte_count:.0f} {unit}"
        byte_count /= 1024
    return f"{byte_count:.1f} GiB"


# --- configuration and names -----------------------------------------------------------------------------------------


def configuration(source: str, problems: Sequence[str]) -> list[Line]:
    """Judge what was read: a line, or one for each problem."""
    if not problems:
        return [ok("configuration", f"valid ({source})")]
    advice = f"correct it in {source}, or the variable it names; `edge-bridge config schema` describes every key"
    return [fail("configuration", problem, advice) for problem in problems]


def name(check: str, host: str, found: Sequence[str] | str) -> Line:
    """Judge the look-up of a name: its addresses, or why there are none."""
    if isinstance(found, str):
        return fail(
            check, f"{host}: {found}", "is it spelled right, and does this machine have a name server that works?"
        )
    return ok(check, host if [host] == list(found) else f"{host} is {', '.join(found[:3])}")


# --- the broker ------------------------------------------------------------------------------------------------------


class Granted(NamedTuple):
    """The broker's answer to one filter: the quality of service it gives, or why it refuses."""

    topic_filter: str
    qos: int
    wanted_qos: int
    refusal: str = ""


class AtBroker(NamedTuple):
    """What came of a visit at the broker; `error`: it did not come to more. `refusal`: why it took no publish."""

    error: str = ""
    granted: tuple[Granted, ...] = ()
    topic: str = ""
    refusal: str = ""
    confirmed: bool = False
    came_back: bool = False


def broker(where: str, visit: AtBroker, *, username: str | None, mqtt5: bool) -> Iterator[Line]:
    """Judge the connection; then each subscription and the publish, if there is one."""
    if visit.error:
        yield fail("broker", visit.error, _broker_advice(visit.error, username))
        return
    yield ok("broker", f"{where} lets us in{f' as {username}' if username else ', without a name'}")
    yield from (_subscription(granted, username) for granted in visit.granted)
    yield _publish(visit, mqtt5=mqtt5)


def _broker_advice(error: str, username: str | None) -> str:
    if "refused the connection" in error and username is None:
        return "the broker wants a name: set mqtt.username and mqtt.password_file"
    if "refused the connection" in error:
        return "check mqtt.username and mqtt.password (mosquitto_passwd sets it), and the broker's own log"
    if "certificate" in error:
        return "check mqtt.tls.ca and the broker's certificate; mqtt.host must be a name that stands in it"
    if "reset" in error or "broke" in error:
        return "it listens and hangs up: is mqtt.tls.enabled as that port wants it? the broker's own log says more"
    if "does not answer" in error or "no answer" in error or "timed out" in error:
        return "is an MQTT broker on that port, is mqtt.tls.enabled as the port wants it, is a firewall in between?"
    return "is the broker running (systemctl status mosquitto)? are mqtt.host and mqtt.port right?"


def _subscription(granted: Granted, username: str | None) -> Line:
    check, name = "subscription", granted.topic_filter
    if granted.refusal:
        return fail(check, f"{name} is refused: {granted.refusal}", f"let the broker's ACL say: topic read {name}")
    if granted.qos < granted.wanted_qos:
        found = f"{name} is granted with QoS {granted.qos} instead of {granted.wanted_qos}: messages may be lost"
        return warn(check, found, "let the broker allow QoS 1")
    unseen = f"Mosquitto grants it whatever the ACL says: if nothing comes, let that say: topic read {name}"
    return ok(check, f"{name} is granted with QoS {granted.qos}", unseen if username else "")


def _publish(visit: AtBroker, *, mqtt5: bool) -> Line:
    check, tree = "publish", visit.topic.rpartition("/")[0]
    advice = f"let the broker's ACL say: topic readwrite {tree}/#"
    if visit.refusal:
        return fail(check, f"{visit.topic} is refused ({visit.refusal}): nobody sees the bridge's status", advice)
    if visit.came_back:
        return ok(check, f"{visit.topic} was confirmed and came back")
    if not visit.confirmed:
        return fail(check, f"{visit.topic} was not confirmed in time", "is the broker overloaded? see its own log")
    if mqtt5:
        return ok(check, f"{visit.topic} was confirmed (the ACL does not let us read it, which no bridge needs)")
    found = f"{visit.topic} was confirmed and did not come back; with MQTT 3.1.1 a refusal looks the same"
    return warn(check, found, advice)


# --- certificates and clock ------------------------------------------------------------------------------------------


def certificate(check: str, whose: str, dates: Validity | str, now: datetime) -> Line:
    """Judge the dates of a certificate, or why they could not be read."""
    if isinstance(dates, str):
        return fail(check, f"{whose}: {dates}", "is this port one for TLS?")
    day = dates.until.date()
    if now < dates.since:
        return fail(
            check, f"{whose} counts from {dates.since.date()} only", f"the clock here says {now.date()}: set it"
        )
    if now >= dates.until:
        days = (now - dates.until).days
        return fail(check, f"{whose} expired {_days(days)} ago, on {day}", _renewal(now))
    days = (dates.until - now).days
    if days < CERTIFICATE_DAYS:
        return warn(check, f"{whose} expires in {_days(days)}, on {day}", "renew it before that day")
    return ok(check, f"{whose} is good until {day}, for {_days(days)}")


def _renewal(now: datetime) -> str:
    return f"renew it; or is the clock here wrong, which says {now.date()}?"


def _days(days: int) -> str:
    if days > 2 * _YEAR_DAYS:
        return f"{days // _YEAR_DAYS} years"
    return f"{days} day" if days == 1 else f"{days} days"


def clock(now: float, date: str | None) -> Line:
    """Judge the clock here by the one of the cloud, as its answer's Date header said at that moment."""
    shown = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if now < CLOCK_SET_SINCE:
        return fail("clock", f"not set: it says {shown}", "let NTP set it (timedatectl set-ntp true)")
    there = _seconds(date)
    if there is None:
        return ok("clock", f"{shown}; no answer had a Date to compare it with")
    # The header has whole seconds: the time over there is between it and a second later.
    off_seconds = now - there if now < there else max(0.0, now - there - 1.0)
    if abs(off_seconds) > CLOCK_SECONDS:
        way = "ahead of" if off_seconds > 0 else "behind"
        advice = "let NTP set it (timedatectl set-ntp true): `time` of every event is this clock's"
        return warn("clock", f"{_span(abs(off_seconds))} {way} the cloud's", advice)
    return ok("clock", f"{shown}, as the cloud's")


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, OverflowError):
        return None


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) + " h" if seconds >= 60 else f"{seconds:.0f} s"  # noqa: PLR2004


# --- the disk --------------------------------------------------------------------------------------------------------


class Room(NamedTuple):
    """A file system: what it has in all, and what is free for us."""

    total_bytes: int
    free_bytes: int
    free_files: int | None  # None: it does not count them


class Mount(NamedTuple):
    """Where a folder lies: the kind of the file system, and how it is mounted."""

    kind: str
    options: frozenset[str]


class Bounds(NamedTuple):
    """What the configuration says about room."""

    max_bytes: int
    min_free_disk_bytes: int
    reserve_bytes: int  # what the reserve still needs; 0 once it is made


def disk_space(folder: str, found: Room, used_bytes: int, bounds: Bounds) -> Line:
    """Judge the room on the queue's disk against the bounds and the reserve."""
    check, free = "disk space", f"{size(found.free_bytes)} of {size(found.total_bytes)} free in {folder}"
    makes = "make room on the disk, or lower queue.min_free_disk_bytes"
    if found.free_bytes < bounds.reserve_bytes:
        advice = "make room on the disk: the bridge stores nothing until there is some"
        return fail(check, f"{free}: not even the reserve ({size(bounds.reserve_bytes)}) has room", advice)
    if found.free_bytes < bounds.min_free_disk_bytes:
        left = size(
            bounds.min_free_disk_bytes
        )  # whatever queue.overflow says: dropping frees nothing that others filled
        return fail(check, f"{free}, less than the {left} left to others: nothing is stored or confirmed", makes)
    if found.free_files is not None and found.free_files < FREE_FILES:
        return fail(
            check, f"{free}, but room for {found.free_files} files only", "delete files: the inodes are used up"
        )
    room_bytes = found.free_bytes - bounds.min_free_disk_bytes
    if bounds.max_bytes and room_bytes < bounds.max_bytes - used_bytes:
        grows = f"the disk ends after {size(room_bytes)} more, before queue.max_bytes ({size(bounds.max_bytes)}) does"
        return warn(check, f"{free}: {grows}", "make room on the disk, or lower queue.max_bytes")
    return ok(
        check, f"{free}; the queue has {size(used_bytes)} of {size(bounds.max_bytes) if bounds.max_bytes else 'any'}"
    )


def file_system(found: Mount | None) -> Line:
    """Judge what the queue lies on by what a power cut does to it."""
    check = "file system"
    if found is None:
        return ok(check, "this system does not tell its kind")
    if "ro" in found.options:
        return fail(check, f"{found.kind}, read-only", "mount it for writing, or set queue.path to another disk")
    for kinds, what, advice in _DOUBTFUL:
        if found.kind in kinds:
            return warn(check, f"{found.kind} {what}", advice)
    if unsynced := sorted(found.options & _UNSYNCED):
        what = f"is mounted with {', '.join(unsynced)}: a sync is no sync, and a power cut loses what was confirmed"
        return warn(check, f"{found.kind} {what}", "mount it without")
    return ok(check, f"{found.kind}, which keeps what is synced through a power cut")


def sync(seconds: float) -> Line:
    """Judge how long a sync takes."""
    found = f"{1000 * seconds:.1f} ms a sync"
    if seconds < SYNC_SECONDS:
        return ok("disk speed", found)
    advice = "every confirmation waits for it: use a faster disk, or see what else writes to this one (iotop)"
    return warn("disk speed", found, advice)


# --- the queue -------------------------------------------------------------------------------------------------------


class Queue(NamedTuple):
    """What is in the queue. `pid` is the running bridge's; None: nobody's, the file was looked at."""

    pid: int | None
    waiting: int
    delivered: int
    dead: int
    size_bytes: int
    losses: Mapping[str, int]
    troubles: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    unsalvaged: tuple[str, ...] = ()


def queue(found: Queue, max_bytes: int) -> Iterator[Line]:
    """Judge what is in the queue: whether it is sound, what waits; what is dead, lost or damaged."""
    if found.troubles:
        advice = "`edge-bridge queue repair` with the bridge stopped; its next start does the same"
        yield fail("queue", f"damaged: {found.troubles[0]}", advice)
    else:
        yield _waiting(found, max_bytes)
    if found.dead:
        advice = "`edge-bridge queue list --state dead` says why; mend the cause, then `edge-bridge queue requeue`"
        yield warn("dead", f"{_messages(found.dead)} refused by the cloud for good, and kept", advice)
    lost = {reason: number for reason, number in found.losses.items() if number and reason in _GIVEN_UP}
    if lost:
        words = ", ".join(f"{number:,} {reason}" for reason, number in lost.items())
        yield warn("losses", f"ever given up: {words}", "`edge-bridge queue losses` says which, when and why")
    if found.unsalvaged:
        advice = "start the bridge, or run `edge-bridge queue repair`: both bring their rows back"
        yield warn("damage", f"not salvaged yet: {', '.join(found.unsalvaged)}", advice)
    elif found.set_aside:
        advice = "the report beside each says what was saved; delete them when nobody needs them any more"
        yield warn("damage", f"{len(found.set_aside)} set aside: {', '.join(found.set_aside)}", advice)


_GIVEN_UP = {reason.value for reason in LossReason} - {LossReason.DEAD.value, LossReason.DEAD_REMOVED.value}


def _waiting(found: Queue, max_bytes: int) -> Line:
    who = f"of the running bridge, process {found.pid}" if found.pid is not None else "of no running bridge, sound"
    words = f"{who}: {found.waiting:,} waiting, {found.delivered:,} delivered and kept, {size(found.size_bytes)}"
    if max_bytes and found.size_bytes > NEARLY_FULL * max_bytes and found.waiting:
        return warn("queue", f"{words}, nearly full", "bring the cloud back, or raise queue.max_bytes and restart")
    return ok("queue", words)


def _messages(number: int) -> str:
    return f"{number:,} message" if number == 1 else f"{number:,} messages"


# --- the bridge ------------------------------------------------------------------------------------------------------


def bridge(status_tree: Tree) -> Line:
    """Judge what a running bridge says of itself."""
    state, reason = status_tree["state"], printable(str(status_tree.get("reason") or ""))
    if state == State.ONLINE:
        return ok("bridge", "online, by its own status")
    return warn("bridge", f"{state}, by its own status: {reason}", "`edge-bridge status` shows all of it")


# --- the cloud -------------------------------------------------------------------------------------------------------


def cloud(reply: Reply, batch: Batch, *, require_receipt: bool, now: float) -> Line:
    """Judge the answer to a POST of an empty batch as the bridge would, and say what it means for real ones."""
    code, took = reply.status_code, f"in {1000 * reply.elapsed_seconds:.0f} ms"
    if code is not None and meaning(code) in {Meaning.BLAMED, Meaning.TOO_LARGE}:
        return ok(
            "cloud", f"answers {code} {took}: it lets us in, and wants no empty batch, which a bridge never sends"
        )
    verdict = judge(reply, batch, require_receipt=require_receipt, now=now)
    match verdict:
        case Delivered():
            return ok("cloud", f"answers {code} {took}: what is posted counts as delivered")
        case Pause(reason):
            what, advice = _before_advice(reason), _after(reason)
            if code in range(300, 400):
                what = f"{what}, to {reply.location or 'elsewhere'}"
                advice = "it is not followed: log in there if it is a portal, else set upload.url to where the cloud is"
            return fail("cloud", f"refuses us: {what}. Uploading pauses, nothing is lost", advice)
        case Later():
            return _later(verdict)
        case Partly() | Halve() | Dead():  # these speak of rows, and there was none
            return warn("cloud", f"answers {code} {took}, and speaks of rows that were not sent", "see docs/UPLOAD.md")
        case never:
            assert_never(never)


def _before_advice(reason: str) -> str:
    return reason.partition(": ")[0]


def _after(reason: str) -> str:
    return reason.partition(": ")[2] or "check the upload settings"


def _later(later: Later) -> Line:
    waits = "the queue keeps everything meanwhile"
    match later.cause:
        case Cause.UNREACHABLE:
            advice = "check upload.url and the network; it is tried again and again"
            if "certificate" in later.reason:
                advice = "upload.tls.ca must be the CA that signed it, the host in upload.url a name that stands in it"
            return fail("cloud", f"{later.reason}; {waits}", advice)
        case Cause.UNANSWERED:
            return fail(
                "cloud", f"{later.reason}; {waits}", "is it overloaded, or is something in between cutting it off?"
            )
        case Cause.SERVER_FAILED:
            return fail(
                "cloud", f"answers {later.reason}: its own fault; {waits}", "whoever runs the cloud end must act"
            )
        case Cause.UNCOVERED:
            advice = (
                "log in at the portal if there is one; else check upload.url, and docs/UPLOAD.md for answers that count"
            )
            return fail("cloud", f"{later.reason}: nothing counts as delivered; {waits}", advice)
        case Cause.THROTTLED | Cause.IN_PROGRESS:
            floor = f" for {later.floor_seconds:.0f} s" if later.floor_seconds else ""
            return warn(
                "cloud", f"{later.reason}: it wants to be left alone{floor}; {waits}", "nothing to do while it passes"
            )
        case never:
            assert_never(never)
