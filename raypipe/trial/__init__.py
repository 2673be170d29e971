"""One trial, without Ray: its folds, their evaluation, its failures."""
