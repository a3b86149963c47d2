"""Checks of a server: settings that endanger jobs, keys that are gone, and evictions."""

from __future__ import annotations

import logging

from ..._support.log import log
from .address import Address

#: The `run_id` of servers whose append-only file was reported by this process.
_reported: set[str] = set()


def report_settings(address: Address, info: str) -> None:
    """Log settings with which the server may lose jobs.

    Args:
        address: The server.
        info: Its answer to `INFO`.
    """
    settings = _read(info)
    policy = settings.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        log(
            logging.WARNING,
            "%s: maxmemory-policy is %s: the server deletes jobs or results without notice when "
            "its memory is full; set noeviction",
            *(address, policy),
        )
    server = settings.get("run_id", str(address))
    if settings.get("aof_enabled") == "0" and server not in _reported:
        _reported.add(server)
        log(
            logging.INFO,
            "%s: appendonly is off: if the server crashes, it loses the jobs since its last "
            "snapshot, or all without snapshots",
            address,
        )


def _read(info: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(":") for line in info.splitlines())}


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
    """Reports once that keys are gone, which may lose jobs and results.

    Args:
        address: The server.
        prefix: The prefix of the keys.
    """

    def __init__(self, address: Address, prefix: str) -> None:
        self._address = address
        self._prefix = prefix
        self._missing: list[str] = []

    def report(self, answer: str) -> tuple[int, bool]:
        """Log keys that are missing.

        Args:
            answer: The answer of the script `present`.

        Returns:
            The stored version of the format, or 0, and whether more keys are missing than before.
        """
        version, *missing = answer.split()
        if version == "0":
            missing.append("version")
        are_new = not set(missing) <= set(self._missing)
        if are_new:
            log(
                logging.ERROR,
                "%s: keys of prefix %r are gone: %s. The server was out of memory, was flushed, or "
                "has restarted without its data; jobs or results are lost",
                *(self._address, self._prefix, ", ".join(missing)),
            )
        self._missing = missing
        return int(version), are_new


class EvictionCheck:
    """Reports once that the server has evicted keys, which may be those of jobs.

    Args:
        address: The server.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._evicted = 0  # as far as the server has reported it
        self._is_reported = False

    def begin(self, info: str) -> None:
        """Count from now on.

        Args:
            info: The server's answer to `INFO`.
        """
        self._evicted = _evicted(info)
        self._is_reported = False

    def report(self, info: str) -> bool:
        """Log an error if keys were evicted; return whether it were more than before.

        Args:
            info: The server's answer to `INFO stats`.
        """
        before, self._evicted = self._evicted, _evicted(info)
        are_more = self._evicted > before  # there are fewer after a restart or a fail-over
        if are_more and not self._is_reported:
            self._is_reported = True
            log(
                logging.ERROR,
                "%s: the server has evicted %d keys, because its memory is full; they may be those "
                "of jobs or results, which are lost. Set maxmemory-policy noeviction",
                *(self._address, self._evicted - before),
            )
        return are_more


def _evicted(info: str) -> int:
    return int(_read(info).get("evicted_keys", "0"))
