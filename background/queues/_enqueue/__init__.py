"""From a call of a handler to a message at the broker."""
