"""Claims whose answers were lost, for the next call that gets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from .script import encoded

_LATE = 1.0  # seconds by which the clocks of client and server may run differently meanwhile


@dataclass(frozen=True, slots=True)
class LostClaim:
    """A claim that may have been executed, although its caller has no answer.

    Args:
        token: Its token.
        lease: Its lease in seconds.
        sent: When it was sent, by the monotonic clock.
    """

    token: str
    lease: float
    sent: float

    def left(self) -> float:
        """Return the seconds until its lease ends at the earliest."""
        return self.lease - (monotonic() - self.sent)


def release_values(lost: Sequence[LostClaim]) -> list[bytes]:
    """Return the arguments of the script that releases what claims took.

    They are the times between which the leases end, in seconds from now, and the tokens.
    """
    first = min(claim.left() for claim in lost) - _LATE
    last = max(claim.lease for claim in lost)
    return encoded(first, last, *(claim.token for claim in lost))
