"""Search over pretraining: contrastive learning, scored by a linear probe of the features.

Why: the temperature, the strength of the views, and the use of a subject's other windows as negatives decide what the
features encode: what the brain does, or whose brain it is.

Expect: each fold is pretrained on its training subjects only, and the probe's predictions of the others are scored. So
the score has no leak, and a trial costs one pretraining per fold. Pretrain with the best: `raypipe pretrain simclr`.
"""

START = [
    {
        "pretrain/temperature": 0.5,
        "pretrain/strength": 1.0,
        "pretrain/negatives": "all",
        "model/patch": 25,
        "optim/lr": 1e-3,
        "model/depth": 4,
    }
]


def space(trial):
    """Draw one configuration."""
    trial.suggest_float("pretrain/temperature", 0.05, 1.0, log=True)
    trial.suggest_float("pretrain/strength", 0.3, 1.5)
    if trial.suggest_categorical("pretrain/negatives", ["all", "other-subject", "same-subject"]) == "same-subject":
        trial.suggest_float("pretrain/weight", 1.0, 8.0, log=True)
    trial.suggest_categorical("model/patch", [10, 25, 50])
    trial.suggest_float("optim/lr", 2e-4, 4e-3, log=True)
    trial.suggest_int("model/depth", 2, 6)
    return {
        "pretrain/name": "simclr",
        "model/name": "vit",
        "model/filters": 64,
        "model/heads": 4,
        "epochs": 20,
        "patience": 20,
        "batch_size": 64,
    }
