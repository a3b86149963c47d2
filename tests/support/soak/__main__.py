"""The command `python -m support.soak`."""

from support.soak.program import main

main()
