"""Fine-tune a Conformer that SimCLR has pretrained: all of it, its head only, or low-rank changes.

    raypipe pretrain simclr --data STORE --run PRETRAINED --set model/name=conformer

Why: the filters of the stem can be learnt from recordings without labels. The new head is large (it sees every token),
so the first point trains everything, with small rates below the head.

Expect: model/* must be as pretrained (these are the values of the command above), and so must the channels. With a
frozen or low-rank trunk, BatchNorm keeps the statistics of pretraining.
"""

START = [
    {"init/tune": "full", "init/layer_decay": 0.75, "optim/lr": 5e-4, "model/dropout": 0.25, "sam/name": "none"},
    {"init/tune": "full", "init/layer_decay": 0.75, "optim/lr": 5e-4, "model/dropout": 0.25, "sam/name": "sam"},
    {"init/tune": "frozen", "optim/lr": 1e-3, "model/dropout": 0.25, "sam/name": "none"},
]


def space(trial):
    """Draw one configuration."""
    tune = trial.suggest_categorical("init/tune", ["full", "lora", "frozen"])
    if tune == "full":
        trial.suggest_float("init/layer_decay", 0.5, 1.0)
    if tune == "lora":
        trial.suggest_categorical("init/rank", [2, 4, 8])
    trial.suggest_categorical("sam/name", ["none", "sam"])
    trial.suggest_float("optim/lr", 1e-4, 3e-3, log=True)
    trial.suggest_float("model/dropout", 0.0, 0.5)
    return {
        "seed": 0,  # of all trials, so that their weights can be averaged
        "init/name": "pretrained",
        "model/name": "conformer",
        "model/filters": 64,
        "model/heads": 4,
        "model/depth": 4,
        "epochs": 16,
        "patience": 6,
    }
