"""Which parameter each argument of a call is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, Signature
from itertools import repeat
from typing import Any, Generic, TypeVar

from ..._support.frozen import record

P = TypeVar("P")


@record
class _Call(Generic[P]):
    """What a call with a certain number of positional arguments looks like.

    `positional` ends with a `None` if another has to follow. `named` has all names that are not
    free for `**kwargs`, with `None` for those that are taken. `is_whole` if nothing has to follow.
    """

    positional: tuple[P | None, ...]
    named: Mapping[str, P | None]
    required: frozenset[str]
    is_whole: bool


class Binding(Generic[P]):
    """Finds what belongs to each argument's parameter, several times as fast as `bind`."""

    def __init__(self, name: str, signature: Signature, parameters: Mapping[str, P]) -> None:
        self._name = name
        self._signature = signature
        self._rest: P | None = None
        self._others: P | None = None
        for each in signature.parameters.values():
            if each.kind is Parameter.VAR_POSITIONAL:
                self._rest = parameters[each.name]
            elif each.kind is Parameter.VAR_KEYWORD:
                self._others = parameters[each.name]
        known = [
            each
            for each in signature.parameters.values()
            if each.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        ]
        self._most = sum(each.kind is not Parameter.KEYWORD_ONLY for each in known)
        self._calls = [_call(given, known, parameters) for given in range(self._most + 1)]

    def match(
        self, args: Sequence[object], kwargs: Mapping[Any, object]
    ) -> tuple[Sequence[P], Sequence[P]]:
        """Return what belongs to each positional and to each named argument.

        Raises `TypeError` where a call would.
        """
        given = len(args)
        call = self._calls[min(given, self._most)]
        if call.is_whole and not kwargs and given <= self._most:
            return call.positional, ()  # type: ignore[return-value]  # nor is there a `None` here
        positional: Sequence[P | None] = call.positional
        if given > self._most:
            positional = [*positional, *repeat(self._rest, given - self._most)]
        named = [call.named.get(name, self._others) for name in kwargs]
        if (
            None in named
            or None in positional
            or not call.required <= kwargs.keys()
            or (self._others is not None and not all(isinstance(name, str) for name in kwargs))
        ):
            raise TypeError(f"{self._name}(): {self._reason(args, kwargs)}")
        return positional, named  # type: ignore[return-value]  # there is no `None` left

    def _reason(self, args: Sequence[object], kwargs: Mapping[Any, object]) -> str:
        """Leave it to Python to say what is wrong; not every version of it finds everything."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error)
        return "the arguments do not fit its parameters"


def _call(given: int, known: Iterable[Parameter], parameters: Mapping[str, P]) -> _Call[P]:
    positional = [each for each in known if each.kind is not Parameter.KEYWORD_ONLY]
    named = [each for each in known if each.kind is not Parameter.POSITIONAL_ONLY]
    taken = positional[:given]
    required = [each for each in known if each.default is each.empty and each not in taken]
    by_position = [each for each in required if each.kind is Parameter.POSITIONAL_ONLY]
    return _Call(
        positional=(*(parameters[each.name] for each in taken), *([None] if by_position else [])),
        named={each.name: None if each in taken else parameters[each.name] for each in named},
        required=frozenset(each.name for each in required),
        is_whole=not required,
    )
