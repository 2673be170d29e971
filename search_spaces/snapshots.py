"""Several networks from each training: a cyclic learning rate, with a member of the ensemble at the end of each cycle.

Why: a snapshot ensemble costs one training, where an ensemble of as many networks costs several (Huang et al. 2017).
The mean of the snapshots' weights is often in a flatter minimum than each of them (Izmailov et al. 2018). Snapshots
help where a trial takes long and few can be run. With many trials, different configurations make more different errors
than snapshots of one. `raypipe ensemble RUN --method all` shows both: `snapshots` and `swa`.

Expect: trials are scored and stopped at the ends of cycles only. Cycles of fewer than about ten epochs gain nothing.
"""

START = [{"optim/lr": 2e-3, "optim/cycles": 4, "sam/name": "none", "model/dropout": 0.3}]


def space(trial):
    """Draw one configuration."""
    trial.suggest_float("optim/lr", 5e-4, 1e-2, log=True)
    trial.suggest_int("optim/cycles", 3, 6)
    trial.suggest_float("model/dropout", 0.1, 0.5)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) == "sam":
        trial.suggest_float("sam/rho", 0.02, 0.2, log=True)
    return {"optim/schedule": "cyclic", "epochs": 40, "patience": 20, "model/kernels": "short", "model/hidden": 64}
