"""Names of queues, handlers and jobs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from support.processes.process import running

from background.queues import _names


@pytest.mark.parametrize("name", ["a", "mail", "Aa0_.:-", "x" * 128])
def test_valid_names(name: str) -> None:
    """A valid name is returned unchanged."""
    assert _names.check_name("queue", name) == name


@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "a/b", "é", "a\n", "*", None, 1, b"a"])
def test_invalid_names(name: object) -> None:
    """Values that are empty, too long, no text or with other characters are rejected."""
    with pytest.raises(ValueError, match=r"^queue must be 1 to 128 letters, digits and any of"):
        _names.check_name("queue", name)


async def handler() -> None: ...


class Mail:
    async def send(self) -> None: ...


def test_default_handler_name() -> None:
    """A handler is named after its function's module and qualified name."""

    def inner() -> None: ...

    assert _names.handler_name(handler) == f"{__name__}.handler"
    assert _names.handler_name(Mail.send) == f"{__name__}.Mail.send"
    expected = f"{__name__}.test_default_handler_name.inner"
    assert _names.handler_name(inner) == expected


SCRIPT = """
from background.queues._names import handler_name
async def remind(): ...
print(handler_name(remind))
"""


def test_handler_name_in_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler of a script has the same name as in a process that imports it."""
    (tmp_path / "mail.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for command in ([tmp_path / "mail.py"], ["-m", "mail"], ["-c", "import mail"]):
        with running(*command) as process:
            assert process.wait() == 0
            assert process.output == "mail.remind"


def test_handler_name_in_package(tmp_path: Path) -> None:
    """A handler of a package that is run as a folder is named after the package."""
    folder = tmp_path / "mail"
    folder.mkdir()
    (folder / "__main__.py").write_text(SCRIPT)
    with running(folder) as process:
        assert process.wait() == 0
        assert process.output == "mail.remind"


@pytest.mark.parametrize("tool", ["cProfile", "pdb"])
def test_handler_name_under_tool(tmp_path: Path, tool: str) -> None:
    """A profiler or a debugger does not change the names of a script's handlers."""
    (tmp_path / "mail.py").write_text(SCRIPT)
    options = ["-c", "continue", "-c", "quit"] if tool == "pdb" else []
    with running("-m", tool, *options, tmp_path / "mail.py") as process:
        assert process.wait() == 0
        assert "mail.remind" in process.output


SPAWN = """
import multiprocessing
from background.queues._names import handler_name
async def remind(): ...
def show(): print(handler_name(remind))
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=show)
    child.start()
    child.join()
"""


def test_handler_name_in_child(tmp_path: Path) -> None:
    """A child of multiprocessing, which imports the script again, has the same names."""
    (tmp_path / "mail.py").write_text(SPAWN)
    with running(tmp_path / "mail.py") as process:
        assert process.wait() == 0
        assert process.output == "mail.remind"


def test_handler_name_without_file() -> None:
    """A handler that no other process can import is named after the main module."""
    with running("-c", SCRIPT) as process:
        assert process.wait() == 0
        assert process.output == "__main__.remind"


def test_handler_name_required() -> None:
    """Partials and lambdas have no valid default name."""
    with pytest.raises(ValueError, match=r"^name must be given, because a partial has no name$"):
        _names.handler_name(partial(handler))
    with pytest.raises(ValueError, match=r"^name must be 1 to 128 letters"):
        _names.handler_name(lambda: None)


def test_new_ids() -> None:
    """New ids are unique and begin with their time in sortable form."""
    ids = [*_names.new_ids(100), _names.new_id(), *_names.new_ids(1), _names.new_id()]
    assert len({*ids}) == 103
    assert {len(id) for id in ids} == {30}
    assert [id[:14] for id in ids] == sorted(id[:14] for id in ids)
    assert _names.new_ids(0) == []
