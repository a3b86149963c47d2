"""The options of TLS connections, which all brokers share."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, TypedDict

from anyio import to_thread

from ._url_parts import Reader, choice, flag

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

#: How the options are read from a URL. They have the names that redis-py gave them.
TLS_OPTIONS: Mapping[str, Reader] = {
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_cert_reqs": choice(*_VERIFY),
    "ssl_certfile": str,
    "ssl_check_hostname": flag,
    "ssl_keyfile": str,
    "ssl_password": str,
}


class TlsOptions(TypedDict, total=False):
    """The types of the options, as keyword arguments of brokers."""

    ssl_ca_certs: str
    ssl_ca_path: str
    ssl_cert_reqs: str
    ssl_certfile: str
    ssl_check_hostname: bool
    ssl_keyfile: str
    ssl_password: str


class Tls:
    """How connections are encrypted.

    Args:
        context: A context that is used as it is, instead of the options.
        options: Options by name, which are removed from this dict.

    Raises:
        ValueError: An option is not valid, or there is a context, too.
    """

    def __init__(self, context: ssl.SSLContext | None, options: dict[str, Any]) -> None:
        self._options = {name: options.pop(name) for name in TLS_OPTIONS if name in options}
        self._context = context
        if context is not None and self._options:
            raise ValueError(f"{', '.join(self._options)}: not with tls, which replaces it")
        if self._options.get("ssl_cert_reqs", "required") not in _VERIFY:
            raise ValueError(f"ssl_cert_reqs must be {' or '.join(_VERIFY)}")
        if "ssl_keyfile" in self._options and "ssl_certfile" not in self._options:
            raise ValueError("ssl_keyfile needs ssl_certfile, too")

    @property
    def is_given(self) -> bool:
        """Whether there is a context or any option."""
        return self._context is not None or bool(self._options)

    async def context(self) -> ssl.SSLContext:
        """Return the context; read files when it is needed first.

        Raises:
            OSError: A file can't be read.
        """
        if self._context is None:
            self._context = await to_thread.run_sync(self._made)
        return self._context

    def _made(self) -> ssl.SSLContext:
        get = self._options.get
        names = "ssl_ca_certs or ssl_ca_path"
        try:
            context = ssl.create_default_context(
                cafile=get("ssl_ca_certs"), capath=get("ssl_ca_path")
            )
            names = "ssl_certfile, ssl_keyfile or ssl_password"
            if certificate := get("ssl_certfile"):
                # Without a password OpenSSL would ask for it on the terminal.
                password = get("ssl_password", "")
                context.load_cert_chain(certificate, get("ssl_keyfile"), password)
        except OSError as error:  # it does not name the file
            raise OSError(f"{names} can't be used: {error}") from error
        verify = _VERIFY[get("ssl_cert_reqs", "required")]
        context.check_hostname = get("ssl_check_hostname", True) and verify is not ssl.CERT_NONE
        context.verify_mode = verify
        return context
