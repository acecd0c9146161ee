"""From the file and the environment to `Settings`: the only place that reads either.

Layers, last one wins: the defaults of the models, the TOML file, the environment. Each layer becomes a flat table of
key paths, so that layering is one union of tables and every value knows where it came from. Nothing is half accepted:
`load` returns valid settings or raises one ConfigError with every problem found in all layers.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bridge.config.problems import KEYS, SECTIONS, Key, problems_in, shown, unknown
from bridge.config.rules import Problem
from bridge.config.settings import Settings
from bridge.errors import ConfigError

DEFAULT_FILES = (Path("config/bridge.toml"), Path("/etc/edge-bridge/bridge.toml"))
SECRET_BYTES_MAX = 65_536

_PREFIX = "BRIDGE_"
_NOT_SETTINGS = {"BRIDGE_CONFIG", "BRIDGE_DEBUG"}
# Kubernetes puts these into every container of a namespace that has a service called "bridge".
_SERVICE_LINK = re.compile(r"BRIDGE_(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)=.*|BRIDGE_PORT=\w+://.*")
_ANY_URL = "https://cloud.example/"  # stands in where the key is not asked for
_TRUTH = {"true": True, "1": True, "false": False, "0": False}

Note = Callable[[Problem], None]


class Given(NamedTuple):
    """A value that somebody set, and where: a file or the name of a variable."""

    value: Any
    source: str


Layer = dict[str, Given]  # by key path


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, where the value of each key came from, and the file that was read, if any."""

    settings: Settings
    sources: Mapping[str, str]
    file: Path | None


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of reading a configuration: the loaded one, or every problem that it has."""

    loaded: Loaded | None
    file: Path | None
    problems: list[Problem]


class Supervision(NamedTuple):
    """Where a service manager wants to hear from us, and within which time at the latest it must."""

    notify_socket: str | None
    watchdog_seconds: float | None


def load_from_environment(config_argument: Path | None, *, needs_upload: bool = True) -> Loaded:
    """Load what this process was started with; `config_argument` is the value of --config. Raises ConfigError.

    A command that only talks to the broker says `needs_upload=False`: then nothing in [upload] need be there, or right.
    """
    return load(config_argument, os.environ, needs_upload=needs_upload)


def examine_environment(config_argument: Path | None) -> Examined:
    """Examine what this process was started with."""
    return examine(config_argument, os.environ)


def supervision_from_environment() -> Supervision:
    """Return what the service manager that started this process, such as systemd, asks of it."""
    return supervision(os.environ, os.getpid())


def supervision(environ: Mapping[str, str], pid: int) -> Supervision:
    """Read sd_notify(3) and sd_watchdog_enabled(3): the watchdog may be meant for another process than this one."""
    for_us = environ.get("WATCHDOG_PID") in {None, "", str(pid)}
    microseconds = environ.get("WATCHDOG_USEC", "")
    watches = for_us and microseconds.isdecimal() and int(microseconds) > 0
    return Supervision(environ.get("NOTIFY_SOCKET") or None, int(microseconds) / 1e6 if watches else None)


def wants_traceback() -> bool:
    """Tell whether the operator asked for tracebacks of internal errors: BRIDGE_DEBUG=1."""
    return os.environ.get("BRIDGE_DEBUG", "") not in {"", "0"}


def load(path: Path | None, environ: Mapping[str, str], *, needs_upload: bool = True) -> Loaded:
    """Return the valid settings of all layers. Raises ConfigError with all problems at once."""
    examined = examine(path, environ, needs_upload=needs_upload)
    if examined.loaded is None:
        hint = "`edge-bridge config schema` describes every key"
        raise ConfigError([str(problem) for problem in examined.problems], hint)
    return examined.loaded


def examine(path: Path | None, environ: Mapping[str, str], *, needs_upload: bool = True) -> Examined:
    """Read all layers and go on after each problem, so as to find all of them."""
    problems: list[Problem] = []
    file = chosen_file(path, environ)
    variables = _environment_layer(environ, problems.append)
    tables = _file_layer(file, problems.append)
    if tables is None:  # what would be missing stands in the file that cannot be read
        return Examined(None, file, problems)
    layer = _over(variables, tables)
    if not needs_upload:
        layer = {path: given for path, given in layer.items() if not path.startswith("upload.")}
        layer["upload.url"] = Given(_ANY_URL, "not asked for")
    layer = _with_secrets(layer, problems.append)
    problems += _unreadable_certificates(layer)
    settings = _validated(layer, problems.append)
    if settings is None or problems:
        return Examined(None, file, problems)
    sources = {key: layer[key].source if key in layer else "default" for key in KEYS}
    return Examined(Loaded(settings, sources, file), file, [])


def chosen_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the configuration file: the one named, else the first default file that exists, else None."""
    if path is not None:
        return path
    if named := environ.get("BRIDGE_CONFIG"):
        return Path(named)
    return next(filter(_is_there, DEFAULT_FILES), None)


def _is_there(file: Path) -> bool:
    """Tell whether there is a file, also one that we may not look at: to skip that would be to run without it."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def reread_secrets(settings: Settings) -> Settings:
    """Return the settings with every secret that came from a file read again. Raises ConfigError."""
    problems: list[Problem] = []
    tables = settings.model_dump()
    for key in _secrets():
        table, _, name = key.path.partition(".")
        if file := tables[table][f"{name}_file"]:
            tables[table][name] = _secret_in(file, key, problems.append)
    renewed = None
    try:
        renewed = Settings.model_validate(tables)
    except ValidationError as error:
        problems += problems_in(error, {})
    if renewed is None or problems:
        raise ConfigError([str(problem) for problem in problems], "the former secrets stay in use")
    return renewed


# ---- layers ----


def _file_layer(file: Path | None, note: Note) -> Layer | None:
    if file is None:
        return {}
    text = ""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as error:
        note(Problem(str(file), f"cannot be read: {error.strerror}; name a configuration file that exists"))
    except (ValueError, RecursionError) as error:  # tomllib's own errors, bytes that are not UTF-8, giant numbers
        fault = str(error).replace("at end of document", f"at the end, line {len(text.splitlines())}")
        note(Problem(str(file), f"is not valid TOML: {fault}"))
    else:
        return _layer(_leaves("", tables, str(file)), note, is_variable=False)
    return None


def _environment_layer(environ: Mapping[str, str], note: Note) -> Layer:
    leaves: list[tuple[str, Given]] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(_PREFIX) or name in _NOT_SETTINGS or _SERVICE_LINK.fullmatch(f"{name}={text}"):
            continue
        if not text:  # as compose writes a variable that is not set: "${TOKEN:-}"
            continue
        path = name.removeprefix(_PREFIX).lower().replace("__", ".")
        value = _value_of(path, name, text, note)
        if f"{path}." in SECTIONS and isinstance(value, dict):
            leaves += _leaves(f"{path}.", value, name)
        elif value is not None:
            leaves.append((path, Given(value, name)))
    return _layer(iter(leaves), note, is_variable=True)


def _leaves(prefix: str, table: Mapping[str, Any], source: str) -> Iterator[tuple[str, Given]]:
    """Flatten tables as far as the models have tables; what lies deeper is a value."""
    for name, value in table.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and f"{path}." in SECTIONS:
            yield from _leaves(f"{path}.", value, source)
        else:
            yield path, Given(value, source)


def _layer(leaves: Iterator[tuple[str, Given]], note: Note, *, is_variable: bool) -> Layer:
    layer: Layer = {}
    for path, given in leaves:
        if path in KEYS or f"{path}." in SECTIONS:
            layer[path] = given
        else:
            source = f"the variable {given.source}" if is_variable else given.source
            note(unknown(path, source, is_variable=is_variable))
    for key in _secrets():
        if key.path in layer and f"{key.path}_file" in layer:
            note(Problem(key.path, f"is given twice, also as {key.path}_file; keep one of them"))
    return layer


def _over(high: Layer, low: Layer) -> Layer:
    """Lay one layer over another. A secret replaces the file of one, and the other way round."""
    twins = {f"{key.path}_file" for key in _secrets() if key.path in high}
    twins |= {key.path for key in _secrets() if f"{key.path}_file" in high}
    return {path: given for path, given in low.items() if path not in twins} | high


def _value_of(path: str, name: str, text: str, note: Note) -> Any:
    """Read the text of a variable as the kind of value that its key has; None after a problem.

    What is no number or truth stays text: the models say what is wrong with it.
    """
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        note(Problem(path, f"is not UTF-8 (set by {name}); write it in UTF-8"))
        return None
    key = KEYS.get(path)
    kind = key.schema.get("type") if key else "object" if f"{path}." in SECTIONS else None
    match kind:
        case "array" | "object":
            return _from_json(path, kind, name, text, note)
        case "boolean":
            return _TRUTH.get(text.lower(), text)
        case "integer" | "number" | None:
            return _number_or_text(text)
        case _:
            return text


def _number_or_text(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _from_json(path: str, kind: str, name: str, text: str, note: Note) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        right = json.dumps([part.strip() for part in text.split(",")]) if kind == "array" else '{"name": "value"}'
        what = "list" if kind == "array" else "table"
        given = shown(text) if kind == "array" else "the value"  # a table of headers may hold a secret
        note(Problem(path, f"{given} is not a {what} in JSON (set by {name}); write {name}='{right}'"))
        return None


# ---- secrets and other files ----


def _secrets() -> Iterator[Key]:
    return (key for key in KEYS.values() if key.is_secret)


def _with_secrets(layer: Layer, note: Note) -> Layer:
    """Put what the `_file` twins name beside them."""
    found: Layer = {}
    for key in _secrets():
        given = layer.get(f"{key.path}_file")
        if given is None or key.path in layer or not isinstance(given.value, str) or not given.value:
            continue
        secret = _secret_in(Path(given.value), key, note)
        if secret is not None:
            found[key.path] = Given(secret, f"the file {given.value} ({given.source})")
    return layer | found


def _secret_in(file: Path, key: Key, note: Note) -> str | None:
    """Read a secret: the text of the file without the line's end."""
    path = f"{key.path}_file"
    try:
        with file.open("rb") as stream:  # a device or a pipe may be endless
            secret = stream.read(SECRET_BYTES_MAX + 1).decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        note(Problem(path, f"{file} cannot be read: {error.strerror}; name a file that this user can read"))
    except UnicodeDecodeError:
        note(Problem(path, f"{file} is not UTF-8 text; write the bare secret into it"))
    else:
        if secret and secret.isprintable() and len(secret) <= SECRET_BYTES_MAX:
            return secret
        fault = "holds more than one line of text" if secret else "is empty"
        note(Problem(path, f"{file} {fault}; write the bare secret into it"))
    return None


def _unreadable_certificates(layer: Layer) -> Iterator[Problem]:
    for path, given in layer.items():
        if ".tls." not in path or KEYS[path].schema.get("format") != "path" or not isinstance(given.value, str):
            continue
        try:
            Path(given.value or os.devnull).open("rb").close()
        except OSError as error:
            text = f"{given.value} cannot be read: {error.strerror}; name a file in PEM format (set by {given.source})"
            yield Problem(path, text)


# ---- validation ----


def _validated(layer: Layer, note: Note) -> Settings | None:
    """Validate; after a problem with single values once more without those, for what clashes between the others."""
    try:
        return Settings.model_validate(_tables(layer))
    except ValidationError as error:
        problems = problems_in(error, {path: given.source for path, given in layer.items()})
    reported = {problem.key.partition("[")[0] for problem in problems}
    rest = {path: given for path, given in layer.items() if path not in reported}
    rest.setdefault("upload.url", Given(_ANY_URL, ""))
    try:
        Settings.model_validate(_tables(rest))
    except ValidationError as error:
        problems += [problem for problem in problems_in(error, {}) if problem.key.partition("[")[0] not in reported]
    for problem in problems:
        note(problem)
    return None


def _tables(layer: Layer) -> dict[str, Any]:
    """Build the tables that the models expect, every section there even if it is empty."""
    tables: dict[str, Any] = {}
    for prefix in SECTIONS:
        _table_at(tables, prefix)
    for path, given in layer.items():
        prefix, _, name = path.rpartition(".")
        _table_at(tables, prefix)[name] = given.value
    return tables


def _table_at(tables: dict[str, Any], prefix: str) -> dict[str, Any]:
    for name in filter(None, prefix.split(".")):
        tables = tables.setdefault(name, {})
    return tables
