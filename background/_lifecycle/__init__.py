"""Entering a manager, shutting it down, and leaving it."""
