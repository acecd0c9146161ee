"""Which look leads to which judgement: all checks side by side, each with its time limit, in the order of the list.

Only one thing waits for another: who is to be reached is looked up first. A resolver that hangs would hold up the
connecting as well, and "not tried" says more than a second time-out. The whole takes less than ten seconds, whatever
does not answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from bridge import __version__
from bridge.batch import Batch
from bridge.config import Examined, QueueSettings, Settings, UploadSettings
from bridge.control import connect
from bridge.disk_queue import FILE_NAME, FolderLock, Request, Reserve, Selection, asides, holder_of, pending, verify
from bridge.disk_queue.rows import DEAD, DELIVERED
from bridge.doctor import judge, probes
from bridge.doctor.certificate import Validity, validity
from bridge.doctor.judge import AtBroker
from bridge.doctor.line import Grade, Line, count, fail, ok, warn
from bridge.doctor.visit import retained_status, visit
from bridge.errors import BridgeError, ConfigError, OperatorError
from bridge.monitor import parse
from bridge.uploader import Uploader

_NAME_SECONDS = 2.0
_ANSWER_SECONDS = 4.0  # for the cloud, a certificate, the disk, the queue
_VISIT_SECONDS = 6.0  # the broker: connecting may take 5 (bridge.broker), and cannot be cut short
_TLS_PORT = {"http": 80, "https": 443}

T = TypeVar("T")


class _End(NamedTuple):
    """Who is to be reached, and whether it shows a certificate."""

    name: str  # broker or cloud
    host: str
    port: int
    encrypted: bool


def configuration(examined: Examined) -> list[Line]:
    """Return what is to be said about the configuration as it was read."""
    source = str(examined.file) if examined.file else "the environment"
    return judge.configuration(source, [str(problem) for problem in examined.problems])


async def examine(settings: Settings, *, with_cloud: bool = True) -> list[Line]:
    """Look at everything that these settings name. `with_cloud` False: [upload] is not right, so leave it alone."""
    sides = [_broker_side(settings), _cloud_side(settings.upload, with_cloud=with_cloud)]
    sides += [_disk_side(settings.queue), _queue_side(settings.queue), _bridge_side(settings)]
    found = await asyncio.gather(*sides)
    return [line for lines in found for line in lines]


async def _looked(look: Callable[[], T], explain: Callable[[str], T], limit_seconds: float = _ANSWER_SECONDS) -> T:
    """Run a look in a thread; if it fails or takes too long, return what that means."""
    try:
        return await probes.in_thread(look, limit_seconds)
    except TimeoutError:
        return explain(f"no answer within {limit_seconds:g} s")
    except OSError as error:
        return explain((error.strerror or str(error)).lower())
    except ValueError as error:
        return explain(str(error))
    except BridgeError as error:
        return explain(error.message)


# --- who is to be reached --------------------------------------------------------------------------------------------


async def _named(end: _End) -> list[Line]:
    if _is_address(end.host):
        return []

    def look() -> list[str] | str:
        return probes.resolve(end.host, end.port)

    return [judge.name(f"{end.name} name", end.host, await _looked(look, str, _NAME_SECONDS))]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_lost(lines: Sequence[Line]) -> bool:
    return count(lines, Grade.FAIL) > 0


async def _certificates(end: _End, own: Path | None) -> list[Line]:
    """Judge the dates of both sides. Where none is shown there is no line: the connection's own says why."""
    lines: list[Line] = []
    if end.encrypted:
        shown = await _looked(lambda: _dates(probes.shown_certificate(end.host, end.port, _ANSWER_SECONDS)), _none)
        lines += [_dated(end, f"the certificate of {end.host}", shown)] if shown else []
    if own:
        found = await _looked(lambda: _dates(probes.own_certificate(own)), str)
        lines.append(_dated(end, f"our certificate {own}", found))
    return lines


def _dates(der: bytes) -> Validity | str | None:
    return validity(der)


def _none(_why: str) -> None:
    return None


def _dated(end: _End, whose: str, dates: Validity | str | None) -> Line:
    return judge.certificate(f"{end.name} TLS", whose, dates or "", datetime.now(UTC))


# --- the broker ------------------------------------------------------------------------------------------------------


async def _broker_side(settings: Settings) -> list[Line]:
    mqtt = settings.mqtt
    if mqtt.transport == "unix":
        end, names = _End("broker", mqtt.host, 0, encrypted=False), list[Line]()
    else:
        end = _End("broker", mqtt.host, mqtt.port, mqtt.tls.enabled)
        names = await _named(end)
    if _is_lost(names):
        return [*names, fail("broker", "not tried, for its name is not found", "correct that first")]
    certificates, visited = await asyncio.gather(_certificates(end, mqtt.tls.cert), _visited(settings))
    where = mqtt.host if mqtt.transport == "unix" else f"{mqtt.host}:{mqtt.port}"
    lines = judge.broker(where, visited, username=mqtt.username, mqtt5=mqtt.protocol == "5")
    return [*names, *lines, *certificates]


async def _visited(settings: Settings) -> AtBroker:
    try:
        async with asyncio.timeout(_VISIT_SECONDS):
            return await visit(settings)
    except TimeoutError:
        return AtBroker(error=f"{settings.mqtt.host} gave no answer within {_VISIT_SECONDS:g} s")


# --- the cloud, and the clock by it ----------------------------------------------------------------------------------


async def _cloud_side(upload: UploadSettings, *, with_cloud: bool) -> list[Line]:
    if not with_cloud:
        return [
            fail("cloud", "not tried, for [upload] is not right", "correct that first"),
            judge.clock(time.time(), None),
        ]
    end = _cloud_end(upload)
    names = await _named(end)
    if _is_lost(names):
        nothing = fail(
            "cloud", "not tried, for its name is not found", "correct that first; the queue keeps everything"
        )
        return [*names, nothing, judge.clock(time.time(), None)]
    certificates, lines = await asyncio.gather(_certificates(end, upload.tls.cert), _posted(upload))
    return [*names, lines[0], *certificates, *lines[1:]]


def _cloud_end(upload: UploadSettings) -> _End:
    parts = urlsplit(upload.proxy or upload.url)
    port = parts.port or _TLS_PORT.get(parts.scheme, 443)
    encrypted = parts.scheme == "https" and not upload.proxy  # through a proxy, its certificate is not for us to see
    return _End("proxy" if upload.proxy else "cloud", parts.hostname or "", port, encrypted)


async def _posted(upload: UploadSettings) -> list[Line]:
    """POST no row at all, everything else as the bridge does it: what is answered is what it would hear."""
    batch = Batch(())
    quick = upload.model_copy(update={"timeout_seconds": min(upload.timeout_seconds, _ANSWER_SECONDS)})
    try:
        async with Uploader(quick, __version__) as uploader:
            reply = await uploader.post(batch)
    except ConfigError as error:
        return [fail("cloud", error.message, error.hint), judge.clock(time.time(), None)]
    now = time.time()
    return [
        judge.cloud(reply, batch, require_receipt=upload.require_receipt, now=now),
        judge.clock(now, reply.date),
    ]


# --- the disk --------------------------------------------------------------------------------------------------------


async def _disk_side(bounds: QueueSettings) -> list[Line]:
    def failing(check: str) -> Callable[[str], Line]:
        advice = f"can this user write to {bounds.path}? does the disk answer (dmesg)?"
        return lambda why: fail(check, f"{bounds.path}: {why}", advice)

    return list(
        await asyncio.gather(
            _looked(lambda: _disk_space(bounds), failing("disk space")),
            _looked(lambda: judge.file_system(probes.mount_of(probes.nearest(bounds.path))), failing("file system")),
            _looked(lambda: judge.sync(probes.sync_seconds(probes.nearest(bounds.path))), failing("disk speed")),
        )
    )


def _disk_space(bounds: QueueSettings) -> Line:
    folder = probes.nearest(bounds.path)
    reserve = Reserve(folder)
    wanted = judge.Bounds(bounds.max_bytes, bounds.min_free_disk_bytes, 0 if reserve.held else reserve.size_bytes)
    return judge.disk_space(str(folder), probes.room(folder), _used_bytes(folder), wanted)


def _used_bytes(folder: Path) -> int:
    files = (folder / FILE_NAME, folder / f"{FILE_NAME}-wal")
    return sum(file.stat().st_size for file in files if file.exists())


# --- the queue -------------------------------------------------------------------------------------------------------


async def _queue_side(bounds: QueueSettings) -> list[Line]:
    def unknown(why: str) -> list[Line]:
        return [warn("queue", f"{bounds.path}: {why}", "`edge-bridge queue verify` takes all the time it needs")]

    return await _looked(lambda: _queue(bounds), unknown)


def _queue(bounds: QueueSettings) -> list[Line]:
    folder = bounds.path
    try:
        found = _live(folder) or _left_behind(folder)
    except OperatorError as error:
        return [fail("queue", error.message, error.hint)]
    if found is None:
        return [ok("queue", f"none yet in {folder}; the first start makes it")]
    return list(judge.queue(found, bounds.max_bytes))


def _live(folder: Path) -> judge.Queue | None:
    conversation = connect(folder)
    if conversation is None:
        return None
    with closing(conversation):
        stats = conversation.ask(Request.of("stats", Selection())).items[0]
    waiting, losses = stats["ready"] + stats["taken"], stats["losses"]
    counts = judge.Queue(holder_of(folder), waiting, stats["delivered"], stats["dead"], stats["bytes"], losses)
    return counts._replace(set_aside=_set_aside(folder), unsalvaged=_unsalvaged(folder))


def _left_behind(folder: Path) -> judge.Queue | None:
    """Read the file of a stopped bridge, under its lock and without writing to it."""
    if not (folder / FILE_NAME).exists():
        return None
    lock = FolderLock(folder)  # refused if a bridge that does not answer holds it
    try:
        found = verify(folder)
    finally:
        lock.release()
    rows = found.rows
    waiting = sum(number for status, number in rows.items() if status not in {DELIVERED, DEAD})
    return judge.Queue(
        None,
        waiting,
        rows.get(DELIVERED, 0),
        rows.get(DEAD, 0),
        _used_bytes(folder),
        found.losses,
        found.troubles,
        _set_aside(folder),
        _unsalvaged(folder),
    )


def _set_aside(folder: Path) -> tuple[str, ...]:
    return tuple(file.name for file in asides(folder))


def _unsalvaged(folder: Path) -> tuple[str, ...]:
    return tuple(file.name for file in pending(folder))


# --- the bridge ------------------------------------------------------------------------------------------------------


async def _bridge_side(settings: Settings) -> list[Line]:
    """Judge what a running bridge says of itself; where none runs, or its broker says nothing, there is no line."""
    if not await _looked(lambda: _runs(settings.queue.path), lambda _why: False):
        return []
    payload = await retained_status(settings, _VISIT_SECONDS)
    try:
        return [judge.bridge(parse(payload, settings.status.topic))] if payload else []
    except BridgeError as error:
        return [warn("bridge", error.message, error.hint)]


def _runs(folder: Path) -> bool:
    """Tell whether a bridge listens there; the process id in its lock stays behind when it ends."""
    conversation = connect(folder)
    if conversation:
        conversation.close()
    return conversation is not None
