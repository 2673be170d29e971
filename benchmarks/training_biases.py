"""Show biases of training on data without an effect, as they were and as they are.

    python benchmarks/training_biases.py [--repeats 10] [--quick]

With `sampling=subject` every person is drawn equally often. Class weights, centre, scale and the mean that predictions
shrink to were computed by windows; they are computed under the drawn distribution. The penalty of the linear probe was
chosen by windows left out; it is chosen by people. Biases before BatchNorm were moved by rounding errors.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

from benchmarks import report
from benchmarks.toys import ToyWindows, tiny
from raypipe.models.network import Network
from raypipe.pretraining.linear_probe import RIDGE_STRENGTHS, fit_probe
from raypipe.training import trainer as training
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.sampling import target_scale
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer

FEW, MANY, NEW = 20, 4, 6
"""People of class 0 with few windows, of class 1 with many, and new people."""
WINDOWS_OF_FEW, WINDOWS_OF_MANY = 6, 60
FEATURES = 30


class ByWindows(FoldData):
    """Weights and scales by windows, as they were."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.chances = np.full(len(self.train), 1.0 / len(self.train))
        if not self.n_classes:
            targets = self.windows.targets[self.train]
            self.centre, self.scale = target_scale(targets, self.config.target_scale)
            self.out_centre = self.centre + self.config.shrink * (float(targets.mean()) - self.centre)
            self.out_scale = self.scale * (1.0 - self.config.shrink)


def noise(seed: int, *, classes: bool) -> tuple[ToyWindows, np.ndarray, np.ndarray]:
    """Return windows of noise, and the numbers of those to train on and of those of new people."""
    toy = ToyWindows(subjects=FEW + MANY + NEW, each=WINDOWS_OF_MANY, classes=True)
    toy.x = np.random.default_rng(seed).normal(size=toy.x.shape).astype(np.float32)
    person, window = np.divmod(np.arange(len(toy)), WINDOWS_OF_MANY)
    toy.targets = (person >= FEW).astype(np.int64 if classes else np.float32)
    if not classes:
        toy.classes, toy.kind, toy.metric, toy.n_outputs = [], "regression", "nrmse", 1
    old = (person < FEW + MANY) & ((person >= FEW) | (window < WINDOWS_OF_FEW))
    return toy, np.flatnonzero(old), np.flatnonzero((person >= FEW + MANY) & (window < WINDOWS_OF_FEW))


def mean_prediction(kind: type[FoldData], seed: int, epochs: int, *, classes: bool) -> float:
    """Return the mean prediction for new people: of class 1, or of the value."""
    toy, train, new = noise(seed, classes=classes)
    options = {} if classes else {"shrink": 0.5}
    config = tiny(sampling="subject", batch_size=32, epochs=epochs, seed=seed, **options)
    one = SupervisedTrainer(config, kind(config, WindowLoader(toy), train, new, fold=0))  # type: ignore[arg-type]
    for _ in range(epochs):
        predictions = one.run_epoch().predictions
    return float(predictions[:, -1].mean())


def drawn_balance(repeats: int, epochs: int) -> list[list[str]]:
    """Return rows of the table: predictions of networks that were trained on noise."""
    rows = []
    share = MANY / (FEW + MANY)
    for classes, name, truth in ((True, "P(class 1), weighted to .5", 0.5), (False, "value, shrunk by half", share)):
        found = [
            [mean_prediction(kind, seed, epochs, classes=classes) for seed in range(repeats)]
            for kind in (ByWindows, FoldData)
        ]
        before, after = (f"{np.mean(each):.3f} ± {np.std(each) / np.sqrt(repeats):.3f}" for each in found)
        rows.append([f"{name}, noise", f"{truth:.3f}", before, after])
    return rows


def probe_errors(people: int, seed: int) -> tuple[float, float]:
    """Return the NRMSE on new people of a probe with a penalty chosen by windows, and chosen by people."""
    rng = np.random.default_rng([people, seed])

    def draw(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        target, own = rng.normal(size=n), rng.normal(size=(n, FEATURES))
        own[:, 0] += target
        x = np.repeat(own, 20, axis=0) + 0.3 * rng.normal(size=(20 * n, FEATURES))
        return x.astype(np.float32), np.repeat(target, 20), np.repeat(np.arange(n), 20)

    (x, y, subjects), (x_new, y_new, _) = draw(people), draw(100)
    ridge = RidgeCV(alphas=RIDGE_STRENGTHS).fit((x - x.mean(0)) / x.std(0), y)
    weight, bias = fit_probe(x, y, subjects, 0)
    guesses = ridge.predict((x_new - x.mean(0)) / x.std(0)), x_new @ weight.numpy()[0] + float(bias)
    by_windows, by_people = (float(np.sqrt(np.mean((guess - y_new) ** 2)) / y_new.std()) for guess in guesses)
    return by_windows, by_people


def probe(repeats: int, sizes: Sequence[int]) -> list[list[str]]:
    """Return rows of the table: errors of probes on new people."""
    rows = []
    for people in sizes:
        before, after = np.mean([probe_errors(people, seed) for seed in range(repeats)], axis=0)
        rows.append([f"NRMSE of the probe on new people, {people} to learn from", "", f"{before:.3f}", f"{after:.3f}"])
    return rows


@contextmanager
def trained_biases() -> Iterator[None]:
    """Train the biases before BatchNorm, as it was."""
    make = training.make_network

    def made(*args: object) -> Network:
        network = make(*args)  # type: ignore[arg-type]
        return network.requires_grad_(True)

    with mock.patch.object(training, "make_network", made):
        yield


def stacked_difference(epochs: int) -> float:
    """Return the largest difference between predictions of folds trained alone and stacked."""
    toy = ToyWindows(subjects=12, each=12)
    person = np.arange(len(toy)) // 12
    config = tiny(batch_size=32, epochs=epochs)

    def folds() -> list[SupervisedTrainer]:
        loader = WindowLoader(toy)  # type: ignore[arg-type]
        sides = [(np.flatnonzero(person % 3 != k), np.flatnonzero(person % 3 == k)) for k in range(3)]
        return [SupervisedTrainer(config, FoldData(config, loader, *side, fold=k)) for k, side in enumerate(sides)]

    alone, stack = folds(), StackedTrainer(folds())
    largest = 0.0
    for _ in range(epochs):
        pairs = zip([one.run_epoch() for one in alone], stack.run_epoch(), strict=True)
        largest = max(largest, *(float(np.abs(one.predictions - other.predictions).max()) for one, other in pairs))
    return largest


def measure(args: argparse.Namespace) -> report.Result:
    """Train and compare."""
    repeats, epochs, sizes = (1, 1, (12,)) if args.quick else (args.repeats, 8, (12, 24, 48, 96))
    torch.set_num_threads(1)
    found = report.result(f"Biases of training: {repeats} repeats")
    rows = drawn_balance(repeats, epochs) + probe(10 * repeats, sizes)
    with trained_biases():
        before = stacked_difference(epochs)
    rows.append(
        ["largest difference of stacked predictions", "0", f"{before:.0e}", f"{stacked_difference(epochs):.0e}"]
    )
    report.add_table(found, "Data without an effect", ("", "truth", "as it was", "as it is"), rows)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="networks, and a tenth of the probes")
    parser.add_argument("--quick", action="store_true", help="one repeat, one epoch")
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
