"""The bundle: what who helps from afar wants to see, in one archive, without a secret and without a payload (I8).

Nothing in it is written from a message's content: of the queue there are counts and, of losses, ids, topics, reasons.
Secrets do not get here, for the configuration comes masked; since a log or an answer may repeat one all the same, each
text is searched for every secret of the configuration, in the spellings that they travel in, before it is packed.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.metadata
import io
import json
import platform
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from bridge import __version__
from bridge.config import Settings
from bridge.control import connect
from bridge.disk_queue import Request, Selection, holder_of
from bridge.doctor import probes
from bridge.doctor.visit import retained_status
from bridge.errors import BridgeError

_LIBRARIES = ("aiohttp", "orjson", "paho-mqtt", "persist-queue", "pydantic", "rich", "uvloop", "zstandard")
_LOOK_SECONDS = 3.0
_SECRET_CHARS_MIN = 4  # a shorter one would blot out half of any text; it stands nowhere anyway
_ENTRY_KEYS = ("loss", "at", "reason", "messages", "topic", "ids")  # not `detail`: an answer may repeat a payload

Members = dict[str, bytes]


async def collect(settings: Settings) -> Members:
    """Gather what only a machine with a queue has: status, counts and losses, files, versions, the log's end."""
    folder = settings.queue.path
    looks: Mapping[str, Callable[[], bytes]] = {
        "queue.json": lambda: _queue(folder),
        "files.txt": lambda: _files(folder),
        "log.txt": lambda: _log(folder),
    }
    found = await asyncio.gather(retained_status(settings, _LOOK_SECONDS), *(_look(look) for look in looks.values()))
    members = dict(zip(("status.json", *looks), found, strict=True))
    return {name: text for name, text in members.items() if text} | {"versions.json": as_json(versions())}


def pack(members: Members, secrets: Iterable[str]) -> bytes:
    """Return the archive, a tar.gz; every secret in every member is blotted out."""
    found, archive = list(secrets), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in members.items():
            clean = blotted(text, found)
            entry = tarfile.TarInfo(f"edge-bridge-doctor/{name}")
            entry.size, entry.mode = len(clean), 0o600
            tar.addfile(entry, io.BytesIO(clean))
    return archive.getvalue()


def blotted(text: bytes, secrets: Iterable[str]) -> bytes:
    """Return the text without any of the secrets, longest first, in any spelling in which one may travel."""
    spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, b"***")
    return text


def _spellings(secret: str) -> Iterator[bytes]:
    raw = secret.encode()
    if len(secret) >= _SECRET_CHARS_MIN:
        yield from (raw, quote(secret, safe="").encode(), base64.b64encode(raw).rstrip(b"="))
        yield from (json.dumps(secret, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False))


def secrets_of(settings: Settings) -> list[str]:
    """Return everything in the configuration that nobody may see."""
    found = [*_secret_values(settings), *settings.upload.headers.values()]
    if proxy := settings.upload.proxy:
        password = urlsplit(proxy).password or ""
        found += [password, unquote(password)]
    return [secret for secret in found if secret]


def _secret_values(model: BaseModel) -> Iterator[str]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
        elif isinstance(value, BaseModel):
            yield from _secret_values(value)


def versions() -> dict[str, str]:
    """Return what is installed, and on what."""
    libraries = {name: _version(name) for name in _LIBRARIES}
    machine = {"python": platform.python_version(), "system": platform.platform(), "machine": platform.machine()}
    return {"edge-bridge": __version__, **machine, **libraries}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def as_json(value: object) -> bytes:
    """Return a document for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n"


async def _look(look: Callable[[], bytes]) -> bytes:
    try:
        return await probes.in_thread(look, _LOOK_SECONDS)
    except (OSError, BridgeError, TimeoutError):  # the doctor's own list says what is wrong there
        return b""


def _queue(folder: Path) -> bytes:
    conversation = connect(folder)
    if conversation is None:
        return b""
    with closing(conversation):
        stats = conversation.ask(Request.of("stats", Selection())).items[0]
        entries = conversation.ask(Request.of("losses", Selection())).items
    losses: list[dict[str, Any]] = [{key: entry[key] for key in _ENTRY_KEYS} for entry in entries]
    return as_json({"stats": stats, "losses": losses})


def _files(folder: Path) -> bytes:
    lines = [f"{file.stat().st_size:>14}  {oct(file.stat().st_mode)[-4:]}  {file.name}" for file in folder.iterdir()]
    return "\n".join([*sorted(lines), ""]).encode("utf-8", "backslashreplace")


def _log(folder: Path) -> bytes:
    pid = holder_of(folder)
    return probes.log_of(pid) if pid else b""
