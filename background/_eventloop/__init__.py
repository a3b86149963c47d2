"""Features that anyio lacks: native child tasks, calls from other threads, services."""
