"""From what went wrong to a sentence for the person who has to put it right.

Each sentence has the path of the key, what is wrong and what would be right; the last part is derived from the
models, so it is never out of date. Values of secrets are never repeated (I8). Pure.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from bridge.config.rules import Problem
from bridge.config.settings import Section, Settings

_SHOWN_CHARACTERS = 60
_UNITS = {"seconds": "seconds", "ms": "milliseconds", "bytes": "bytes", "messages": "messages"}


class Key(NamedTuple):
    """One setting: its path, the model that has it, and its field there."""

    path: str
    section: type[Section]
    field: FieldInfo

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def is_secret(self) -> bool:
        return SecretStr in getattr(self.field.annotation, "__args__", ())

    @property
    def is_sensitive(self) -> bool:
        """True where a value may carry a secret without being one."""
        return self.is_secret or not self.field.repr

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the value, without the null of what is optional."""
        schema = _schema(self.section)["properties"][self.name]
        variants = [variant for variant in schema.get("anyOf", ()) if variant != {"type": "null"}]
        return {**schema, **variants[0]} if variants else schema


def _sections(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _sections(field.annotation, f"{prefix}{name}.")


def _keys() -> Iterator[Key]:
    for prefix, model in _sections(Settings):
        for name, field in model.model_fields.items():
            if f"{prefix}{name}." not in SECTIONS:
                yield Key(f"{prefix}{name}", model, field)


SECTIONS: Mapping[str, type[Section]] = dict(_sections(Settings))  # by prefix: "", "mqtt.", "mqtt.tls.", ...
KEYS: Mapping[str, Key] = {key.path: key for key in _keys()}


@functools.cache
def _schema(section: type[Section]) -> dict[str, Any]:
    return section.model_json_schema(mode="serialization")  # the value as it is in the end, not all ways to write it


def nearest(path: str) -> str | None:
    """Return the known path that was probably meant."""
    known = [*KEYS, *(prefix.removesuffix(".") for prefix in SECTIONS if prefix)]
    leaf = path.rpartition(".")[2]
    by_name = {key.name: key.path for key in reversed([*KEYS.values()])}
    near = [by_name[leaf]] if leaf in by_name else difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    near += [by_name[name] for name in difflib.get_close_matches(leaf, by_name, n=1, cutoff=0.75)]
    return next(iter(near), None)


def variable_of(path: str) -> str:
    """Return the name of the environment variable that sets the key."""
    return "BRIDGE_" + path.upper().replace(".", "__")


def expected(key: Key) -> str:
    """Say what would be right for a key: a kind of value, its bounds, its unit."""
    schema = key.schema
    if "enum" in schema:
        return "one of " + ", ".join(dict.fromkeys(map(str, schema["enum"])))
    match schema.get("type"):
        case "integer" | "number" as kind:
            return _number(kind, schema, key.name)
        case "boolean":
            return "true or false"
        case "array":
            return f"a list of texts, as in {json.dumps(schema['default'])}"
        case "object":
            return 'a table of texts, as in {"X-Site": "north"}'
        case _:
            return "a text that is not empty"


def _number(kind: str, schema: Mapping[str, Any], name: str) -> str:
    unit = next((f" of {unit}" for ending, unit in _UNITS.items() if name.endswith(f"_{ending}")), "")
    what = f"a {'whole ' if kind == 'integer' else ''}number{unit}"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    above = ", more than 0" if "exclusiveMinimum" in schema else f", {low} or more"
    span = f" from {low} to {schema['maximum']:.15g}" if "minimum" in schema and "maximum" in schema else above
    return what + span + (', or a text such as "64 MiB"' if name.endswith("_bytes") else "")


def shown(value: object) -> str:
    """Write a value the way it would stand in the file, cut to a readable length."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def unknown(path: str, source: str, *, is_variable: bool) -> Problem:
    """Tell of a key that does not exist, with the nearest that does."""
    near = nearest(path)
    name = variable_of(near) if near and is_variable else near
    advice = f"did you mean {name}?" if name else "`edge-bridge config schema` lists all"
    return Problem(path, f"there is no such setting ({source}); {advice}")


def problems_in(error: ValidationError, sources: Mapping[str, str]) -> list[Problem]:
    """Turn everything that pydantic found into problems for people."""
    return [
        problem
        for details in error.errors(include_url=False)
        for problem in _problems(details["type"], details["loc"], details, sources)
    ]


def _problems(
    kind: str, location: tuple[int | str, ...], details: Mapping[str, Any], sources: Mapping[str, str]
) -> Iterator[Problem]:
    if kind == "disagreement":
        yield from details["ctx"]["problems"]
        return
    path, rest = _split(location)
    key = KEYS.get(path)
    if key is None:
        yield Problem(path, f"must be a table, [{path}], not {shown(details['input'])}")
    elif kind == "missing":
        yield Problem(path, _missing(key))
    else:
        source = f" (set by {sources[path]})" if path in sources else ""
        yield Problem(path + rest, _wrong(kind, key, details) + source)


def _split(location: tuple[int | str, ...]) -> tuple[str, str]:
    """Divide a place within the tables into the key and what is inside its value: `mqtt.topics` and `[1]`."""
    for depth in range(len(location), 0, -1):
        if (path := ".".join(map(str, location[:depth]))) in KEYS:
            return path, "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[depth:])
    return ".".join(map(str, location)), ""


def _missing(key: Key) -> str:
    example = key.schema["examples"][0]
    table, _, name = key.path.rpartition(".")
    return (
        f'is required and has no default; set {name} = "{example}" under [{table}], '
        f"or the variable {variable_of(key.path)}"
    )


def _wrong(kind: str, key: Key, details: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return str(details["msg"]).removeprefix("Value error, ")
    value = "the value" if key.is_sensitive else shown(details["input"])
    return f"{value} will not do; use {expected(key)}"
