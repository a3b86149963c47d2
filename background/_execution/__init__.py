"""From submitted to ended: which task starts when, one run of it, and its end."""
