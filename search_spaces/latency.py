"""Targets that are times (`latency`, response times), from a few hundred windows: short pools, small batches, patience.

Why: every epoch has new random crops, so training improves for longer than on fixed windows. The network must see when
a response is in the window, hence the short pools. Mixing and SAM compete with plain training.

Expect: on the UCI EEG Database (924 epochs of 16 subjects, crops of 0.5 s) a trial of 4 folds takes about 30 s on two
cores and reaches an out-of-fold NRMSE of about 0.80 to 0.83; ridge regression reaches 0.86.
"""

START = [
    {
        "optim/lr": 1e-3,
        "model/dropout": 0.3,
        "model/depth": 1,
        "model/norm": "window",
        "mixup/name": "mixup",
        "mixup/alpha": 0.3,
        "sam/name": "none",
    },
    {
        "optim/lr": 3e-3,
        "model/dropout": 0.3,
        "model/depth": 0,
        "model/norm": "channel",
        "mixup/name": "none",
        "sam/name": "sam",
        "sam/rho": 0.05,
    },
]


def space(trial):
    """Draw one configuration."""
    trial.suggest_float("optim/lr", 5e-4, 5e-3, log=True)
    trial.suggest_float("model/dropout", 0.1, 0.5)
    trial.suggest_int("model/depth", 0, 2)
    trial.suggest_categorical("model/norm", ["channel", "window"])
    if trial.suggest_categorical("mixup/name", ["none", "mixup"]) != "none":
        trial.suggest_float("mixup/alpha", 0.1, 1.0)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) == "sam":
        trial.suggest_float("sam/rho", 0.02, 0.2, log=True)
    return {"epochs": 40, "patience": 12, "batch_size": 32, "model/kernels": "short", "model/hidden": 32}
