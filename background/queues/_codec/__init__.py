"""Arguments, results and errors as the bytes that a broker stores."""
