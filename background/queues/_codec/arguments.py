"""How a job's arguments and its result travel: as plain data, by the handler's signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Protocol

from ..._support.callables import name_of
from .._errors import InvalidPayloadError
from .annotations import NOTHING, Hint, of_parameters, of_result, signature_of
from .binding import Binding
from .json_data import check


class Codec(Protocol):
    """How one argument travels: as it is if its type is among `as_is`, else by these methods."""

    as_is: frozenset[type[Any]]

    def dump(self, value: Any) -> Any: ...

    def load(self, value: Any) -> Any: ...


class Plain:
    """How a value travels of which nothing is known: only if it is plain data already."""

    as_is: frozenset[type[Any]] = frozenset({str, int, bool, type(None)})

    def __init__(self, what: str, hint: str) -> None:
        self._what = what
        self._hint = hint

    def dump(self, value: Any) -> Any:
        check(self._what, value, self._hint)
        return value

    def load(self, value: Any) -> Any:
        return value


class Signature:
    """What a handler takes and returns."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        """Raises `TypeError` for an annotation whose values could not be told apart as JSON."""
        self._fn = fn
        self._prepare()

    def dump(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments as plain data.

        Raises `TypeError` if the handler can't be called with them, and `InvalidPayloadError` for one
        that would not come back as it is. Numbers that are not finite may be left to `encode`.
        """
        if self._unresolved:
            self._prepare_again()
        positional, named = self._binding.match(args, kwargs)
        plain = [
            value if type(value) in codec.as_is else codec.dump(value)
            for codec, value in zip(positional, args, strict=True)
        ]
        if not kwargs:
            return plain, {}
        return plain, {
            name: value if type(value) in codec.as_is else codec.dump(value)
            for codec, (name, value) in zip(named, kwargs.items(), strict=True)
        }

    def load(self, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return what the handler is to be called with. Raises `InvalidPayloadError`."""
        if args.__class__ is not list or kwargs.__class__ is not dict:
            raise InvalidPayloadError("the arguments are not a list and a dict")
        if self._unresolved:
            self._prepare_again()
        try:
            positional, named = self._binding.match(args, kwargs)
        except TypeError as error:
            raise InvalidPayloadError(str(error)) from None
        loaded = [
            value if type(value) in codec.as_is else codec.load(value)
            for codec, value in zip(positional, args, strict=True)
        ]
        if not kwargs:
            return loaded, {}
        return loaded, {
            name: value if type(value) in codec.as_is else codec.load(value)
            for codec, (name, value) in zip(named, kwargs.items(), strict=True)
        }

    def dump_result(self, value: Any) -> Any:
        """Return a result as plain data. Raises `InvalidPayloadError`."""
        if self._unresolved:
            self._prepare_again()
        return value if type(value) in self._result.as_is else self._result.dump(value)

    def load_result(self, value: Any) -> Any:
        """Return what `dump_result` was given. Raises `InvalidPayloadError`."""
        if self._unresolved:
            self._prepare_again()
        return value if type(value) in self._result.as_is else self._result.load(value)

    def _prepare(self) -> None:
        self._unresolved = False
        name, signature = name_of(self._fn), signature_of(self._fn)
        hints = of_parameters(self._fn, signature)
        codecs = {each: self._codec(f"argument {each!r}", hint) for each, hint in hints.items()}
        self._result = self._codec("the result", of_result(self._fn, signature))
        self._binding = Binding(name, signature, codecs)

    def _prepare_again(self) -> None:
        """At the first use names may be defined that were not when the handler was made."""
        with suppress(TypeError):
            self._prepare()
        self._unresolved = False

    def _codec(self, what: str, hint: Hint) -> Codec:
        if find_spec("msgspec") is None:
            return Plain(what, "; anyio-background[msgspec] would carry it, if it is annotated")
        from .typed import Typed

        unresolved = hint.unresolved
        if hint.type is not NOTHING:
            try:
                return Typed(what, hint.type)
            except NameError as error:
                unresolved = str(error)
            except Exception as error:
                raise TypeError(
                    f"{name_of(self._fn)}(): the annotation of {what} can't be used: {error}"
                ) from None
        if unresolved is None:
            return Plain(what, "; annotate it with its type to send more than that")
        self._unresolved = True
        return Plain(what, f"; its annotation can't be resolved: {unresolved}")
