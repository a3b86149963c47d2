"""What anyio does not offer: native child tasks, calls from threads, services."""
