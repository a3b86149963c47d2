"""Arguments and results of a handler as plain data, converted by its annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Protocol

from ..._support.callables import name_of
from .._errors import InvalidPayloadError
from .json_data import check
from .signatures import NOTHING, Binding, Hint, hint_of_result, hints_of_parameters, signature_of


class Codec(Protocol):
    """Converts the values of one parameter; those of the types `as_is` need no conversion."""

    as_is: frozenset[type[Any]]

    def dump(self, value: Any) -> Any: ...

    def load(self, value: Any) -> Any: ...


class Plain:
    """Accepts plain data only, because nothing is known about the values' type.

    Args:
        what: Names the value in messages.
        hint: What to do about a value that is refused.
    """

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
    """What a handler takes and returns.

    Args:
        fn: The handler's function.

    Raises:
        TypeError: The values of an annotated type can't be told apart as JSON.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._prepare()

    def dump(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments as plain data; `encode` refuses numbers that are not finite.

        Raises:
            TypeError: The handler can't be called with them.
            InvalidPayloadError: An argument would come back as another value.
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
        """Return what to call the handler with.

        Raises:
            InvalidPayloadError: The arguments do not fit the handler.
        """
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
        """Return a result as plain data.

        Raises:
            InvalidPayloadError: It would come back as another value.
        """
        if self._unresolved:
            self._prepare_again()
        return value if type(value) in self._result.as_is else self._result.dump(value)

    def load_result(self, value: Any) -> Any:
        """Return what `dump_result` was given.

        Raises:
            InvalidPayloadError: It does not fit the annotation.
        """
        if self._unresolved:
            self._prepare_again()
        return value if type(value) in self._result.as_is else self._result.load(value)

    def _prepare(self) -> None:
        self._unresolved = False
        name, signature = name_of(self._fn), signature_of(self._fn)
        hints = hints_of_parameters(self._fn, signature)
        codecs = {each: self._codec(f"argument {each!r}", hint) for each, hint in hints.items()}
        self._result = self._codec("the result", hint_of_result(self._fn, signature))
        self._binding = Binding(name, signature, codecs)

    def _prepare_again(self) -> None:
        """Resolve annotations at the first use, when names may be defined that were not before."""
        with suppress(TypeError):
            self._prepare()
        self._unresolved = False

    def _codec(self, what: str, hint: Hint) -> Codec:
        if find_spec("msgspec") is None:
            return Plain(what, "; anyio-background[msgspec] would encode it, if it is annotated")
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
