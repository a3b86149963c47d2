"""Jobs in NATS JetStream.

A prefix has three streams (`layout`), which `streams` creates:

- A key-value bucket with one record for each job. A record is only changed by compare-and-set on
  its revision (`records`, `codec`, `job`).
- A work queue with one hint for each ready job. Workers fetch hints, then claim the jobs in the
  records (`ready_queue`, `claims`).
- A stream of timers: which record must be checked at which time (`timer_wheel`).

Only a record decides about its job. Hints and timers may be late, outdated or duplicated: a process
that receives one reads the record. Every change of a record is followed by its effects, which are
hints, timers and changes of dependent jobs. `effects` applies them, and repairs them after a crash.

`broker` implements the contract of a broker with these parts. `jetstream`, `requests` and
`connection` talk to the server.
"""

from __future__ import annotations

from .broker import NatsBroker

__all__ = ["NatsBroker"]
