"""A client of NATS that sends nothing but the TLS handshake before TLS is active.

The first message of a NATS server is plain, and says whether TLS is required. nats-py believes it:
an attacker on the network could change the message, and receive the credentials in clear text.
"""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client
from nats.errors import Error as ClientError


class NoTlsError(ClientError):
    """The server does not offer TLS."""

    def __str__(self) -> str:
        return "TLS is required, and the server does not offer it"


class SecureClient(Client):
    """A client that refuses a connection without TLS, at the first connect and at later ones."""

    def __init__(self) -> None:
        super().__init__()
        # A nats-py without these methods would never call the ones below: fail instead.
        _ = super()._process_info, super()._connect_command

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if not self._is_encrypted():
            # An attacker may have added these servers. nats-py would connect to them, and accept
            # certificates for their names.
            info.pop("connect_urls", None)
            if info.get("tls_available"):
                info["tls_required"] = True  # nats-py starts TLS only if it is required
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        """Return the message with the credentials."""
        if not self._is_encrypted():
            raise NoTlsError
        return super()._connect_command()

    def _is_encrypted(self) -> bool:
        transport: Any = self._transport
        return transport._io_writer.get_extra_info("ssl_object") is not None
