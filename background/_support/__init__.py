"""Helpers that do not depend on tasks."""
