"""`python -m rushlight` is `rushlight`."""

from rushlight.cli import main

main()
