"""The encoding of arguments, results and errors."""
