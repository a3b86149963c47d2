"""Enqueueing: from the call of a handler to a message for the broker."""
