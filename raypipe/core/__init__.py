"""Configuration, search spaces, folds, metrics, errors: what every package needs."""
