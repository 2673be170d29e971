"""Search on NeuralBench's split of eegmat (task ``mental_arithmetic``), and score its eight people.

NeuralBench (facebookresearch/neuroai) cuts windows of 5 s every 5 s, and splits people by scikit-learn's
``train_test_split(test_size=.2, random_state=33)`` over the 36 in order. The eight test people are held out here, and
all choices are made by the other 28: configurations, epochs, members, method and decision threshold. NeuralBench
publishes balanced accuracies of windows, as mean and standard deviation over three seeds. Here a seed is that of the
folds, the sampler and the networks. The interval is a bootstrap over the eight people.

With ``--align subject`` the windows of each person are whitened by their mean covariance, without labels. The models
that NeuralBench publishes are given no such thing.

    python benchmarks/neuralbench.py BIDS-FOLDER [--align subject] [--seeds 3] [--trials 16] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.timing import where_and_when
from raypipe import Run, prepare, sweep

TEST_PEOPLE = [f"sub-{number}" for number in ("05", "08", "17", "21", "22", "30", "31", "32")]
PUBLISHED = {
    "REVE (pretrained)": "73.9 ± 2.7",
    "features": "69.8",
    "ShallowFBCSP": "69.7 ± 2.6",
    "LaBraM (pretrained)": "68.7 ± 7.5",
    "CBraMod (pretrained)": "68.5",
    "EEGConformer": "67.0 ± 9.8",
    "EEGNet": "48.5 ± 4.1",
    "chance": "49.6",
}
"""Balanced accuracies (%) that NeuralBench gives."""


def search(store: Path, where: Path, space: Path, seed: int, trials: int) -> dict[str, float]:
    """Return the scores of one search: of the ensemble and its interval, of the best trial, and nested."""
    run: Run = sweep(
        space,
        store,
        where,
        trials=trials,
        folds=4,
        seed=seed,
        held_out=TEST_PEOPLE,
        metric="balanced-accuracy",
    )
    table = run.ensemble().table
    return {
        "test": float(table["held_out"]["ensemble"]),
        "low": float(table["low"]["ensemble"]),
        "high": float(table["high"]["ensemble"]),
        "best trial": float(table["held_out"]["best single trial"]),
        "nested": float(table["nested"]["ensemble"]),
    }


def main() -> None:
    """Search once for each seed, and print the scores beside those that are published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids", type=Path, help="BIDS folder of eegmat")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--align", choices=["subject"], help="whiten the windows of each person")
    parser.add_argument("--space", type=Path, default=Path("search_spaces/all_families.py"))
    parser.add_argument("--out", type=Path, default=Path("build/neuralbench"))
    asked = parser.parse_args()
    store = asked.out / "store"
    prepare(asked.bids, "bids-task:rest,arithmetic", store, window=5.0, stride=5.0, align=asked.align)
    print(where_and_when())
    print("| seed | test | 95 % interval over people | best trial | nested |\n|---|---|---|---|---|")
    scores = []
    for seed in range(asked.seeds):
        row = search(store, asked.out / f"run-{seed}", asked.space, seed, asked.trials)
        scores.append(100 * row["test"])
        cells = [f"{100 * row[name]:.1f}" for name in ("test", "low", "high", "best trial", "nested")]
        print(f"| {seed} | {cells[0]} | {cells[1]} to {cells[2]} | {cells[3]} | {cells[4]} |", flush=True)
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    print("\n| model | balanced accuracy (%) |\n|---|---|")
    print(f"| **raypipe** | **{statistics.mean(scores):.1f}{spread}** |")
    for name, published in PUBLISHED.items():
        print(f"| {name} | {published} |")


if __name__ == "__main__":
    main()
