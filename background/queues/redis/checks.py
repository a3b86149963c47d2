"""Checks of a server: settings that endanger jobs, and keys that are gone."""

from __future__ import annotations

import logging

from ..._support.log import log
from .address import Address

#: The keys that exist whenever a job is stored; `present.lua` has the same order.
_KEYS = ("number", "order", "messages", "counts")


def report_settings(address: Address, info: str) -> None:
    """Log settings with which the server may lose jobs.

    Args:
        address: The server.
        info: Its answer to `INFO`.
    """
    pairs = (line.partition(":") for line in info.splitlines())
    settings = {name: value for name, _, value in pairs}
    policy = settings.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        log(
            logging.WARNING,
            "%s: maxmemory-policy is %s: the server deletes jobs or results without notice when "
            "its memory is full; set noeviction",
            *(address, policy),
        )
    if settings.get("aof_enabled") == "0":
        log(
            logging.INFO,
            "%s: appendonly is off: if the server crashes, it loses the jobs since its last "
            "snapshot, or all without snapshots",
            address,
        )


def report_corrections(address: Address, prefix: str, corrections: int) -> None:
    """Log that a pass has corrected indexes and counts, which no script of this library damages.

    Args:
        address: The server.
        prefix: The prefix of the keys.
        corrections: The number of corrected entries.
    """
    if corrections:
        log(
            logging.WARNING,
            "%s: %d entries of the indexes and counts of prefix %r did not match the jobs and are "
            "corrected; another program may have changed its keys",
            *(address, corrections, prefix),
        )


class KeysCheck:
    """Reports once that keys are gone, which loses jobs.

    Args:
        address: The server.
        prefix: The prefix of the keys.
    """

    def __init__(self, address: Address, prefix: str) -> None:
        self._address = address
        self._prefix = prefix
        self._missing: list[str] = []

    def report(self, answer: str) -> int:
        """Log keys that are missing; return the stored version of the format, or 0.

        Args:
            answer: The answer of the script `present`.
        """
        version, flags = answer.split(" ")
        exists = dict(zip(_KEYS, (flag == "1" for flag in flags), strict=True))
        stored = any(exists[name] for name in _KEYS[1:])
        missing = [name for name in _KEYS if stored and not exists[name]]
        if version == "0":
            missing.append("version")
        if missing and missing != self._missing:
            log(
                logging.ERROR,
                "%s: keys of prefix %r are gone, and jobs with them: %s. The server was out of "
                "memory, was flushed, or has restarted without its data",
                *(self._address, self._prefix, ", ".join(missing)),
            )
        self._missing = missing
        return int(version)
