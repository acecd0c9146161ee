"""What the configuration may say, beyond the type of a value: rules for one value, and rules between several.

A rule for one value raises ValueError with a sentence for people; `problems_between` yields every clash it finds, so
that all of them can be told at once. Pure: no file, no environment, no name lookup.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, urlsplit

from bridge import topics

if TYPE_CHECKING:
    from bridge.config.settings import MqttSettings, Settings, TlsSettings, UploadSettings

_DEVICE_ID = re.compile(r"[A-Za-z0-9._~:@-]{1,128}")  # a path segment of a URI (RFC 3986) that needs no escaping
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token (RFC 9110, 5.6.2)
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_OWN_HEADERS = re.compile(
    r"content-.*|idempotency-key|host|user-agent|accept-encoding|transfer-encoding|connection|expect|te|trailer|upgrade",
    re.IGNORECASE,
)


class Problem(NamedTuple):
    """One thing that is wrong: the path of the key (or the file), and what is wrong and what would be right."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


# ---- one value ----


def device_id(text: str) -> str:
    """Accept what is legal as it stands in a CloudEvents source and in an MQTT client id."""
    if not _DEVICE_ID.fullmatch(text):
        raise ValueError("is part of every event's source: use 1 to 128 letters, digits and . _ ~ : @ - only")
    return text


def topic_filter(text: str) -> str:
    """Accept a legal subscription filter."""
    if fault := topics.filter_fault(text):
        raise ValueError(f'"{text}" is not a topic filter: {fault}; for example "edge/predictions/#"')
    return text


def some_filters(filters: tuple[str, ...]) -> tuple[str, ...]:
    """Accept at least one."""
    if not filters:
        raise ValueError('is an empty list, so nothing would ever come; for example ["edge/predictions/#"]')
    return filters


def status_topic(text: str) -> str:
    """Accept a topic that the status tree can hang from."""
    fault = topics.name_fault(text)
    if fault or text.startswith("$") or text.endswith("/"):
        raise ValueError(
            f"cannot carry the status: {fault or 'it begins with $ or ends with /'}; for example edge/buffer/status"
        )
    return text


def subscription_qos(value: object) -> object:
    """Refuse QoS 2 with the reason; other wrong values are left to the type."""
    if value == 2:  # noqa: PLR2004  the quality of service of that number
        raise ValueError(
            "2 cannot keep the promise: QoS 2 answers PUBREC before the message is on disk and holds its state in "
            "memory; use 1, where the confirmation waits for the disk (copies are recognised by their id)"
        )
    return value


def upload_url(text: str) -> str:
    """Accept an http or https address with a host and without credentials."""
    parts = _split_url(text)
    if "@" in parts.netloc:
        raise ValueError("must not carry user:password; put the secret into upload.token or upload.token_file")
    if parts.fragment:
        raise ValueError(f'has a fragment (#{parts.fragment}) that is never sent; leave it out, or write "#" as %23')
    return text


def proxy_url(text: str) -> str:
    """Accept the address of an HTTP proxy; `http://user:password@host:port` is how a proxy takes credentials."""
    _split_url(text)
    return text


def headers(names_values: dict[str, str]) -> dict[str, str]:
    """Accept headers that are legal and that the bridge does not set itself."""
    seen: set[str] = set()
    for name, value in names_values.items():
        if fault := _header_fault(name, value) or (name.lower() in seen and "is there twice"):
            raise ValueError(f"{name!r} {fault}")
        seen.add(name.lower())
    return names_values


def bearer_token(text: str) -> None:
    """Refuse a token that cannot stand in a header; never repeat it."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be one word of printable ASCII characters, without spaces and without the word Bearer")


def _split_url(text: str) -> SplitResult:
    fault = None
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises if it is not a port
    except ValueError as error:
        fault = str(error)
    else:
        if parts.scheme not in {"http", "https"}:
            fault = "it does not begin with https:// or http://"
        elif not parts.hostname:
            fault = "it names no host"
        elif not text.isprintable() or " " in text:
            fault = "it has a space or a control character in it"
        else:
            return parts
    raise ValueError(f"is not a usable address: {fault}; for example https://cloud.example/ingest")


def _header_fault(name: str, value: str) -> str | None:
    if not _HEADER_NAME.fullmatch(name):
        return "is not a header name: letters, digits and - only"
    if _OWN_HEADERS.fullmatch(name):
        return "is set by the bridge itself; leave it out"
    if not _HEADER_VALUE.fullmatch(value):
        return "has a value that is empty or has other than printable ASCII characters in it"
    return None


# ---- between values ----


def problems_between(settings: Settings) -> Iterator[Problem]:
    """Yield every clash between values that are each right alone."""
    yield from _loops(settings)
    yield from _mqtt(settings.mqtt)
    yield from _upload(settings.upload)


def _loops(settings: Settings) -> Iterator[Problem]:
    """Nothing that the bridge publishes may come back to it as a message."""
    own_trees = topics.own_trees(settings.status.topic)
    for index, wanted in enumerate(settings.mqtt.topics):
        if caught := [tree for tree in own_trees if topics.overlap(topics.unshared(wanted), tree)]:
            yield Problem(
                f"mqtt.topics[{index}]",
                f'"{wanted}" takes in {" and ".join(caught)}, where the bridge publishes itself: an endless loop; '
                "use a narrower filter, or one filter for each tree of topics",
            )


def _mqtt(mqtt: MqttSettings) -> Iterator[Problem]:
    yield from _tls("mqtt.tls", mqtt.tls)
    if mqtt.transport == "unix" and not mqtt.host.startswith("/"):
        yield Problem(
            "mqtt.host",
            f'with mqtt.transport = "unix" this is the path of the socket, not "{mqtt.host}"; '
            "for example /run/mosquitto/mosquitto.sock",
        )
    if mqtt.transport != "unix" and "/" in mqtt.host:
        yield Problem("mqtt.host", f'"{mqtt.host}" is not a host name; a path needs mqtt.transport = "unix"')
    if mqtt.transport == "unix" and mqtt.tls.enabled:
        yield Problem("mqtt.tls", 'has no meaning on a Unix socket; take it out, or use mqtt.transport = "tcp"')
    if mqtt.password is not None and mqtt.username is None:
        yield Problem("mqtt.username", "is missing while mqtt.password is set; give both")
    if mqtt.protocol == "5":
        yield from _twice(mqtt.topics)


def _twice(filters: tuple[str, ...]) -> Iterator[Problem]:
    """With MQTT 5 Mosquitto sends a message once for each filter that matches it: it would be stored twice."""
    for (_, first), (index, second) in itertools.combinations(enumerate(filters), 2):
        if topics.overlap(topics.unshared(first), topics.unshared(second)):
            yield Problem(
                f"mqtt.topics[{index}]",
                f'"{second}" overlaps "{first}": a message that matches both would come, and be stored, twice; '
                'keep one of them or make them disjoint (with mqtt.protocol = "3.1.1" Mosquitto sends it once)',
            )


def _tls(path: str, tls: TlsSettings) -> Iterator[Problem]:
    if tls.key is not None and tls.cert is None:
        yield Problem(f"{path}.cert", f"is missing while {path}.key is set; give the certificate of that key")


def _upload(upload: UploadSettings) -> Iterator[Problem]:
    yield from _tls("upload.tls", upload.tls)
    if upload.retry_min_seconds > upload.retry_max_seconds:
        yield Problem(
            "upload.retry_min_seconds",
            f"{upload.retry_min_seconds:g} is more than upload.retry_max_seconds ({upload.retry_max_seconds:g}); "
            "the first must not exceed the second",
        )
    in_headers = any(name.lower() == "authorization" for name in upload.headers)
    if in_headers and upload.token is not None:
        yield Problem("upload.headers", "Authorization is there although upload.token is set; keep one of them")
    if (in_headers or upload.token is not None) and not upload.allow_plain_http and _is_exposed(upload.url):
        yield Problem(
            "upload.url",
            "would carry the token in the clear for everybody on the way; use https://, "
            "or say upload.allow_plain_http = true if that network is trusted",
        )


def _is_exposed(url: str) -> bool:
    """Tell whether requests to it leave this machine unencrypted."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
