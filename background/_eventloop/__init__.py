"""The event loop: native child tasks, calls from threads, services, and protection."""
