"""Credentials of NATS in files, which may change while a client is connected.

nats-py reads such files, too, but it does not return from one without the expected lines, and it
stops to reconnect after an error of `nkeys`.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from importlib import import_module
from pathlib import Path
from typing import Any

from nats.errors import Error as ClientError

_JWT = re.compile(r"-BEGIN NATS USER JWT-+\s+(\S+)\s+-+END")
_SEED = re.compile(r"-BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END")


class InvalidCredentialsError(ClientError):
    """Credentials have not the expected form."""


class CredentialsFile:
    """A file with a user's JWT and seed, as `nsc` writes it.

    Args:
        path: The file, usually with the ending `.creds`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._text = ""

    def read(self) -> None:
        """Read the file, for the next connection.

        Raises:
            OSError: It can't be read.
        """
        self._text = self._path.read_text(errors="replace")

    def jwt(self) -> bytes:
        """Return the user's JWT.

        Raises:
            InvalidCredentialsError: The file has not the expected form.
        """
        return self._find(_JWT).encode()

    def sign(self, nonce: str) -> bytes:
        """Return the signature of a server's nonce.

        Raises:
            InvalidCredentialsError: The file has not the expected form.
        """
        signature: bytes = key_pair(self._find(_SEED), str(self._path)).sign(nonce.encode())
        return b64encode(signature)

    def _find(self, pattern: re.Pattern[str]) -> str:
        found = pattern.search(self._text)
        if found is None:
            raise InvalidCredentialsError(f"{self._path} is not a file with a NATS user's JWT")
        return found[1]


def key_pair(seed: str, source: str) -> Any:
    """Return the keys of a seed.

    Args:
        seed: The seed.
        source: Where it is from, for messages.

    Raises:
        InvalidCredentialsError: The seed is not valid.
    """
    nkeys: Any = import_module("nkeys")
    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except Exception:  # of many kinds; they may quote the seed
        raise InvalidCredentialsError(f"{source} has no valid seed of an nkey") from None
