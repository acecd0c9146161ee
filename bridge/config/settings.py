"""Every setting of the bridge, once: its name, type, bounds, default and meaning.

The schema, `config show`, the problems that are reported and the test of `config/bridge.toml` are all derived from
these models. They are frozen and pure but for one default, the host name; files and environment belong to
`bridge.config.load`. Secrets are `SecretStr`, so that no repr, log line or traceback can show one (I8).

Each setting that holds a secret has a twin with `_file` behind its name. After loading, the secret is in the one and
the path it came from still in the other, so that a changed file can be read again.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    TypeAdapter,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bridge.config import rules

_UINT16_MAX = 65535
_UINT32_MAX = 2**32 - 1
_YEAR_SECONDS = 366 * 24 * 3600
_BYTES_MAX = 2**50  # a petabyte: what is above is a slip of the pen

_byte_size = TypeAdapter(ByteSize)


def _bytes(value: object) -> object:
    """Read "256 MiB" as a number of bytes; everything else is judged by the type."""
    if isinstance(value, str):
        try:
            return int(_byte_size.validate_python(value))
        except ValueError:
            return value
    return value


def _absent_if_empty(value: object) -> object:
    return None if value == "" else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _protocol(value: object) -> object:
    return "5" if value in (5, "5.0") and value is not True else value


def _token(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None:
        rules.bearer_token(secret.get_secret_value())
    return secret


def host_name() -> str:
    """Return this machine's name, made fit for a device_id: the default of `device_id`."""
    return re.sub(r"[^A-Za-z0-9._~:@-]", "-", socket.gethostname())[:128] or "edge"


# Strict: a quoted number or a 0 for false is a slip in a TOML file. The environment converts before this.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Seconds = Annotated[Number, Field(ge=0, le=_YEAR_SECONDS)]
SomeSeconds = Annotated[Number, Field(gt=0, le=_YEAR_SECONDS)]
Milliseconds = Annotated[Whole, Field(ge=0, le=60_000)]
Messages = Annotated[Whole, Field(ge=0)]
GroupMessages = Annotated[Whole, Field(ge=1, le=_UINT16_MAX)]
_ReadBytes = BeforeValidator(_bytes, json_schema_input_type=Annotated[int, Field(ge=0)] | str)
Bytes = Annotated[Whole, _ReadBytes, Field(ge=0, le=_BYTES_MAX)]
Text = Annotated[str, Field(min_length=1)]
OptionalText = Annotated[str | None, BeforeValidator(_absent_if_empty)]
OptionalPath = Annotated[Path | None, BeforeValidator(_absent_if_empty)]
Secret = Annotated[SecretStr | None, BeforeValidator(_absent_if_empty)]
Token = Annotated[Secret, AfterValidator(_token)]
TopicFilter = Annotated[str, AfterValidator(rules.topic_filter)]


class Section(BaseModel):
    """A table of the configuration: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class TlsSettings(Section):
    """Certificates, as files in PEM."""

    ca: OptionalPath = None
    """Authorities to trust instead of the system's."""
    cert: OptionalPath = None
    """Certificate that this bridge shows."""
    key: OptionalPath = None
    """Private key of `cert`, if it is not in the same file."""
    insecure: Flag = False
    """Accept any certificate. Whoever is on the way can then read and answer in the peer's name."""


class MqttTlsSettings(TlsSettings):
    """Certificates of the connection to the broker, and whether it is encrypted at all."""

    enabled: Flag = False
    """Encrypt. Naming a certificate, or port 8883, is enough to switch it on; this does it with the system's CAs."""


class MqttSettings(Section):
    """The local broker."""

    host: Text = "127.0.0.1"
    """Name or address of the broker; with `transport = "unix"` the path of its socket."""
    port: Annotated[Whole, Field(ge=1, le=_UINT16_MAX)] = 1883
    """TCP port of the broker; not used with `transport = "unix"`."""
    username: OptionalText = None
    """User name at the broker."""
    password: Secret = None
    """Password at the broker; better in a file: `password_file`."""
    password_file: OptionalPath = None
    """File with the password."""
    transport: Annotated[Literal["tcp", "unix", "websockets"], BeforeValidator(_lower)] = "tcp"
    """How to reach the broker."""
    protocol: Annotated[
        Literal["5", "3.1.1"], BeforeValidator(_protocol, json_schema_input_type=Literal[5, "5", "3.1.1"])
    ] = "5"
    """Version of MQTT. With 3.1.1 the broker's max_inflight_messages (20) bounds the group commit."""
    topics: Annotated[tuple[TopicFilter, ...], AfterValidator(rules.some_filters)] = ("edge/predictions/#",)
    """Filters to subscribe to; `$share/GROUP/FILTER` works as is."""
    qos: Annotated[Literal[0, 1], BeforeValidator(rules.subscription_qos)] = 1
    """Quality of service of the subscriptions. Only 1 is confirmed, so only 1 is safe."""
    client_id: str = ""
    """Stable name of the session, edge-bridge-<device_id> if not given: the broker keeps messages under it."""
    session_expiry_seconds: Annotated[Whole, Field(ge=1, le=_UINT32_MAX)] = 604_800
    """How long the broker keeps messages while the bridge is away (MQTT 5)."""
    receive_maximum: GroupMessages = 10_000
    """Unconfirmed messages that the broker may have under way (MQTT 5): the window of the group commit."""
    keepalive_seconds: GroupMessages = 60
    """Longest silence before a dead connection is noticed."""
    tls: MqttTlsSettings = MqttTlsSettings()
    """Encryption of the connection to the broker."""

    @model_validator(mode="before")
    @classmethod
    def _encrypt_where_meant(cls, table: Any) -> Any:
        """Let the default of tls.enabled follow from the other keys, as mosquitto_pub does."""
        if not isinstance(table, dict) or not isinstance(tls := table.get("tls", {}), dict):
            return table
        secure_port = table.get("port") == 8883 and table.get("transport") != "unix"  # noqa: PLR2004  IANA: secure-mqtt
        return {**table, "tls": {"enabled": secure_port or any(tls.values()), **tls}}


class IntakeSettings(Section):
    """From the broker to the disk."""

    batch_messages: GroupMessages = 1000
    """Commit a group at this many messages ..."""
    linger_ms: Milliseconds = 5
    """... or this long after its first one, whichever comes first."""
    max_payload_bytes: Annotated[Whole, _ReadBytes, Field(ge=1, le=268_435_455)] = 1_048_576
    """Larger payloads are refused, counted, and recorded in the loss ledger."""
    id_fields: tuple[Text, ...] = ("prediction_id", "event_id", "message_id")
    """JSON members that carry the producer's own id of the message, the first one found counts."""


class QueueSettings(Section):
    """The disk queue."""

    path: Path = Path("data")
    """Folder of the queue, with this bridge alone in it; relative to the working directory."""
    durability: Annotated[Literal["power", "crash"], BeforeValidator(_lower)] = "power"
    """power: fsync before a message is confirmed. crash: survives the death of the process, not of the machine."""
    max_bytes: Bytes = 1_073_741_824
    """Bound of the queue in bytes; 0 = none."""
    max_messages: Messages = 0
    """Bound of the queue in waiting messages; 0 = none."""
    max_age_seconds: Seconds = 0
    """Bound of a waiting message's age; 0 = none."""
    min_free_disk_bytes: Bytes = 268_435_456
    """Free space on the disk that the queue leaves to others; 0 = none."""
    overflow: Annotated[Literal["drop-oldest", "drop-newest", "block"], BeforeValidator(_lower)] = "drop-oldest"
    """What happens at a bound. block: stop confirming, so that the broker keeps the messages."""
    keep_delivered_seconds: Seconds = 3600
    """Delivered rows are kept this long for audit and replay ..."""
    keep_delivered_messages: Messages = 10_000
    """... and at most this many of them."""


class UploadSettings(Section):
    """The cloud end."""

    url: Annotated[str, AfterValidator(rules.upload_url), Field(examples=["https://cloud.example/ingest"])]
    """Address that events are posted to. Required."""
    format: Annotated[Literal["cloudevents", "json", "ndjson"], BeforeValidator(_lower)] = "cloudevents"
    """Body of a post: an array of CloudEvents, an array of the bare payloads, or a CloudEvent a line."""
    token: Token = None
    """Bearer token; better in a file: `token_file`."""
    token_file: OptionalPath = None
    """File with the bearer token; a new token in it is noticed while running."""
    headers: Annotated[dict[str, str], AfterValidator(rules.headers), Field(repr=False)] = {}
    """Extra headers for every post."""
    proxy: Annotated[OptionalText, AfterValidator(lambda url: url and rules.proxy_url(url)), Field(repr=False)] = None
    """HTTP proxy to go through, http://[user:password@]host:port."""
    allow_plain_http: Flag = False
    """Send the token over http:// too, in the clear, beyond this machine."""
    batch_messages: GroupMessages = 1000
    """Most messages in one post."""
    batch_bytes: Annotated[Whole, _ReadBytes, Field(ge=1024, le=_BYTES_MAX)] = 1_048_576
    """Most bytes in one post, before compression; a single larger message goes alone."""
    linger_ms: Milliseconds = 20
    """How long a post waits to fill up, from when its first message was stored."""
    compression: Annotated[Literal["none", "gzip", "zstd"], BeforeValidator(_lower)] = "gzip"
    """Compression of the body; small bodies go uncompressed."""
    concurrency: Annotated[Whole, Field(ge=1, le=64)] = 1
    """Posts under way at the same time. 1 keeps the order of arrival; more hides latency."""
    timeout_seconds: SomeSeconds = 30
    """Longest wait for an answer, from the first byte sent to the last one read."""
    retry_min_seconds: SomeSeconds = 0.5
    """Backoff after the first failure ..."""
    retry_max_seconds: SomeSeconds = 60
    """... and its bound; full jitter."""
    max_attempts: Messages = 0
    """Attempts for a row that the answers blame, before it is dead; 0 = no limit."""
    require_receipt: Flag = False
    """Count rows as delivered only if the answer echoes the Idempotency-Key or names the rows."""
    report_losses: Flag = True
    """Tell the cloud of messages that it will never get, as events of type edge.loss.v1 (not with format json)."""
    tls: TlsSettings = TlsSettings()
    """Private CA and client certificate."""


class StatusSettings(Section):
    """The retained status in the broker."""

    topic: Annotated[str, AfterValidator(rules.status_topic)] = "edge/buffer/status"
    """Topic of the status object; each of its leaves is a topic below it."""
    interval_seconds: SomeSeconds = 5
    """Longest time between two of them."""


class WebSettings(Section):
    """Page, health and metrics."""

    host: Text = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[Whole, Field(ge=0, le=_UINT16_MAX)] = 8080
    """Port to listen on; 0 = off."""
    token: Token = None
    """Token that whatever changes state asks for; better in a file: `token_file`."""
    token_file: OptionalPath = None
    """File with that token."""


class LogSettings(Section):
    """The log, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    """Least level that is written."""
    format: Annotated[Literal["auto", "text", "json"], BeforeValidator(_lower)] = "auto"
    """auto: text on a terminal, JSON lines otherwise."""


class Settings(Section):
    """The whole configuration, valid: what loads has no problem left that can be known without a network."""

    device_id: Annotated[str, AfterValidator(rules.device_id), Field(default_factory=host_name)]
    """Name of this device, the host name if not given; events say `source: edge/<device_id>`."""
    shutdown_grace_seconds: Seconds = 10
    """Time to finish the post under way at a stop."""
    mqtt: MqttSettings = MqttSettings()
    """The local broker."""
    intake: IntakeSettings = IntakeSettings()
    """From the broker to the disk."""
    queue: QueueSettings = QueueSettings()
    """The disk queue."""
    upload: UploadSettings
    """The cloud end."""
    status: StatusSettings = StatusSettings()
    """The retained status in the broker."""
    web: WebSettings = WebSettings()
    """Page, health and metrics."""
    log: LogSettings = LogSettings()
    """The log, on standard error."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_session(cls, tables: Any) -> Any:
        """Let the default of mqtt.client_id follow from device_id."""
        if not isinstance(tables, dict) or not isinstance(mqtt := tables.get("mqtt", {}), dict):
            return tables
        device_id = tables.get("device_id") or host_name()
        client_id = mqtt.get("client_id") or f"edge-bridge-{device_id}"
        return {**tables, "device_id": device_id, "mqtt": {**mqtt, "client_id": client_id}}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if problems := list(rules.problems_between(self)):
            raise PydanticCustomError(
                "disagreement", "{sentences}", {"sentences": "\n".join(map(str, problems)), "problems": problems}
            )
        return self
