"""Sweeps: the Optuna study, pruning, warm starts, reruns, forecasts."""
