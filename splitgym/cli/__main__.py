"""`python -m splitgym.cli`."""

from splitgym.cli import main

main()
