"""Workers, which fetch, prepare, run, renew and settle jobs."""
