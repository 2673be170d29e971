"""The search of `make sweep`: a small Conformer on 500 simulated contrast-change trials, in minutes on two cores.

Why: it shows conditional parameters (focal -> gamma, mixing -> alpha, SAM -> rho) and early stopping of trials.
The simulated data contains the answer, so a sweep that does not find it has an error.

Expect: 8 trials of 4 folds in about five minutes, and an NRMSE of the ensemble well below 0.9.
"""

START = [
    {"optim/lr": 2e-3, "model/dropout": 0.3, "loss/name": "plain", "mixup/name": "none", "sam/name": "none"},
    {
        "optim/lr": 2e-3,
        "model/dropout": 0.3,
        "loss/name": "plain",
        "mixup/name": "mixup",
        "mixup/alpha": 0.3,
        "sam/name": "sam",
        "sam/rho": 0.05,
    },
]


def space(trial):
    """Draw one configuration."""
    trial.suggest_float("optim/lr", 5e-4, 5e-3, log=True)
    trial.suggest_float("model/dropout", 0.1, 0.5)
    if trial.suggest_categorical("loss/name", ["plain", "focal"]) == "focal":
        trial.suggest_float("loss/gamma", 0.5, 2.0)
    if trial.suggest_categorical("mixup/name", ["none", "mixup", "cutmix"]) != "none":
        trial.suggest_float("mixup/alpha", 0.1, 1.0)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) == "sam":
        trial.suggest_float("sam/rho", 0.02, 0.2, log=True)
    return {
        "epochs": 12,
        "patience": 6,
        "batch_size": 32,
        "model/depth": 1,
        "model/hidden": 64,
    }
