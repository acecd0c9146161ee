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
import importlib
import importlib.abc
import importlib.machinery
import os
import pickle
import random
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple

import hypothesis  # noqa: F401 - loaded once for all
import pytest

ROOT = Path(__file__).resolve().parents[1]
LOOK_SECONDS_MAX = 600
QUICK_SECONDS = 1
FIRST = 10  # tests that are tried before the others: nearly all mistakes are seen by them
LARGE = 1000
_OURS = {"bridge", "tests", "__main__"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # hypothesis is loaded already
_DISK_QUEUE = tuple(  # all that run the disk queue within the process of the test; which of them matter is seen
    f"{tier}/test_{name}.py"
    for tier, names in (
        ("unit", ("rows", "disk_faults", "leaps", "recent")),
        ("integration", ("mark", "pages", "queue_file", "verify", "reserve", "disk_queue", "ledger", "selection")),
        ("integration", ("queue_connection", "queue_verbs", "flash_wear", "salvager", "salvage", "rescue")),
        ("integration", ("intake_store", "clock_set_late", "loss_teller", "disk_thread", "altered_tables")),
        ("integration", ("cli_queue_repair", "promise_39_queue_model")),
    )
    for name in names
)
_DISK_QUEUE_MODULES = (
    *("receipts", "serializer", "mark", "lock", "faults", "reserve", "ledger", "rows", "recent", "leaps", "wear"),
    *("aside", "file", "selection", "commands", "repair", "salvage", "pages", "connection", "queue"),
)
TESTS = {
    "verdict": ("unit/test_verdict.py",),
    "backoff": ("unit/test_backoff.py", "unit/test_forwarder.py"),
    "batch": ("unit/test_batch.py", "unit/test_agenda.py"),
    **{f"disk_queue/{name}": _DISK_QUEUE for name in _DISK_QUEUE_MODULES},
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
            yield ast.copy_location(ast.Return(ast.copy_location(ast.Constant(None), node)), node)
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


class Test(NamedTuple):
    """What a test runs, and what it costs. Fixtures that it shares with others count as its own."""

    name: str
    lines: frozenset[tuple[str, int]]
    seconds: float


class Look:
    """Pytest plugin: which lines of some files each test runs."""

    def __init__(self, files: Collection[str]) -> None:
        self._files = files
        self._lines: list[set[tuple[str, int]]] = []  # of the test; on top of it of fixtures that are being made
        self._fixtures: dict[str, set[tuple[str, int]]] = {}
        self.tests: list[Test] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        begun, self._lines = time.monotonic(), [set()]
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            shared = (self._fixtures.get(name, set()) for name in getattr(item, "fixturenames", ()))
            lines = frozenset(self._lines[0].union(*shared))
            self.tests.append(Test(item.nodeid, lines, time.monotonic() - begun))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        self._lines.append(set())
        try:
            return (yield)
        finally:
            lines = self._lines.pop()
            self._lines[-1] |= lines
            self._fixtures.setdefault(fixturedef.argname, set()).update(lines)

    def _enter(self, frame: FrameType, _event: str, _what: Any) -> Any:
        return self._step if frame.f_code.co_filename in self._files else None

    def _step(self, frame: FrameType, _event: str, _what: Any) -> Any:
        self._lines[-1].add((frame.f_code.co_filename, frame.f_lineno))
        return self._step


class Choice:
    """Pytest plugin: runs these tests alone, file by file, and remembers the one that failed."""

    def __init__(self, names: Sequence[str]) -> None:
        files = list(dict.fromkeys(map(_file_of, names)))
        self._ranks = {name: (files.index(_file_of(name)), rank) for rank, name in enumerate(names)}
        self.failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self._ranks), key=lambda i: self._ranks[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


def _file_of(name: str) -> str:
    return name.partition("::")[0]


class Outcome(NamedTuple):
    """How a run of tests ended; None for `told`: it hung, or died."""

    passed: bool
    told: Any = None


def in_child(run: Callable[[], tuple[int, Any]], seconds_max: float) -> Outcome:
    """Run tests in a child that alone makes a mistake; one that hangs has seen it."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        status, told = run()
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(told, pipe)
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        # What a test leaves behind may hold the pipe open: the child's end counts, or its word.
        is_told = bool(select.select([pipe], [], [], seconds_max)[0])
        told = None
        with suppress(EOFError, pickle.UnpicklingError):
            told = pickle.load(pipe) if is_told else None  # noqa: S301 - our own child's
    with suppress(ProcessLookupError):
        if not is_told:
            os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Outcome(status == 0, told)


@cache
def look(files: tuple[str, ...]) -> tuple[Test, ...]:
    """Run these tests without any mistake, and see which one runs which lines; () if one of them fails."""
    plugin = Look({str(file_of(module)) for module, its_tests in TESTS.items() if its_tests == files})

    def run() -> tuple[int, Any]:
        status = run_tests(files, plugin, 120)
        return status, (plugin.tests, [name for name in sys.modules if name.partition(".")[0] not in _OURS])

    outcome = in_child(run, LOOK_SECONDS_MAX)
    if not outcome.passed:
        return ()
    tests, loaded = outcome.told
    for name in loaded:  # once for all children
        with suppress(Exception):
            importlib.import_module(name)
    return tuple(tests)


def run_tests(files: Sequence[str], plugin: object, seconds_max: float) -> int:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", *_QUIET]
    paths = [f"{ROOT}/tests/{file}" for file in files]
    return pytest.main([*options, f"--timeout={seconds_max}", f"--rootdir={ROOT}", *paths], plugins=[plugin])


class Trial:
    """One module and the tests that are about it."""

    def __init__(self, module: str, tests: Sequence[Test]) -> None:
        self.module = module
        self._file = str(file_of(module))
        self._tests = tests
        self._seen: Counter[str] = Counter()  # how many mistakes a test saw

    def survives(self, tree: ast.Module, mistake: Mistake) -> bool:
        """Try a mistake on the tests that run its lines: those that promise most first, then the others."""
        lines = reach(tree, mistake)
        wanted = None if lines is None else {(self._file, line) for line in lines}
        tests = [test for test in self._tests if wanted is None or not wanted.isdisjoint(test.lines)]
        tests.sort(key=lambda test: (test.seconds + 0.01) / (1 + self._seen[test.name]))
        mistake.make()
        return all(self._passes(tree, some) for some in (tests[:FIRST], tests[FIRST:]) if some)

    def _passes(self, tree: ast.Module, tests: Sequence[Test]) -> bool:
        plugin = Choice([test.name for test in tests])
        files = dict.fromkeys(_file_of(test.name).removeprefix("tests/") for test in tests)
        seconds_max = 5 + 5 * max(test.seconds for test in tests)

        code = compile(tree, self._file, "exec")  # here, for what is no Python must not count as seen

        def run() -> tuple[int, Any]:
            name = f"bridge.{self.module.replace('/', '.')}"
            sys.meta_path.insert(0, MistakenModule(name, Path(self._file), code))
            return run_tests(tuple(files), plugin, seconds_max), plugin.failed

        outcome = in_child(run, seconds_max + 3 * sum(test.seconds for test in tests))
        if outcome.told:
            self._seen[outcome.told] += 1
        return outcome.passed


def file_of(module: str) -> Path:
    return ROOT / "bridge" / f"{module}.py"


def tree_of(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text())


def reach(tree: ast.Module, mistake: Mistake) -> set[int] | None:
    """Return the lines of which a test must run one to see a mistake; None: nobody can say."""
    within = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and _holds(node, mistake.was)]
    innermost = max(within, key=lambda node: (node.lineno, -(node.end_lineno or 0)))
    if any(isinstance(node, _FUNCTIONS) for node in within):
        return _lines(innermost)
    match innermost:
        case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)) if name.startswith("_"):
            return _lines_that_use(tree, name, but=innermost)
    return None


def _holds(node: ast.stmt, part: ast.AST) -> bool:
    return any(each is part for each in ast.walk(node))


def _lines(node: ast.stmt) -> set[int]:
    """Return the lines of a statement; of a compound one those of its head, of a function those of its body."""
    body: list[ast.stmt] = getattr(node, "body", [])
    if isinstance(node, _FUNCTIONS):
        return set(range(body[0].lineno, (node.end_lineno or 0) + 1))
    return set(range(node.lineno, max(node.lineno + 1, body[0].lineno) if body else (node.end_lineno or 0) + 1))


def _lines_that_use(tree: ast.Module, name: str, but: ast.stmt) -> set[int] | None:
    """Return the lines within functions where a name stands; None if it stands elsewhere, too."""
    functions = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)]
    inside = {id(node) for function in functions for part in function.body for node in ast.walk(part)}
    its_own = {id(node) for node in ast.walk(but)}
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    if any(id(node) not in inside | its_own for node in used):
        return None
    return {node.lineno for node in used if id(node) in inside}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="as in TESTS, or a folder; all of them if none is named")
    parser.add_argument("--sample", type=int, help="so many of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"no test that takes {QUICK_SECONDS} s or more")
    parser.add_argument("--only", type=_numbers, metavar="NUMBERS", help="these alone: 3,10-19")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="print this one and try nothing")
    args = parser.parse_args()
    os.environ["CI"] = "true"  # hypothesis: always the same examples
    os.chdir(ROOT)
    wanted = [name for name in TESTS if not args.modules or {name, name.partition("/")[0]} & set(args.modules)]
    if args.show is not None:
        print(_mistaken_text(wanted[0], args.show))
        return 0
    return min(100, sum(check(name, args.sample, args.seed, args.only, quick=args.quick) for name in wanted))


def _numbers(text: str) -> set[int]:
    spans = [part.partition("-") for part in text.split(",")]
    return {number for first, _, last in spans for number in range(int(first), int(last or first) + 1)}


def _mistaken_text(module: str, number: int) -> str:
    tree = tree_of(module)
    mistakes(tree)[number].make()
    return ast.unparse(tree)


def check(module: str, sample: int | None, seed: int, only: set[int] | None, *, quick: bool) -> int:
    """Try the mistakes of one module; print and count the survivors."""
    tests = look(TESTS[module])
    if not tests:
        print(f"{module}: the tests fail without any mistake")
        return 1
    if quick:
        tests = tuple(test for test in tests if test.seconds < QUICK_SECONDS)
    trial = Trial(module, tests)
    count = len(mistakes(tree_of(module)))
    chosen = [number for number in range(count) if only is None or number in only]
    if sample is not None and sample < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, sample))
    left = 0
    for number in chosen:
        tree = tree_of(module)
        mistake = mistakes(tree)[number]
        if trial.survives(tree, mistake):
            left += 1
            was, now = ast.unparse(mistake.was), ast.unparse(mistake.now)
            print(f"  {module}.py:{mistake.place[0]} #{number}  {was}  →  {now}", flush=True)
    print(f"{module}: {count} mistakes, {len(chosen)} tried, {left} not seen", flush=True)
    return left


if __name__ == "__main__":
    sys.exit(main())
