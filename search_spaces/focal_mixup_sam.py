"""Focal loss, mixing and sharpness-aware minimisation on the EEG-Conformer.

Why: each of the three works against another cause of overfitting few subjects (easy trials, single windows, sharp
minima), and which of them helps depends on the target. Each has a parameter of its own, drawn only if it is used:
focal -> gamma, mixing -> alpha, SAM -> rho. The space is for classes (cross-entropy, focal loss) and for regression
(squared error, Focal-R).

Expect: the two start points show whether the target depends on rhythms or on responses. 40 trials find the good region.
SAM doubles the passes over the data, and successive halving counts passes. `all_families.py` searches other models too.
"""

RHYTHMS = {
    "optim/lr": 1e-3,
    "optim/weight_decay": 1e-2,
    "model/dropout": 0.5,
    "model/depth": 1,
    "model/kernels": "paper",
    "model/norm": "window",
    "model/features": "log-power",
    "loss/name": "plain",
    "mixup/name": "mixup",
    "mixup/alpha": 0.5,
    "sam/name": "none",
}

RESPONSES = {
    "optim/lr": 1e-3,
    "optim/weight_decay": 1e-2,
    "model/dropout": 0.3,
    "model/depth": 1,
    "model/kernels": "short",
    "model/norm": "channel",
    "model/features": "mean",
    "loss/name": "plain",
    "mixup/name": "none",
    "sam/name": "sam",
    "sam/rho": 0.05,
}

START = [RHYTHMS, RESPONSES]


def space(trial):
    """Draw one configuration."""
    trial.suggest_float("optim/lr", 2e-4, 5e-3, log=True)
    trial.suggest_float("optim/weight_decay", 1e-4, 1e-1, log=True)
    trial.suggest_float("model/dropout", 0.1, 0.6)
    trial.suggest_int("model/depth", 0, 3)
    trial.suggest_categorical("model/kernels", ["rate", "paper", "short"])
    trial.suggest_categorical("model/norm", ["channel", "window"])
    trial.suggest_categorical("model/features", ["mean", "log-power"])
    if trial.suggest_categorical("loss/name", ["plain", "focal"]) == "focal":
        trial.suggest_float("loss/gamma", 0.5, 3.0)
    if trial.suggest_categorical("mixup/name", ["none", "mixup", "cutmix"]) != "none":
        trial.suggest_float("mixup/alpha", 0.1, 1.0)
    constants = {"epochs": 16, "patience": 6, "model/hidden": 32}
    sam = trial.suggest_categorical("sam/name", ["none", "sam", "asam"])
    if sam != "none":
        rho = trial.suggest_float("sam/rho", 0.01, 0.2, log=True)
        # ASAM's radius is in units of the weights: about 20 times larger for the same effect.
        constants["sam/rho"] = 20 * rho if sam == "asam" else rho
    return constants
