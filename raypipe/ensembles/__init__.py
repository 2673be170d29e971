"""Ensembles of trials, fitted on out-of-fold predictions."""
