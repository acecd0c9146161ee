"""docs/ARCHITECTURE.md, checked: who may import whom, one door per dependency, and what pure modules must not do.

A new module needs its place in `LAYERS`; everything else here should not have to change.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "bridge"

PURE = {
    "errors",
    "message",
    "events",
    "topics",
    "loss",
    "wire",
    "batch",
    "verdict",
    "backoff",
    "agenda",
    "status",
    "liveness",
}
EDGES = {"broker", "disk_queue", "uploader", "web", "receiver", "supervisor", "clock"}
LAYERS = (
    {"errors"},
    {"message", "events", "topics", "environment"},
    {"loss", "config", "wire", "batch", "verdict", "backoff", "agenda", "status", "log", "liveness"},
    EDGES,
    {
        "disk_thread",
        "admission",
        "intake",
        "forwarder",
        "loss_teller",
        "receipt_giver",
        "control",
        "importer",
        "rescue",
        "announcer",
    },
    {"service", "client", "monitor"},  # tops: the bridge's, the producer's, the observer's
    {"demo", "bench", "doctor"},
    {"cli"},
    {"__main__"},
)
DOORS = {
    "paho": {"broker", "bench"},  # the bench measures what users write with these two libraries
    "persistqueue": {"disk_queue", "bench"},
    "sqlite3": {"disk_queue", "receiver"},  # the receiver is a program of its own, with a store of its own
    "aiohttp": {"uploader", "web", "receiver"},
}
ENVIRONMENT = {
    "config",
    "environment",
}  # the second for the client library, which must not load the models of the first
IMPURE = {"asyncio", "os", "random", "secrets", "socket", "subprocess", "threading", "time"}
# The only places that may catch everything and not raise it again: the tops of tasks, threads and callbacks.
TOPS = {
    "broker.py",
    "cli/__init__.py",
    "disk_thread.py",
    "doctor/probes.py",
    "receiver/store.py",
    "service.py",
}

FILES = [
    pytest.param(path, id=path.relative_to(PACKAGE).as_posix())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.name != "__init__.py"
]
each_file = pytest.mark.parametrize("path", FILES)


def module_of(path: Path) -> str:
    """`broker.py` and `web/metrics.py` → broker and web: a folder counts as one module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(module: str) -> int:
    layers = [number for number, modules in enumerate(LAYERS) if module in modules]
    assert layers, f"bridge.{module} has no place in LAYERS"
    return layers[0]


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports_of(path: Path) -> set[str]:
    """Every imported name in full, inside functions and TYPE_CHECKING too: `from a import b` → a.b."""
    names = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def used_names(path: Path) -> set[str]:
    """`print` and `os.environ`, wherever they stand outside strings."""
    return {ast.unparse(node) for node in nodes_of(path) if isinstance(node, (ast.Name, ast.Attribute))}


@each_file
def test_imports_point_one_way_and_edges_do_not_know_each_other(path: Path) -> None:
    own = module_of(path)
    imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("bridge.")} - {own, "__version__"}
    assert {name for name in imported if layer_of(name) > layer_of(own)} == set()
    if own in EDGES:
        assert imported & EDGES == set()


@each_file
def test_every_dependency_has_one_door(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports_of(path)}
    assert {name for name in packages & DOORS.keys() if module_of(path) not in DOORS[name]} == set()


@each_file
def test_pure_modules_know_no_clock_chance_thread_await_or_environment(path: Path) -> None:
    if module_of(path) not in PURE:
        return
    assert {name.split(".")[0] for name in imports_of(path)} & IMPURE == set()
    assert [node for node in nodes_of(path) if isinstance(node, (ast.AsyncFunctionDef, ast.Await))] == []


@each_file
def test_only_the_command_line_prints_and_only_the_configuration_reads_the_environment(path: Path) -> None:
    names = used_names(path)
    assert "print" not in names or module_of(path) == "cli"
    assert not names & {"os.environ", "os.getenv"} or module_of(path) in ENVIRONMENT
    assert not imports_of(path) & {"os.environ", "os.getenv"}


@each_file
def test_everything_is_caught_only_at_the_top_of_a_task_or_raised_again(path: Path) -> None:
    swallowing = [
        node.lineno
        for node in nodes_of(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and ast.unparse(node.body[-1]) != "raise"
    ]
    assert swallowing == [] or path.relative_to(PACKAGE).as_posix() in TOPS


@each_file
def test_nothing_is_raised_inside_except_star(path: Path) -> None:
    """Python before 3.11.4 (Debian 12 has 3.11.2) wraps it in a group, and nobody outside knows it any more."""
    handlers = [handler for node in nodes_of(path) if isinstance(node, ast.TryStar) for handler in node.handlers]
    assert [node.lineno for handler in handlers for node in ast.walk(handler) if isinstance(node, ast.Raise)] == []


@each_file
def test_every_module_says_what_it_is(path: Path) -> None:
    module = nodes_of(path)[0]
    assert isinstance(module, ast.Module)
    assert ast.get_docstring(module)
