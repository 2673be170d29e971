"""Every family of decoders in one search: covariances, linear models, and networks.

Why: families err on different windows, so an ensemble of them has something to combine, which one of networks alone has
not. With few people, covariances in closed form predict better than networks; with many, or for responses to events,
networks do.

Expect: the start points are good points of each family, for rhythms and for responses to events. Those in closed form
come first and take seconds, so that there is an answer within a minute. 16 trials give an ensemble.
"""

COVARIANCE_OF_RHYTHMS = {
    "model/name": "covariance",
    "model/bands": "rhythms",
    "model/shrinkage": 0.01,
    "model/scale": "band",
    "model/standardise": "half",
    "model/order": 1,
}

COVARIANCE_OF_THETA_AND_ALPHA = COVARIANCE_OF_RHYTHMS | {"model/bands": "theta-alpha"}

COVARIANCE_WITH_DELAYS = {
    "model/name": "covariance",
    "model/bands": "even",
    "model/low": 3.0,
    "model/high": 14.0,
    "model/n_bands": 1,
    "model/prototypes": 0,
    "model/order": 3,
    "model/lag": 0.05,
    "model/shrinkage": 0.01,
    "model/scale": "band",
    "model/standardise": "half",
}

COVARIANCE_OF_RESPONSES = {
    "model/name": "covariance",
    "model/bands": "even",
    "model/low": 1.0,
    "model/high": 30.0,
    "model/n_bands": 1,
    "model/shrinkage": 0.01,
    "model/scale": "window",
    "model/standardise": "half",
    "model/prototypes": 4,
}

LINEAR_IN_POWER = {
    "model/name": "linear",
    "model/predictors": "band-power",
    "model/bands": "rhythms",
}

LINEAR_IN_TIME = {"model/name": "linear", "model/predictors": "time-courses", "model/components": 24}

CONFORMER_OF_RHYTHMS = {
    "model/name": "conformer",
    "optim/lr": 1e-3,
    "model/dropout": 0.5,
    "model/kernels": "paper",
    "model/norm": "window",
    "model/features": "log-power",
    "mixup/name": "mixup",
    "mixup/alpha": 0.5,
    "sam/name": "none",
}

CONFORMER_OF_RESPONSES = {
    "model/name": "conformer",
    "optim/lr": 1e-3,
    "model/dropout": 0.3,
    "model/kernels": "short",
    "model/norm": "channel",
    "model/features": "mean",
    "mixup/name": "none",
    "sam/name": "sam",
    "sam/rho": 0.05,
}

SHALLOW = {
    "model/name": "shallow",
    "optim/lr": 1e-3,
    "model/dropout": 0.5,
    "model/kernels": "paper",
    "model/norm": "window",
    "mixup/name": "mixup",
    "mixup/alpha": 0.5,
    "sam/name": "none",
}

EEGNET = {
    "model/name": "eegnet",
    "optim/lr": 2e-3,
    "model/dropout": 0.25,
    "model/norm": "channel",
    "mixup/name": "none",
    "sam/name": "none",
}

RESPONSES = {"model/bins": 17, "model/crops": 17}
"""Delays of responses are classified in bins, on several crops of each window."""

START = [
    COVARIANCE_OF_RHYTHMS,
    COVARIANCE_OF_THETA_AND_ALPHA,
    COVARIANCE_WITH_DELAYS,
    COVARIANCE_OF_RESPONSES,
    LINEAR_IN_POWER,
    LINEAR_IN_TIME,
    CONFORMER_OF_RHYTHMS,
    CONFORMER_OF_RESPONSES,
    SHALLOW,
    EEGNET,
]


def space(trial):
    """Draw a family, and one configuration of it."""
    families = {
        "covariance": covariance,
        "linear": linear,
        "conformer": conformer,
        "shallow": shallow,
        "eegnet": network,
    }
    return families[trial.suggest_categorical("model/name", list(families))](trial)


def covariance(trial):
    """Draw a covariance model."""
    prototypes = trial.suggest_categorical("model/prototypes", [0, 4]) if draws_bands(trial) else 0
    trial.suggest_float("model/shrinkage", 1e-3, 1e-1, log=True)
    trial.suggest_categorical("model/scale", ["none", "window", "band"])
    trial.suggest_categorical("model/standardise", ["all", "half"])
    if prototypes:
        return RESPONSES | {"model/components": 32}
    if trial.suggest_int("model/order", 1, 3) > 1:
        trial.suggest_float("model/lag", 0.01, 0.05, log=True)
    return {"model/components": 24}  # of more channels


def draws_bands(trial):
    """Draw frequency bands; return whether they are not those of a name."""
    drawn = trial.suggest_categorical("model/bands", ["rhythms", "theta-alpha", "even"]) == "even"
    if drawn:
        trial.suggest_float("model/low", 1.0, 6.0)
        trial.suggest_float("model/high", 10.0, 45.0)
        trial.suggest_int("model/n_bands", 1, 9)
    return drawn


def linear(trial):
    """Draw a linear model."""
    if trial.suggest_categorical("model/predictors", ["band-power", "time-courses"]) == "band-power":
        draws_bands(trial)
        return {}
    trial.suggest_int("model/components", 8, 32, step=8)
    return RESPONSES | {"model/scale": "window"}


def conformer(trial):
    """Draw a Conformer."""
    trial.suggest_categorical("model/features", ["mean", "log-power"])
    return shallow(trial) | {"model/depth": 1, "model/hidden": 32}


def shallow(trial):
    """Draw a ShallowFBCSPNet."""
    trial.suggest_categorical("model/kernels", ["rate", "paper", "short"])
    return network(trial)


def network(trial):
    """Draw what all networks have."""
    trial.suggest_float("optim/lr", 2e-4, 5e-3, log=True)
    trial.suggest_float("model/dropout", 0.1, 0.6)
    trial.suggest_categorical("model/norm", ["channel", "window"])
    if trial.suggest_categorical("mixup/name", ["none", "mixup"]) != "none":
        trial.suggest_float("mixup/alpha", 0.1, 1.0)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) != "none":
        trial.suggest_float("sam/rho", 0.01, 0.2, log=True)
    return {"epochs": 16, "patience": 6}
