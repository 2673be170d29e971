"""Model soups (Wortsman et al. 2022, arXiv:2203.05482): the weights of networks that share an initialisation, averaged.

Networks are averaged fold by fold, and every fold's soup answers that fold's out-of-fold windows. Which trials go in is
one choice for all folds: made fold by fold, each soup would be picked on the very windows that it is scored on alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raypipe.core.errors import UserError
from raypipe.core.folds import Index
from raypipe.core.metrics import get_metric, score
from raypipe.core.progress import Progress
from raypipe.core.seeds import derive_seed
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import Soup, build_module, fold_tensors, read_soup
from raypipe.ensembles.methods import ranking, splits, with_snapshots
from raypipe.ensembles.oof import Floats, Members
from raypipe.models.ensemble import EnsembleModule
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore

UNIFORM, GREEDY, SWA = "uniform-soup", "soup", "swa"
SOUPS = {
    UNIFORM: "the mean of all kindred members' weights",
    GREEDY: "the mean of weights, member by member if it helps",
    SWA: "the mean of the weights of the best trial and its snapshots (Izmailov et al. 2018, arXiv:1803.05407)",
}
HALVES = 2
"""Groups of subjects: ingredients are chosen on one, and the soup is scored on the other, both ways."""
BATCH = 256
MOST = 64 * BATCH
"""Training windows that BatchNorm's statistics are taken over; of more, so many are drawn."""

Places = tuple[int, ...]
Answers = Callable[[Places], Floats]


def average(ingredients: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of networks' states; what is no floating-point number (BatchNorm's counts) is copied from the first."""
    return {
        name: torch.stack([each[name].double() for each in ingredients]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in ingredients[0].items()
    }


@torch.no_grad()
def update_batchnorm(network: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Take BatchNorm's statistics anew over batches of windows, as their cumulative average; whether there are any.

    The mean of networks does not have the mean of their activations' statistics. All else stays in evaluation mode.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    before = [(layer.momentum, layer.training) for layer in layers]
    if not layers:
        return False
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the cumulative average
            layer.train()
        for x_BCT in batches:
            network(x_BCT)
    finally:
        for layer, (momentum, training) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer.train(training)
    return True


# Who may be averaged with whom


def different_start(run: RunStore, a: int, b: int) -> str | None:
    """Why the networks of two trials cannot be averaged, or None."""
    one, other = run.config(a), run.config(b)
    for name in type(one.model).model_fields:
        mine, yours = getattr(one.model, name), getattr(other.model, name)
        if name != "dropout" and mine != yours:
            return f"they are other networks, model/{name} {mine} and {yours}"
    starts = [result.initial if (result := run.result(number)) is not None else [] for number in (a, b)]
    for number, start in zip((a, b), starts, strict=True):
        if not start or not all(start):
            return f"it is not recorded what trial {number} started from"
    if starts[0] == starts[1]:
        return None
    if one.seed != other.seed:
        return f"they started from other weights, seeds {one.seed} and {other.seed}"
    return "they started from other weights"


def require_same_start(run: RunStore, members: Sequence[Member]) -> None:
    """Refuse members whose networks cannot be averaged.

    Raises
    ------
    UserError
        Names two trials, and why.
    """
    first = members[0].trial
    for number in dict.fromkeys(member.trial for member in members[1:]):
        if number != first and (reason := different_start(run, first, number)):
            raise UserError(f"no soup of trials {first} and {number}: {reason}")


def same_start(run: RunStore, members: Sequence[Member]) -> list[Member]:
    """The best-placed of these members that has kin among them, and its kin, in the order given.

    Raises
    ------
    UserError
        No two of them can be averaged.
    """

    @functools.cache
    def apart(a: int, b: int) -> bool:
        return a != b and different_start(run, a, b) is not None

    for place, one in enumerate(members):
        # Kinship is an equivalence, so nobody before this one is its kin.
        found = [one, *(other for other in members[place + 1 :] if not apart(one.trial, other.trial))]
        if len(found) > 1:
            return found
    trials = [member.trial for member in members]
    names = ", ".join(map(str, trials))
    if len(trials) < 2:
        raise UserError(f"--method soup: only trial {names} is there, and a soup needs two")
    reason = different_start(run, trials[0], trials[1])
    raise UserError(
        f"--method soup: no two of the trials {names} can be averaged (trials {trials[0]} and {trials[1]}: {reason}); "
        "a soup's trials share model/ and seed, or the encoder of --init and seed"
    )


# Choosing ingredients


def greedy(members: Members, answers: Answers, inside: NDArray[np.bool_]) -> Places:
    """Places of the ingredients: in order of their own score, each stays if the score does not fall (recipe 1).

    Parameters
    ----------
    members
        Candidates and their own answers.
    answers
        What the soup of some of them answers (N, outputs).
    inside
        (N,) the windows to choose on.
    """
    some = members.rows(inside)
    sign = get_metric(members.metric).sign

    def loss(answers_NO: Floats) -> float:
        return sign * score(members.metric, some.targets, answers_NO)

    first, *others = ranking(some)
    kept: Places = (first,)
    reached = loss(some.answers[first])
    for place in others:
        tried = tuple(sorted((*kept, place)))
        found = loss(answers(tried)[inside])
        if found <= reached:  # false of a score that is undefined
            kept, reached = tried, found
    return kept


class SoupCandidates:
    """Makes soups of a run's members; what each answers is kept, for choices on other subjects try the same ones.

    Parameters
    ----------
    run, windows
        The run and its windows.
    members
        Out-of-fold answers of the candidates.
    ingredients
        The candidates.
    progress
        Called with folds done, folds in all, and a text.
    """

    def __init__(
        self,
        run: RunStore,
        windows: WindowStore,
        members: Members,
        ingredients: Sequence[Member],
        progress: Progress | None = None,
    ) -> None:
        require_same_start(run, ingredients)
        self.run, self.windows, self.members, self.ingredients = run, windows, members, list(ingredients)
        self.progress = progress
        folds = range(run.folds.n_folds)
        self._weights = [[fold_tensors(run, member, fold) for fold in folds] for member in ingredients]
        self._known: dict[Places, Floats] = {(p,): members.answers[p] for p in range(len(self.ingredients))}

    def soup(self, places: Places) -> Soup:
        """The soup of some members: for each fold the averaged weights, with statistics of its training windows."""
        folds = []
        for fold in range(self.run.folds.n_folds):
            tensors = average([self._weights[place][fold] for place in places])
            if len(places) > 1:
                self._refresh(places, fold, tensors)
            folds.append(tensors)
        return Soup([self.ingredients[place] for place in places], folds)

    def answers(self, places: Places) -> Floats:
        """What the soup of some members answers out of fold (N, outputs); of one, what it has left."""
        if places not in self._known:
            soup = self.soup(places)
            out_NO = np.empty_like(self.members.goals)
            for fold in range(self.run.folds.n_folds):
                inside = self.members.folds == fold
                out_NO[inside] = self._predict(
                    self._module(places[0], fold, soup.folds[fold]), self.members.windows[inside]
                )
                if self.progress:
                    self.progress(fold + 1, self.run.folds.n_folds, f"folds of a soup of {len(places)}")
            self._known[places] = out_NO
        return self._known[places]

    def _refresh(self, places: Places, fold: int, tensors: dict[str, Tensor]) -> None:
        network = self._module(places[0], fold, tensors).members[0]
        if update_batchnorm(network, self._training(fold)):
            tensors |= {f"model.{name}": tensor for name, tensor in network.state_dict().items()}

    def _module(self, place: int, fold: int, tensors: Mapping[str, Tensor]) -> EnsembleModule:
        return build_module(*read_soup(self.run, self.windows, self.ingredients[place], {fold: tensors}))

    def _training(self, fold: int) -> Iterable[Tensor]:
        """A fold's training windows in whole batches, mixed: neighbours are of one subject, and vary too little."""
        train = self.run.folds.split(self.windows.subjects, fold)[0]
        rng = np.random.default_rng(derive_seed("soup", self.run.info.seed, fold))
        order = rng.permutation(train)[:MOST]
        for step in range(max(1, len(order) // BATCH)):
            yield torch.from_numpy(self.windows.gather(order[step * BATCH : (step + 1) * BATCH]))

    @torch.no_grad()
    def _predict(self, module: EnsembleModule, index: Index) -> Floats:
        starts = range(0, len(index), BATCH)
        parts = [
            module.predict_members(torch.from_numpy(self.windows.gather(index[at : at + BATCH])))[0][0] for at in starts
        ]
        return np.asarray(torch.cat(parts).double().numpy())


@dataclass(frozen=True)
class SoupResult:
    """A soup, and what it is worth out of fold."""

    soup: Soup
    answers: Floats
    """(N, outputs) out of fold. Of a greedy soup optimistic: its ingredients were chosen on the same windows."""
    nested: Floats
    """(N, outputs) of soups whose ingredients were chosen on the other half of the subjects."""


def make_soup(pot: SoupCandidates, name: str) -> SoupResult:
    """Make the soup of that name of all that is in the pot.

    Raises
    ------
    UserError
        It is to be of snapshots, and no trial in the pot has any.
    """
    members = pot.members
    if name == UNIFORM:
        places = tuple(range(len(pot.ingredients)))
        return SoupResult(pot.soup(places), pot.answers(places), pot.answers(places))
    if name == SWA and len(with_snapshots(members)) < 2:
        raise UserError("--method swa: no trial has kept snapshots; they come with optim/schedule=cyclic")

    def choose(inside_N: NDArray[np.bool_]) -> Places:
        return tuple(with_snapshots(members.rows(inside_N))) if name == SWA else greedy(members, pot.answers, inside_N)

    nested_NO = np.empty_like(members.goals)
    for fit_N, judge_N in splits(members, HALVES):
        nested_NO[judge_N] = pot.answers(choose(fit_N))[judge_N]
    places = choose(np.ones(len(members.targets), dtype=bool))
    return SoupResult(pot.soup(places), pot.answers(places), nested_NO)


def soup_sentence(name: str, made: SoupResult, members: Sequence[Member], family: Sequence[Member]) -> str:
    """What was averaged, what was left out and why, and how the choice bears on the scores."""
    used = ", ".join(map(str, made.soup.members))
    if len(made.soup.members) > 1:
        words = f"Each fold's network is the mean of the weights of {used}."
    else:
        words = f"The greedy soup is {used} alone: averaging any other with it made the score worse."
    related = {member.trial for member in family}
    strangers = [str(n) for n in dict.fromkeys(member.trial for member in members) if n not in related]
    if strangers and name != SWA:
        one = len(strangers) == 1
        words += (
            f" Trial{'' if one else 's'} {', '.join(strangers)} {'was' if one else 'were'} not tried: "
            f"{'it is another network or' if one else 'they are other networks or'} started from other weights."
        )
    if name == SWA:
        words += " Its nested score is of the trial that was best on half of the subjects, scored on the other half."
    if name == GREEDY:
        words += (
            " The soup's own out-of-fold score is optimistic, for its ingredients were chosen on those very windows; "
            "the nested one is of soups chosen on half of the subjects and scored on the other half, both ways."
        )
    return words
