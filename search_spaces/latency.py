"""Targets that are times (`latency`, response times), from a few hundred windows: bins of delays, and more epochs.

Why: a delay is no line of the signal, so closed forms classify bins of delays, in windows that are cut at many
places. They come first, and take seconds. Networks train on new random crops in every epoch, so that they improve for
longer than on fixed windows. They must see when a response is in the window, hence the short pools.

Expect: on the UCI EEG Database (924 epochs of 16 subjects, crops of 0.5 s) closed forms reach an out-of-fold NRMSE of
0.75 to 0.85 in less than a minute each, networks 0.84 to 0.86 in several; ridge regression reaches 0.86.
"""

DELAYS = {"model/bins": 17, "model/crops": 17, "model/scale": "window"}
"""Number of bins of the target, and of crops of each window, in a fit."""

LINEAR = {"model/name": "linear", "model/components": 24}

COVARIANCE = {
    "model/name": "covariance",
    "model/components": 32,
    "model/high": 30.0,
    "model/prototypes": 4,
    "model/standardise": "half",
}

CONFORMER = {
    "model/name": "conformer",
    "optim/lr": 1e-3,
    "model/dropout": 0.3,
    "model/depth": 1,
    "model/norm": "window",
    "mixup/name": "mixup",
    "mixup/alpha": 0.3,
    "sam/name": "none",
}

CONFORMER_OF_TOKENS = {
    "model/name": "conformer",
    "optim/lr": 3e-3,
    "model/dropout": 0.3,
    "model/depth": 0,
    "model/norm": "channel",
    "mixup/name": "none",
    "sam/name": "sam",
    "sam/rho": 0.05,
}

START = [LINEAR, COVARIANCE, CONFORMER, CONFORMER_OF_TOKENS]


def space(trial):
    """Draw a family, and one configuration of it."""
    families = {"linear": linear, "covariance": covariance, "conformer": conformer}
    return families[trial.suggest_categorical("model/name", list(families))](trial)


def linear(trial):
    """Draw a linear model of time courses."""
    trial.suggest_int("model/components", 8, 32, step=8)
    return DELAYS | {"model/predictors": "time-courses"}


def covariance(trial):
    """Draw a covariance model of mean responses."""
    trial.suggest_int("model/components", 8, 32, step=8)
    trial.suggest_int("model/prototypes", 3, 6)
    trial.suggest_float("model/high", 15.0, 40.0)
    trial.suggest_categorical("model/standardise", ["all", "half"])
    return DELAYS | {"model/bands": "even", "model/low": 1.0, "model/n_bands": 1}


def conformer(trial):
    """Draw a Conformer."""
    trial.suggest_float("optim/lr", 5e-4, 5e-3, log=True)
    trial.suggest_float("model/dropout", 0.1, 0.5)
    trial.suggest_int("model/depth", 0, 2)
    trial.suggest_categorical("model/norm", ["channel", "window"])
    if trial.suggest_categorical("mixup/name", ["none", "mixup"]) != "none":
        trial.suggest_float("mixup/alpha", 0.1, 1.0)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) == "sam":
        trial.suggest_float("sam/rho", 0.02, 0.2, log=True)
    return {"epochs": 40, "patience": 12, "batch_size": 32, "model/kernels": "short", "model/hidden": 32}
