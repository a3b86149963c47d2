"""The delivery of events to observers, which never affects tasks."""
