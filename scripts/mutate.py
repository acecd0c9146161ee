"""Mutation testing of the parts that must not be wrong: small mistakes are made one by one, and a test must see each.

    python scripts/mutate.py verdict                 # all mistakes of bridge/verdict.py
    python scripts/mutate.py disk_queue --sample 50  # fifty of each module, chosen by --seed
    python scripts/mutate.py verdict --show 17       # what mistake number 17 is

Each mistake lives in a process of its own, forked from one that has pytest loaded; the module is compiled from its
changed tree, no file is written. A survivor is printed as it is found; the exit status is their number (at most 100).
docs/MUTATIONS.md explains those that are left.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

import hypothesis  # noqa: F401 - loaded once for all
import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS_MAX = 90
LARGE = 1000
_QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # hypothesis is loaded already
_QUEUE = ("integration/test_disk_queue.py", "integration/test_ledger.py", "integration/test_selection.py")
_DAMAGE = ("integration/test_salvage.py", "integration/test_rescue.py")
TESTS = {  # the quick tests that are about a module, the quickest first
    "verdict": ("unit/test_verdict.py",),
    "backoff": ("unit/test_backoff.py", "unit/test_forwarder.py"),
    "batch": ("unit/test_batch.py", "unit/test_agenda.py"),
    "disk_queue/aside": ("integration/test_queue_file.py", *_DAMAGE),
    **dict.fromkeys(("disk_queue/pages", "disk_queue/salvage", "disk_queue/repair"), _DAMAGE),
    "disk_queue/mark": ("integration/test_mark.py", *_DAMAGE),
    "disk_queue/faults": ("unit/test_disk_faults.py", *_QUEUE),
    "disk_queue/file": ("integration/test_queue_file.py", *_QUEUE, *_DAMAGE),
    "disk_queue/lock": ("integration/test_disk_queue.py",),
    "disk_queue/serializer": _QUEUE,
    "disk_queue/rows": ("unit/test_rows.py", *_QUEUE, "integration/test_queue_model.py"),
    "disk_queue/receipts": ("integration/test_intake_store.py", *_QUEUE),
    "disk_queue/reserve": ("integration/test_reserve.py",),
    "disk_queue/ledger": ("integration/test_ledger.py", "integration/test_loss_teller.py"),
    "disk_queue/selection": ("integration/test_selection.py", "integration/test_queue_commands.py"),
    "disk_queue/commands": ("integration/test_selection.py", "integration/test_queue_commands.py"),
    "disk_queue/connection": (
        "integration/test_queue_file.py",
        *_QUEUE,
        "integration/test_disk_thread.py",
        *_DAMAGE,
        "integration/test_queue_model.py",
    ),
    "disk_queue/queue": (
        *_QUEUE,
        *("integration/test_intake_store.py", "integration/test_clock_set_late.py", "integration/test_queue_model.py"),
        *_DAMAGE,
    ),
}
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


class Mistake(NamedTuple):
    """One node of a tree, its place there, and what stands there by mistake."""

    parent: ast.AST
    field: str
    index: int | None
    was: ast.AST
    now: ast.AST

    @property
    def place(self) -> tuple[int, int]:
        return self.was.lineno, self.was.col_offset  # type: ignore[attr-defined]

    def make(self) -> None:
        """Put it into the tree, for good."""
        if self.index is None:
            setattr(self.parent, self.field, self.now)
        else:
            getattr(self.parent, self.field)[self.index] = self.now


def mistakes(tree: ast.Module) -> list[Mistake]:
    """Every mistake that can be made in a module, in the order of its lines."""
    skipped = {id(part) for node in ast.walk(tree) for part in _not_code(node)}
    found = [
        Mistake(parent, field, index, node, other)
        for parent, field, index, node in _places(tree, skipped)
        for other in _mistaken(node)
    ]
    return sorted(found, key=lambda each: each.place)


def _not_code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what does nothing at run time: annotations, docstrings, decorators of values, checks for mypy."""
    for name in ("annotation", "returns"):
        if part := getattr(node, name, None):
            yield from ast.walk(part)
    if isinstance(node, ast.ClassDef):
        for decorator in node.decorator_list:
            yield from ast.walk(decorator)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield from ast.walk(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        yield from ast.walk(node)
    if isinstance(node, ast.match_case) and "assert_never" in ast.unparse(node):
        yield from ast.walk(node)


def _places(tree: ast.AST, skipped: set[int]) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, (ast.expr, ast.stmt)) and id(node) not in skipped:
                    yield parent, field, index, node


def _mistaken(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left, [operator], rest) if type(operator) in _COMPARISONS:
            yield ast.copy_location(ast.Compare(left, [_COMPARISONS[type(operator)]()], rest), node)
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS and not _is_of_no_number(left, right):
            yield ast.copy_location(ast.BinOp(left, _OPERATORS[type(operator)](), right), node)
        case ast.BoolOp(operator, values):
            other = ast.And() if isinstance(operator, ast.Or) else ast.Or()
            yield ast.copy_location(ast.BoolOp(other, values), node)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.copy_location(ast.IfExp(test, orelse, body), node)
        case ast.Constant(bool(value)):
            yield ast.copy_location(ast.Constant(not value), node)
        case ast.Constant(int(value)) | ast.Constant(float(value)):
            # A large bound that is one off is no mistake that anybody would notice.
            yield ast.copy_location(ast.Constant(value + 1 if value < LARGE else 2 * value), node)
        case ast.Return(value) if value is not None and ast.unparse(value) != "None":
            yield ast.copy_location(ast.Return(ast.Constant(None)), node)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise():
            yield ast.copy_location(ast.Pass(), node)


def _is_of_no_number(*parts: ast.AST) -> bool:
    """Texts, and the flags of `os.open`."""
    is_text = any(isinstance(part, (ast.JoinedStr, ast.Constant)) and "'" in ast.unparse(part) for part in parts)
    return is_text or any(ast.unparse(part).startswith("os.O_") for part in parts)


class MistakenModule(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, with the mistake in it."""

    def __init__(self, name: str, file: Path, code: CodeType) -> None:
        self._name, self._file, self._code = name, file, code

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=str(self._file))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self._file)
        exec(self._code, module.__dict__)  # noqa: S102 - our own module


def survives(module: str, tree: ast.Module, mistake: Mistake | None, tests: Sequence[str]) -> bool:
    """Run the tests on a mistake, in a child that alone makes it; a child that hangs has seen it."""
    file = ROOT / "bridge" / f"{module}.py"
    if not (child := os.fork()):
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        if mistake:
            mistake.make()
        name = f"bridge.{module.replace('/', '.')}"
        sys.meta_path.insert(0, MistakenModule(name, file, compile(tree, str(file), "exec")))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "--timeout=30", *_QUIET]
        os._exit(pytest.main([*options, *(f"{ROOT}/tests/{test}" for test in tests)]))
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="as in TESTS, or a folder; all of them if none is named")
    parser.add_argument("--sample", type=int, help="so many of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, metavar="NUMBER", help="print this one and try nothing")
    args = parser.parse_args()
    os.environ["CI"] = "true"  # hypothesis: always the same examples
    os.chdir(ROOT)
    wanted = [name for name in TESTS if not args.modules or {name, name.partition("/")[0]} & set(args.modules)]
    return min(100, sum(check(name, args.sample, args.seed, args.show) for name in wanted))


def check(module: str, sample: int | None, seed: int, show: int | None) -> int:
    """Try the mistakes of one module; print and count the survivors."""
    tree = ast.parse((ROOT / "bridge" / f"{module}.py").read_text())
    numbered = list(enumerate(mistakes(tree)))
    if show is not None:
        numbered[show][1].make()
        print(ast.unparse(tree))
        return 0
    if not survives(module, tree, None, TESTS[module]):
        print(f"{module}: the tests fail without any mistake")
        return 1
    chosen = numbered if sample is None or sample >= len(numbered) else random.Random(seed).sample(numbered, sample)
    left = 0
    for number, mistake in sorted(chosen, key=lambda each: each[0]):
        if survives(module, tree, mistake, TESTS[module]):
            left += 1
            was, now = ast.unparse(mistake.was), ast.unparse(mistake.now)
            print(f"  {module}.py:{mistake.place[0]} #{number}  {was}  →  {now}", flush=True)
    print(f"{module}: {len(numbered)} mistakes, {len(chosen)} tried, {left} not seen", flush=True)
    return left


if __name__ == "__main__":
    sys.exit(main())
