"""The parts of a broker's URL, which are read alike for all brokers.

A URL is `scheme://user:password@host:port,host:port/path?option=value&option=value`. All parts are
percent-decoded. An error quotes no part that may belong to a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote, unquote_plus

_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s\[\]:,@]*)(?::([0-9]{1,5}))?")
_OPTION = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)

#: Reads the value of an option. Its error says what the value must be, without quoting it.
Reader = Callable[[str], Any]


class Host(NamedTuple):
    """A host, with the port if the URL has one; the name may be empty."""

    name: str
    port: int | None

    def shown(self, default_port: int) -> str:
        """Return the host and its port as in a URL."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port or default_port}"


class UrlParts(NamedTuple):
    """The parts of a URL.

    Attributes:
        scheme: In lower case.
        user: `None` if it is missing or empty.
        password: `None` if it is missing.
        hosts: Empty if the URL has no host.
        path: With the slash at its beginning.
        options: The values by name.
    """

    scheme: str
    user: str | None
    password: str | None
    hosts: tuple[Host, ...]
    path: str
    options: Mapping[str, str]

    def read_options(
        self, readers: Mapping[str, Reader], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the options of the URL and those that are given as arguments.

        Args:
            readers: By name: how the value in a URL is read.
            given: The arguments, with `None` for those that are not given.

        Raises:
            ValueError: An option is unknown, its value is not valid, or it is given twice.
        """
        options = {name: value for name, value in given.items() if value is not None}
        for name, text in self.options.items():
            if name not in readers:  # the name is not quoted, it may be a part of a password
                allowed = f"the options of {self.scheme} are {', '.join(sorted(readers))}"
                raise ValueError(
                    f"url has an unknown option; {allowed if readers else 'there are none'}"
                )
            if name in options:
                raise ValueError(f"{name} is given twice, in the URL and as an argument")
            try:
                options[name] = readers[name](text)
            except ValueError as error:
                raise ValueError(f"url: {name} must be {error}") from None
        return options


def parse(url: object, example: str) -> UrlParts:
    """Return the parts of a URL.

    Args:
        url: The URL.
        example: What a URL looks like, for messages.

    Raises:
        ValueError: The URL is not valid.
    """
    if not isinstance(url, str):
        raise ValueError(
            f"url must be a str such as {example}, not {type(url).__name__}; an object that "
            f"represents a URL is converted by str()"
        )
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(f"url must begin with a scheme, as in {example}")
    scheme, authority, path, query, fragment = found.groups()
    if authority and "@" in f"{path}{query}{fragment}":
        _refuse("/ ? # in a user name or password, and @ after the hosts, must be percent-encoded")
    if fragment is not None:
        _refuse("# must be percent-encoded, as %23")
    login, at, hosts = (authority or "").rpartition("@")
    user, colon, password = login.partition(":")
    return UrlParts(
        scheme=scheme.lower(),
        user=_decoded(user) or None,
        password=_decoded(password) if colon else None,
        hosts=tuple(_host(host) for host in hosts.split(",")) if hosts or at else (),
        path=_decoded(path),
        options=_options(query or ""),
    )


def _host(text: str) -> Host:
    found = _HOST.fullmatch(text)
    port = None if found is None or found[2] is None else int(found[2])
    if found is None or port == 0 or (port or 0) > 65535:
        _refuse("a host must be like name:1234 or [::1]:1234, and the next one follows a comma")
    return Host(_decoded(found[1].strip("[]")), port)


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for option in query.split("&") if query else ():
        found = _OPTION.fullmatch(option)
        if found is None:
            _refuse("an option must be like name=value; & = and # in values are percent-encoded")
        if found[1] in options:
            _refuse("an option is given twice")
        options[found[1]] = _decoded(found[2], unquote_plus)
    return options


def _decoded(text: str, decode: Callable[..., str] = unquote) -> str:
    try:
        return decode(text, errors="strict")
    except UnicodeDecodeError:
        _refuse("percent-encoded bytes must be UTF-8")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"url: {reason}") from None


def flag(text: str) -> bool:
    """Read an option that is true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def choice(*values: str) -> Reader:
    """Return a reader of an option with a few values."""

    def read(text: str) -> str:
        if text.lower() not in values:
            raise ValueError(" or ".join(values))
        return text.lower()

    return read


def whole_number(text: str) -> int:
    """Read an option that is a whole number."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError("a whole number")
    return int(text)


def decimal(text: str) -> float:
    """Read an option that is a number of at least 0."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError("a number such as 2.5")
    return float(text)
