"""The smallest search that trains a network: two parameters and a few epochs.

Why: to check that a data set, a machine or a cluster works before a long run, and as a template for other spaces.

Expect: seconds per trial on small data, and no good scores.
"""

START = [{"optim/lr": 1e-3, "sam/name": "none"}]


def space(trial):
    """Draw one configuration."""
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) == "sam":
        trial.suggest_float("sam/rho", 0.02, 0.2, log=True)
    return {
        "epochs": 3,
        "batch_size": 16,
        "model/filters": 8,
        "model/heads": 2,
        "model/depth": 1,
        "model/hidden": 16,
        "model/dropout": 0.2,
    }
