"""Time a draw of the trial queue after 1,000 and 5,000 trials, beside Optuna's own on the same trials in memory.

    python benchmarks/draws.py [--trials 1000 5000]

Both draw by TPE with the same options. The queue reads the study's journal and records the trial in the run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import optuna

from benchmarks import report
from benchmarks.timing import take_turns
from benchmarks.toys import ToyWindows, make_run
from raypipe.core.search_space import SearchSpace, load_space
from raypipe.core.shipped import shipped_space
from raypipe.search.sampler import TrialSampler
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.run_store import RunStore


def ended_trials(space: SearchSpace, count: int) -> list[optuna.trial.FrozenTrial]:
    """Return trials that a random search has ended; half were pruned."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rng = np.random.default_rng(0)
    for number in range(count):
        trial = study.ask()
        space(trial, seed=number)
        pruned = number % 2 == 1
        for epoch in range(1, 6 if pruned else 21):
            trial.report(float(rng.random()), epoch)
        study.tell(trial, None if pruned else float(rng.random()), state=_state(pruned))
    return list(study.get_trials(deepcopy=False))


def _state(pruned: bool) -> optuna.trial.TrialState:
    return optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE


def queue_of(run: RunStore, trials: Sequence[optuna.trial.FrozenTrial]) -> StudyQueue:
    """Return the queue of a run whose study has these trials.

    They are added once it is open: it would hand out trials again that the run has no results of.
    """
    queue = StudyQueue(run, ToyWindows(subjects=20), open_journal(run), trials=None, parallel=2)  # type: ignore[arg-type]
    for _ in run.space.start:  # these are not drawn
        queue.next()
    queue.study.add_trials(trials)
    return queue


def draw_by_queue(queue: StudyQueue) -> int:
    """Draw a trial.

    Raises
    ------
    RuntimeError
        The queue has handed out a trial that was there.
    """
    before = len(queue.study.get_trials(deepcopy=False))
    number = queue.next()
    if number != before:
        raise RuntimeError(f"of {before} trials the queue has handed out trial {number}, and drawn none")
    return number


def study_of(space: SearchSpace, trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.Study:
    """Return a study in memory that has these trials and draws as the queue does."""
    study = optuna.create_study(sampler=TrialSampler(0, 0, parallel=2), direction="minimize")
    study.add_trials(trials)
    return study


def draw(space: SearchSpace, study: optuna.Study) -> object:
    """Draw a configuration."""
    return space(study.ask(), seed=0)


def measure(args: argparse.Namespace) -> report.Result:
    """Time draws after each number of trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = report.result(f"A draw after {' and '.join(map(str, args.trials))} trials")
    space = load_space(args.space or shipped_space("focal_mixup_sam"))
    for count in args.trials:
        trials = ended_trials(space, count)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = make_run(Path(folder) / "run", ToyWindows(subjects=20), space=space.source)
            queue, study = queue_of(run, trials), study_of(space, trials)
            contestants: dict[str, Callable[[], object]] = {
                "queue": partial(draw_by_queue, queue),
                "Optuna": partial(draw, space, study),
            }
            times = take_turns(contestants, seconds=0.0, rounds=args.rounds)
        mark = f"after {count}: "
        report.add_times(found, times, mark)
        report.add_ratio(found, f"{mark}queue / Optuna", times["Optuna"], times["queue"])
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--space", type=Path, help="search space; else focal_mixup_sam")
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
