"""Pretraining itself, searched: masked autoencoders, judged by what a linear probe reads off their features.

Why: how much is masked, and how long a patch is, decide whether rebuilding can be done by drawing lines between
neighbours (then nothing is learnt) or needs to know what EEG looks like.

Expect: each fold is pretrained on its training subjects alone, and the probe's predictions of the others are the score;
so it is leak-free, and costs as many pretrainings as there are folds. Pretrain with the winner: `raypipe pretrain mae`.
"""

START = [{"pretrain/mask": 0.75, "model/patch": 25, "optim/lr": 1e-3, "model/depth": 4}]


def space(trial):
    """Draw one configuration."""
    trial.suggest_float("pretrain/mask", 0.4, 0.85)
    trial.suggest_categorical("model/patch", [10, 25, 50])
    trial.suggest_float("optim/lr", 2e-4, 4e-3, log=True)
    trial.suggest_int("model/depth", 2, 6)
    return {
        "pretrain/name": "mae",
        "model/name": "vit",
        "model/filters": 64,
        "model/heads": 4,
        "epochs": 20,
        "patience": 20,
        "batch_size": 64,
    }
