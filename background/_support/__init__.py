"""Leaves that know nothing of tasks."""
