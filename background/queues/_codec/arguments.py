"""Conversion of a handler's arguments and results to plain data, by its annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Protocol

from ..._support.callables import name_of
from .._errors import InvalidPayloadError
from .custom import CustomTypes
from .json_data import check
from .plain_types import other_type
from .signatures import (
    NOTHING,
    Binding,
    Hint,
    hint_of_result,
    hints_of_parameters,
    opened,
    refuse_method,
    shown,
    signature_of,
)

_ANNOTATE = "; annotate it with its type to send more than that"
_REGISTER = (
    "can't be sent; register it with jobs.register_type() before, or give an argument that is "
    "never sent a default, or a handler store_result=False"
)


_INSTALL = (
    "can't be sent without the extra msgspec, which encodes more than plain JSON data: install "
    "anyio-background[msgspec]"
)


class Codec(Protocol):
    """Converts values of one parameter; values of the types `as_is` need no conversion."""

    as_is: frozenset[type[Any]]

    def dump(self, value: Any) -> Any: ...

    def load(self, value: Any) -> Any: ...


class Plain:
    """Accepts plain data only, for parameters without a usable annotation.

    Args:
        what: The name of the value in messages.
        hint: The advice at the end of messages about refused values.
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


class Lenient:
    """Converts values by a type that may not be theirs; what does not fit it must be plain data.

    Args:
        typed: The codec of the type.
        plain: The codec of all other values.
    """

    def __init__(self, typed: Codec, plain: Codec) -> None:
        self.as_is = typed.as_is
        self._typed = typed
        self._plain = plain

    def dump(self, value: Any) -> Any:
        try:
            return self._typed.dump(value)
        except InvalidPayloadError as error:
            self._plain.dump(value)
            if self.load(value) is not value:
                raise error from None
            return value

    def load(self, value: Any) -> Any:
        try:
            return self._typed.load(value)
        except InvalidPayloadError:
            return value


class Signature:
    """The parameters and the result of a handler, with a codec for each.

    The parameters are those of the function that is called. If that is a wrapper that takes any
    arguments, those of the wrapped function say how to convert arguments where they fit; the
    wrapper decides which arguments there must be.

    Args:
        fn: The handler's function.
        types: The types that msgspec does not know.
        sends_result: Whether results are stored.

    Raises:
        TypeError: An annotation can't be used, for example a union that is ambiguous in JSON, or a
            type that can't be sent; or the function is a method that lacks its object.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        types: CustomTypes | None = None,
        *,
        sends_result: bool = True,
    ) -> None:
        self._fn = fn
        self._types = CustomTypes() if types is None else types
        self._sends_result = sends_result
        self._shown, self._is_wrapped = shown(fn)
        refuse_method(fn, signature_of(self._shown))
        self._prepare()

    def dump(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Convert arguments to plain data; infinite numbers and NaN are refused by `encode`.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            Both as plain data.

        Raises:
            TypeError: The handler can't be called with these arguments.
            InvalidPayloadError: An argument can't be converted, or would be decoded differently.
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
        """Convert decoded plain data to the handler's arguments.

        Args:
            args: Positional arguments, of any type.
            kwargs: Keyword arguments, of any type.

        Returns:
            Both as the handler takes them.

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
        """Convert a result to plain data.

        Raises:
            InvalidPayloadError: The result can't be converted, or would be decoded differently.
        """
        if self._unresolved:
            self._prepare_again()
        return value if type(value) in self._result.as_is else self._result.dump(value)

    def load_result(self, value: Any) -> Any:
        """Convert plain data to a result.

        Raises:
            InvalidPayloadError: The data does not fit the annotation.
        """
        if self._unresolved:
            self._prepare_again()
        return value if type(value) in self._result.as_is else self._result.load(value)

    def _prepare(self) -> None:
        self._unresolved = False
        signature = signature_of(self._shown)
        hints = hints_of_parameters(self._shown, signature)
        codecs: dict[str, Codec] = {}
        for name, parameter in signature.parameters.items():
            codec = self._codec(
                f"argument {name!r}", hints[name], is_sent=parameter.default is NOTHING
            )
            if codec is not None:
                codecs[name] = codec
        result = self._codec(
            "the result", hint_of_result(self._shown, signature), is_sent=self._sends_result
        )
        self._result = result or Plain("the result", _ANNOTATE)
        if self._is_wrapped:
            signature = opened(signature, codecs)
            for name in signature.parameters:
                codecs.setdefault(name, Plain("an argument", _ANNOTATE))
        self._binding = Binding(name_of(self._fn), signature, codecs)

    def _prepare_again(self) -> None:
        """Resolve annotations again at the first use, when more names may be defined."""
        with suppress(TypeError):
            self._prepare()
        self._unresolved = False

    def _codec(self, what: str, hint: Hint, *, is_sent: bool) -> Codec | None:
        """Return a codec, or `None` for an argument that only a wrapper can supply.

        Args:
            what: The name of the value in messages.
            hint: The value's type.
            is_sent: Whether the value is in every job, or has no default.
        """
        if find_spec("msgspec") is None:
            other = other_type(hint.type) if is_sent and not self._is_wrapped else None
            if other is not None:
                raise self._unusable(what, f"{other.__qualname__} {_INSTALL}")
            return Plain(what, "; anyio-background[msgspec] would encode it, if it is annotated")
        from .typed import Typed

        plain, unresolved = Plain(what, _ANNOTATE), hint.unresolved
        if hint.type is NOTHING and unresolved is None:
            return plain
        if hint.type is not NOTHING:
            try:
                typed = Typed(what, hint.type, self._types)
            except NameError as error:
                unresolved = str(error)
            except Exception as error:
                if self._is_wrapped:
                    return plain
                raise self._unusable(what, str(error)) from None
            else:
                if self._is_wrapped:
                    return Lenient(typed, plain) if typed.unknown is None else None
                if typed.unknown is not None and is_sent:
                    raise self._unusable(what, f"{typed.unknown.__qualname__} {_REGISTER}")
                return typed
        self._unresolved = True
        return Plain(what, f"; its annotation can't be resolved: {unresolved}")

    def _unusable(self, what: str, reason: str) -> TypeError:
        return TypeError(f"{name_of(self._fn)}(): the annotation of {what} can't be used: {reason}")
