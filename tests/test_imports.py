"""Imports point one way only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import background

PACKAGE = Path(background.__file__).parent

# Each module may import those before it.
LAYERS = [
    "_errors",
    "_states",
    "_clock",
    "_stack",
    "_checks",
    "_log",
    "_insist",
    "_uninterrupted",
    "_record",
    "_events",
    "_observe",
    "_backend",
    "_asyncio",
    "_trio",
    "_portal",
    "_services",
    "_timer",
    "_complaints",
    "_outbox",
    "_dispatch",
    "_listeners",
    "_retry",
    "_schedule",
    "_functions",
    "_task",
    "_settings",
    "_handle",
    "_outcome",
    "_telling",
    "_runner",
    "_outstanding",
    "_admission",
    "_report",
    "_engine",
    "_shutdown",
    "_signals",
    "_lifecycle",
    "_manager",
    "__init__",
    "testing",
]

# The same for `background.queues`, whose modules may also import all of the above.
QUEUES = [
    "_states",
    "_errors",
    "_names",
    "_payload",
    "_annotations",
    "_models",
    "_same",
    "_msgspec",
    "_binding",
    "_arguments",
    "abc",
    "_memory_job",
    "_memory_changes",
    "_memory_results",
    "memory",
    "_sqlite_schema",
    "_sqlite_statements",
    "_sqlite_needs",
    "_sqlite_jobs",
    "_sqlite_thread",
    "_sqlite_file",
    "_sqlite_results",
    "sqlite",
    "_redis_lua",
    "_redis_records",
    "_redis_call",
    "_redis_life",
    "_redis_looks",
    "_redis_format",
    "_redis_link",
    "_redis_listener",
    "_redis_session",
    "redis",
    "_nats_job",
    "_nats_format",
    "_nats_layout",
    "_nats_answers",
    "_nats_connection",
    "_nats_link",
    "_nats_streams",
    "_nats_api",
    "_nats_clock",
    "_nats_timers",
    "_nats_ready",
    "_nats_records",
    "_nats_jobs",
    "_nats_leases",
    "_nats_claims",
    "nats",
    "_urls",
    "_selection",
    "_options",
    "_info",
    "_body",
    "_failure",
    "_tracing",
    "_client",
    "_job_handle",
    "_messages",
    "_composites",
    "_announcing",
    "_sender",
    "_handler",
    "_outage",
    "_plan",
    "_settling",
    "_job_run",
    "_context",
    "_leases",
    "_worker",
    "_workforce",
    "_schedules",
    "_job_queue",
    "__init__",
]

# Imported inside a function, once a manager is entered that needs it.
LAZY = {("_backend", "_asyncio"), ("_backend", "_trio")}

THE_DESIGN = [
    "_errors",
    "_events",
    "_observe",
    "_retry",
    "_schedule",
    "_task",
    "_runner",
    "_manager",
]

# What an observer may know of the package.
OF_OBSERVERS = {"_events", "_states", "_observe"}


class Imports(ast.NodeVisitor):
    """Collects a module's imports: the module's name, and whether a function does it."""

    def __init__(self, package: list[str]) -> None:
        self.found: set[tuple[str, bool]] = set()
        self._package = package
        self._depth = 0

    def visit_If(self, node: ast.If) -> None:
        for child in node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else [node]:
            self.generic_visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)  # type: ignore[arg-type]

    def visit_Import(self, node: ast.Import) -> None:
        self._add(*(alias.name for alias in node.names))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._package[: len(self._package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        if module == ".".join(base):  # `from . import _checks` means modules
            self._add(*(f"{module}.{alias.name}" for alias in node.names))
        else:
            self._add(module)

    def _add(self, *modules: str) -> None:
        self.found |= {(module, self._depth > 0) for module in modules}


def imports_of(path: Path) -> set[tuple[str, bool]]:
    relative = path.relative_to(PACKAGE)
    visitor = Imports(["background", *relative.parts[:-1]])
    visitor.visit(ast.parse(path.read_text("utf-8")))
    return visitor.found


def internal(path: Path) -> Iterator[tuple[str, bool]]:
    for module, lazy in imports_of(path):
        if module.split(".")[0] == "background":
            yield module.removeprefix("background").lstrip(".").split(".")[0], lazy


MODULES = sorted(PACKAGE.glob("*.py"))
OF_QUEUES = sorted((PACKAGE / "queues").glob("*.py"))
OBSERVERS = sorted((PACKAGE / "observers").glob("*.py"))


def test_every_module_has_its_place() -> None:
    assert sorted(LAYERS) == sorted(path.stem for path in MODULES)
    assert sorted(QUEUES) == sorted(path.stem for path in OF_QUEUES)
    assert OBSERVERS


def test_the_order_is_that_of_the_design() -> None:
    places = [LAYERS.index(name) for name in THE_DESIGN]
    assert places == sorted(places)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_import_only_those_before_them(path: Path) -> None:
    before = LAYERS[: LAYERS.index(path.stem)]
    wrong = {
        (path.stem, name)
        for name, lazy in internal(path)
        if name not in before and not (lazy and (path.stem, name) in LAZY)
    }
    assert wrong == set()


@pytest.mark.parametrize("path", OF_QUEUES, ids=lambda path: path.stem)
def test_modules_of_queues_import_only_those_before_them(path: Path) -> None:
    allowed = {f"background.{name}" for name in LAYERS if name not in ("__init__", "testing")}
    before = QUEUES[: QUEUES.index(path.stem)]
    allowed |= {f"background.queues.{name}" for name in before}
    found = {module for module, _ in imports_of(path) if module.split(".")[0] == "background"}
    assert found - allowed == set()


def test_exceptions_are_needed() -> None:
    lazy = {
        (path.stem, name)
        for path in MODULES
        for name, inside in internal(path)
        if inside and name in LAYERS
    }
    assert lazy == LAZY


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_imports_observers_or_testing(path: Path) -> None:
    assert {name for name, _ in internal(path)} & {"observers", "testing"} == set()


@pytest.mark.parametrize("path", OBSERVERS, ids=lambda path: path.stem)
def test_observers_import_only_events_and_their_base(path: Path) -> None:
    """By relative imports, so that no copy of them can be loaded under another name."""
    of_the_package = {name for name, _ in internal(path)} - {"observers"}
    assert of_the_package <= OF_OBSERVERS
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    absolute = [node.module for node in tree if isinstance(node, ast.ImportFrom) and not node.level]
    assert not [module for module in absolute if module and module.startswith("background")]


@pytest.mark.parametrize(
    ("module", "users"),
    [
        ("asyncio", {("_asyncio", False), ("testing", False)}),
        ("trio", {("_trio", False), ("testing", True)}),
    ],
)
def test_event_loops_are_imported_by_their_backends(
    module: str, users: set[tuple[str, bool]]
) -> None:
    """And by the help for testing, which gets along without trio."""
    found = {
        (path.stem, lazy)
        for path in MODULES
        for name, lazy in imports_of(path)
        if name.split(".")[0] == module
    }
    assert found == users
