"""`python -m nasspace.cli` is `nas`."""

from nasspace.cli import main

main()
