"""The verbs of the command line, a file for each step of the way; `raypipe.cli` puts them together."""
