"""Keys of NATS, and files with credentials that an operator signed."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b32encode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import nkeys


class Key:
    """A pair of keys.

    Args:
        role: What it is for: `"OPERATOR"`, `"ACCOUNT"` or `"USER"`.
    """

    def __init__(self, role: str) -> None:
        prefix = getattr(nkeys, f"PREFIX_BYTE_{role}")
        self.seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public = self._pair.public_key.decode()

    def sign(self, subject: Key, name: str, **claims: Any) -> str:
        """Return a JWT for another key."""
        claims = {"version": 2, **claims}
        body = {"name": name, "iss": self.public, "sub": subject.public, "iat": 1, "nats": claims}
        digest = hashlib.sha256(json.dumps(body).encode()).digest()
        body["jti"] = b32encode(digest).decode().rstrip("=")
        parts = [_encoded({"typ": "JWT", "alg": "ed25519-nkey"}), _encoded(body)]
        signature = self._pair.sign(".".join(parts).encode())
        return ".".join([*parts, urlsafe_b64encode(signature).decode().rstrip("=")])


def _encoded(part: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


#: The text of a file with credentials, as `nsc` writes it.
CREDENTIALS = """\
-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

************************* IMPORTANT *************************
NKEY Seed printed below can be used to sign and prove identity.
NKEYs are sensitive and should be treated as secrets.

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------

*************************************************************
"""


def operator_config(path: Path) -> str:
    """Return a server's configuration for one user, whose credentials are written to a file."""
    operator, account, user = Key("OPERATOR"), Key("ACCOUNT"), Key("USER")
    system = Key("ACCOUNT")
    names = "mem_storage", "disk_storage", "streams", "consumer", "subs", "data", "payload"
    names += "conn", "leaf", "imports", "exports"
    unlimited = {**dict.fromkeys(names, -1), "wildcards": True}
    jwt = account.sign(user, "worker", type="user", subs=-1, data=-1, payload=-1)
    path.write_text(CREDENTIALS.format(jwt=jwt, seed=user.seed))
    jobs = operator.sign(account, "jobs", type="account", limits=unlimited)
    own = operator.sign(system, "SYS", type="account")
    return (
        f"operator: {operator.sign(operator, 'operator', type='operator')}\n"
        f"resolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {jobs}, {system.public}: {own} }}\n"
        f"system_account: {system.public}\n"
    )
