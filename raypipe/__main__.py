"""``python -m raypipe``."""

from raypipe.cli.app import main

main()
