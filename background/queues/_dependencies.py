"""Dependencies of new jobs on jobs that are stored already."""

from __future__ import annotations

from collections.abc import Sequence

from .abc import Message


def outside_dependencies(messages: Sequence[Message]) -> dict[str, str]:
    """Return the jobs that must be stored before the messages, each with its first dependant.

    A job may depend on an earlier message, which is not among them.
    """
    new: set[str] = set()
    dependants: dict[str, str] = {}
    for message in messages:
        for id in message.depends_on:
            if id not in new:
                dependants.setdefault(id, message.id)
        new.add(message.id)
    return dependants


def missing_dependency(id: str, dependant: str) -> ValueError:
    """Return the error for a job that depends on a job that is not stored."""
    return ValueError(f"job {dependant} depends on job {id}, which is not stored")
