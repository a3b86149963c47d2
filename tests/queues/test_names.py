"""Names of queues, handlers and jobs."""

from __future__ import annotations

from functools import partial

import pytest

from background.queues import _names


@pytest.mark.parametrize("name", ["a", "mail", "Aa0_.:-", "x" * 128])
def test_good_names(name: str) -> None:
    assert _names.check_name("queue", name) == name


@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "a/b", "é", "a\n", "*", None, 1, b"a"])
def test_bad_names_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"^queue must be 1 to 128 letters, digits and any of"):
        _names.check_name("queue", name)


async def handler() -> None: ...


class Mail:
    async def send(self) -> None: ...


def test_handlers_are_called_after_where_they_are() -> None:
    def inner() -> None: ...

    assert _names.handler_name(handler) == f"{__name__}.handler"
    assert _names.handler_name(Mail.send) == f"{__name__}.Mail.send"
    expected = f"{__name__}.test_handlers_are_called_after_where_they_are.inner"
    assert _names.handler_name(inner) == expected


def test_what_has_no_name_of_its_own_needs_one() -> None:
    with pytest.raises(ValueError, match=r"^name must be given for functools.partial"):
        _names.handler_name(partial(handler))
    with pytest.raises(ValueError, match=r"^name must be 1 to 128 letters"):
        _names.handler_name(lambda: None)


def test_ids_are_made_in_the_order_of_time_and_only_once() -> None:
    ids = [*_names.new_ids(100), _names.new_id(), *_names.new_ids(1), _names.new_id()]
    assert len({*ids}) == 103
    assert {len(each) for each in ids} == {30}
    assert [each[:14] for each in ids] == sorted(each[:14] for each in ids)
    assert _names.new_ids(0) == []
