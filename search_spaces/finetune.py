"""Fine-tune a pretrained encoder: all of it, its head only, or low-rank changes; with which rates, and how deep.

Why: with few labels it is not known beforehand how much of an encoder should be trained. Full training with a smaller
rate for lower blocks, LoRA and a frozen encoder are drawn in one search, all from one `--init RUN`.

Expect: the start points are the three ways at usual rates. model/* must be as pretrained (these are the defaults of
`raypipe pretrain`). Trials of one seed start from the same weights, so their weights can be averaged.
"""

START = [
    {"init/tune": "full", "init/layer_decay": 0.75, "optim/lr": 5e-4, "model/dropout": 0.1},
    {"init/tune": "lora", "init/rank": 4, "optim/lr": 1e-3, "model/dropout": 0.1},
    {"init/tune": "frozen", "optim/lr": 5e-3, "model/dropout": 0.1},
]


def space(trial):
    """Draw one configuration."""
    tune = trial.suggest_categorical("init/tune", ["full", "lora", "frozen"])
    if tune == "full":
        trial.suggest_float("init/layer_decay", 0.5, 1.0)
    if tune == "lora":
        trial.suggest_categorical("init/rank", [2, 4, 8])
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    trial.suggest_float("model/dropout", 0.0, 0.4)
    return {
        "seed": 0,  # of all trials, so that their weights can be averaged
        "init/name": "pretrained",
        "model/name": "vit",
        "model/filters": 64,
        "model/heads": 4,
        "model/depth": 4,
        "optim/weight_decay": 0.05,
        "epochs": 16,
        "patience": 6,
    }
