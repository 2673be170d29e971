"""A network of one's own, with SAM or without."""

START = [{"optim/lr": 3e-3, "model/args/filters": 16, "sam/name": "sam"}]


def space(trial):
    trial.suggest_float("optim/lr", 1e-3, 1e-2, log=True)
    trial.suggest_categorical("model/args/filters", [8, 16, 32])
    trial.suggest_categorical("sam/name", ["none", "sam"])
    return {"model/name": "my_nets.py:Net", "epochs": 15, "patience": 5}
