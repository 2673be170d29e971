"""Search over pretraining: masked autoencoders, scored by a linear probe of their features.

Why: the share of masked patches and their length decide whether interpolation is enough to rebuild a patch, which
teaches nothing, or whether the network has to learn what EEG looks like.

Expect: each fold is pretrained on its training subjects only, and the probe's predictions of the others are scored. So
the score has no leak, and a trial costs one pretraining per fold. Pretrain with the best: `raypipe pretrain mae`.
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
