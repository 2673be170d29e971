"""The smallest search that trains in earnest: one network, two questions, a few epochs.

Why: to see that a data set, a machine or a cluster works before anything long is launched, and as a form to copy.
Expect: seconds a trial on small data, no good scores.
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
