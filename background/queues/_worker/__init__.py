"""What a worker does: fetch, prepare, run, renew and settle jobs."""
