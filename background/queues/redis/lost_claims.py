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


def release_values(lost: Sequence[LostClaim]) -> list[bytes]:
    """Return the arguments of the script that releases what claims took, without expired ones.

    Args:
        lost: The claims.

    Returns:
        The times between which their leases end, in seconds from now, and their tokens; nothing if
        all leases have expired.
    """
    left = {claim.token: claim.lease - (monotonic() - claim.sent) for claim in lost}
    tokens = [token for token, seconds in left.items() if seconds > 0]
    if not tokens:
        return []
    first = min(left[token] for token in tokens) - _LATE
    return encoded(first, max(claim.lease for claim in lost), *tokens)
