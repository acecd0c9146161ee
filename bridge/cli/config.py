"""`edge-bridge config schema|show`: what may be set, and what is set by whom. No secret leaves here (I8)."""

from __future__ import annotations

import argparse
import json
from urllib.parse import urlsplit

from pydantic import SecretStr

from bridge.cli.output import print_json, print_table
from bridge.config import KEYS, Loaded, Settings, load_from_environment

MASK = "********"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes beside `--config`."""
    parser.add_argument(
        "what", choices=("schema", "show"), help="schema: JSON Schema of the file; show: values and sources"
    )
    parser.add_argument("--json", action="store_true", help='show: print {"KEY": {"value": …, "source": …}}')


def execute(args: argparse.Namespace) -> int:
    """Print the schema, or each key with its value and where it came from."""
    if args.what == "schema":
        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()})
        return 0
    loaded = load_from_environment(args.config)
    values = {path: shown_value(loaded, path) for path in KEYS}
    if args.json:
        print_json({path: {"value": value, "source": loaded.sources[path]} for path, value in values.items()})
    else:
        print_table(
            ("KEY", "VALUE", "SOURCE"), [(path, _cell(value), loaded.sources[path]) for path, value in values.items()]
        )
    return 0


def shown_value(loaded: Loaded, path: str) -> object:
    """Return the value of a key as JSON can say it, with everything in it masked that may be a secret."""
    value: object = loaded.settings
    for name in path.split("."):
        value = getattr(value, name)
    match path, value:
        case _, SecretStr():
            return MASK
        case "upload.headers", dict():
            return dict.fromkeys(value, MASK)
        case "upload.proxy", str() if (parts := urlsplit(value)).password is not None:
            return value.replace(parts.netloc, f"{MASK}@{parts.netloc.rpartition('@')[2]}")
        case _, None | bool() | int() | float() | str():
            return value
        case _, tuple():
            return list(value)
        case _:
            return str(value)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
