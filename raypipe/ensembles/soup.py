"""Model soups (Wortsman et al. 2022, arXiv:2203.05482): averaged weights of networks that share an initialization.

Networks are averaged fold by fold, and the soup of a fold predicts that fold's out-of-fold windows. All folds average
the same members: a choice for each fold would be made on the very windows that the soup is scored on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raypipe.core.errors import UserError
from raypipe.core.folds import Index
from raypipe.core.metrics import get_metric
from raypipe.core.progress import Progress
from raypipe.core.seeds import derive_seed
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import CPU, MergedNetworks, build_module, fold_tensors, member_windows, merged_spec
from raypipe.ensembles.methods import NO_SNAPSHOTS
from raypipe.ensembles.oof import Floats, Mask, MemberPredictions, subject_splits
from raypipe.ensembles.weights import best_trial_with_snapshots
from raypipe.models.ensemble import EnsembleModule
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.training.transfer import to_device

UNIFORM, GREEDY, SWA = "uniform-soup", "soup", "swa"
SOUPS = {
    UNIFORM: "the mean of all compatible members' weights",
    GREEDY: "the mean of compatible members' weights, each added if the score does not get worse",
    SWA: "the mean of the weights of the best trial and its snapshots",
}
"""Soups by name."""
SOUP_GROUPS = 2
"""Groups of subjects: members are chosen on one and the soup is scored on the other, both ways."""
BATCH_SIZE = 256
MAX_STATISTICS_WINDOWS = 64 * BATCH_SIZE
"""Maximum number of training windows that BatchNorm's statistics are computed from, drawn at random."""

Indices = tuple[int, ...]
PredictFunction = Callable[[Indices], Floats]


# Averaging


def average(networks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average networks' states; integers, such as BatchNorm's counts, are copied from the first."""
    return {
        name: torch.stack([each[name].double() for each in networks]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in networks[0].items()
    }


@torch.no_grad()
def update_batchnorm(network: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Recompute BatchNorm's statistics as a cumulative average over batches; return whether there are any.

    The averaged weights do not have the average of their activations' statistics. All other layers stay in evaluation
    mode.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    layers = [layer for layer in network.modules() if isinstance(layer, kinds) and layer.track_running_stats]
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


# Compatible members


def compatible_members(run: RunStore, members: Sequence[Member]) -> list[Member]:
    """Return the first member whose weights can be averaged with another's, and all that it can be averaged with.

    Raises
    ------
    UserError
        No two of them can be averaged.
    """

    @functools.cache
    def compatible(a: int, b: int) -> bool:
        return a == b or incompatibility(run, a, b) is None

    for index, one in enumerate(members):
        # Compatibility is an equivalence: none of the members before this one is compatible with it.
        found = [one, *(other for other in members[index + 1 :] if compatible(one.trial, other.trial))]
        if len(found) > 1:
            return found
    trials = [member.trial for member in members]
    names = ", ".join(map(str, trials))
    if len(trials) < 2:
        raise UserError(f"--method soup: there is only trial {names}, and a soup needs two")
    reason = incompatibility(run, trials[0], trials[1])
    raise UserError(
        f"--method soup: no two of the trials {names} can be averaged (trials {trials[0]} and {trials[1]}: {reason}); "
        "a soup's trials share model/ and seed, or the encoder of --init and seed (a constant 'seed' in the space)"
    )


def incompatibility(run: RunStore, a: int, b: int) -> str | None:
    """Return why the networks of two trials cannot be averaged, or None."""
    one, other = run.config(a), run.config(b)
    if one.data.store != other.data.store:
        return f"they are trained on different stores, {one.data.store} and {other.data.store}"
    for name in type(one.model).model_fields:
        value_a, value_b = getattr(one.model, name), getattr(other.model, name)
        if name != "dropout" and value_a != value_b:
            return f"they are different networks, model/{name} {value_a} and {value_b}"
    if one.model.closed_form:
        return f"{one.model.name} models are fitted in closed form, from no initial weights"
    starts = [result.initial if (result := run.result(number)) is not None else [] for number in (a, b)]
    for number, start in zip((a, b), starts, strict=True):
        if not start or not all(start):
            return f"the initial weights of trial {number} are not recorded"
    if starts[0] == starts[1]:
        return None
    seeds = "" if one.seed == other.seed else f", seeds {one.seed} and {other.seed}"
    return f"they have different initial weights{seeds}"


def require_compatible(run: RunStore, members: Sequence[Member]) -> None:
    """Refuse members whose networks cannot be averaged.

    Raises
    ------
    UserError
        Names two trials, and the reason.
    """
    first = members[0].trial
    for number in dict.fromkeys(member.trial for member in members[1:]):
        if number != first and (reason := incompatibility(run, first, number)):
            raise UserError(f"no soup of trials {first} and {number}: {reason}")


# Soups of a run's members


class SoupMaker:
    """Makes soups of a run's members, and caches their out-of-fold predictions, since a search repeats soups.

    Parameters
    ----------
    run, windows
        The run and its windows.
    predictions
        Out-of-fold predictions of the members.
    members
        The members that may be averaged.
    progress
        Called with folds done, folds in all, and a text.
    device
        Where networks are run.
    """

    def __init__(
        self,
        run: RunStore,
        windows: WindowStore,
        predictions: MemberPredictions,
        members: Sequence[Member],
        progress: Progress | None = None,
        *,
        device: torch.device = CPU,
    ) -> None:
        require_compatible(run, members)
        self.run, self.predictions, self.members = run, predictions, list(members)
        self.windows = member_windows(run, windows, members[0])  # all are of one store
        self.progress, self.device = progress, device
        folds = range(run.folds.n_folds)
        self._weights = [[fold_tensors(run, member, fold) for fold in folds] for member in members]
        self._cached: dict[Indices, Floats] = {(m,): predictions.predictions[m] for m in range(len(self.members))}

    def soup(self, chosen: Indices) -> MergedNetworks:
        """Average some members' weights for each fold, with BatchNorm's statistics of the fold's training windows."""
        folds = []
        for fold in range(self.run.folds.n_folds):
            tensors = average([self._weights[member][fold] for member in chosen])
            if len(chosen) > 1:
                self._update_batchnorm(chosen, fold, tensors)
            folds.append(tensors)
        return MergedNetworks([self.members[member] for member in chosen], folds)

    def predict(self, chosen: Indices) -> Floats:
        """Return the out-of-fold predictions (N, outputs) of the soup of some members."""
        if chosen not in self._cached:
            soup = self.soup(chosen)
            out_NO = np.empty_like(self.predictions.encoded_targets)
            for fold in range(self.run.folds.n_folds):
                inside_N = self.predictions.folds == fold
                module = self._module(chosen[0], fold, soup.folds[fold])
                out_NO[inside_N] = self._predict(module, self.predictions.windows[inside_N])
                if self.progress:
                    self.progress(fold + 1, self.run.folds.n_folds, f"folds of a soup of {len(chosen)}")
            self._cached[chosen] = out_NO
        return self._cached[chosen]

    def _update_batchnorm(self, chosen: Indices, fold: int, tensors: dict[str, Tensor]) -> None:
        network = self._module(chosen[0], fold, tensors).members[0]
        if update_batchnorm(network, self._training_batches(fold)):
            tensors |= {f"model.{name}": tensor.cpu() for name, tensor in network.state_dict().items()}

    def _module(self, member: int, fold: int, tensors: Mapping[str, Tensor]) -> EnsembleModule:
        spec, state = merged_spec(self.run, self.windows, self.members[member], {fold: tensors})
        return build_module(spec, state, self.device)

    def _training_batches(self, fold: int) -> Iterable[Tensor]:
        """Yield a fold's training windows in shuffled batches; windows of one subject alone would vary too little."""
        train = self.run.folds.split(self.windows.subjects, fold)[0]
        rng = np.random.default_rng(derive_seed("soup", self.run.info.seed, fold))
        order = rng.permutation(train)[:MAX_STATISTICS_WINDOWS]
        for step in range(max(1, len(order) // BATCH_SIZE)):
            yield self._gather(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE])

    def _gather(self, index: Index) -> Tensor:
        return to_device(self.windows.gather(index), self.device)

    @torch.no_grad()
    def _predict(self, module: EnsembleModule, index: Index) -> Floats:
        starts = range(0, len(index), BATCH_SIZE)
        batches = (self._gather(index[start : start + BATCH_SIZE]) for start in starts)
        parts = [module.predict_members(x_BCT)[0][0].cpu() for x_BCT in batches]
        return np.asarray(torch.cat(parts).double().numpy())


@dataclass(frozen=True)
class SoupResult:
    """A soup and its predictions for the search subjects."""

    networks: MergedNetworks
    oof: Floats
    """(N, outputs) out of fold; those of a greedy soup are optimistic, as its members were chosen on these windows."""
    by_other_half: Floats
    """(N, outputs) of soups whose members were chosen on the other half of the subjects.

    The trials and their epochs were chosen on all, so these are optimistic too. Weights of other epochs are not kept: a
    soup has no nested score."""


def make_soup(maker: SoupMaker, name: str) -> SoupResult:
    """Make a soup of the members of a maker.

    Parameters
    ----------
    maker
        The maker.
    name
        One of `SOUPS`.

    Raises
    ------
    UserError
        The soup is of snapshots, and no trial has any.
    """
    if name == UNIFORM:
        every_member = tuple(range(len(maker.members)))
        return SoupResult(maker.soup(every_member), maker.predict(every_member), maker.predict(every_member))
    predictions = maker.predictions
    if name == SWA and len(best_trial_with_snapshots(predictions)) < 2:
        raise UserError(f"--method swa: {NO_SNAPSHOTS}")

    def choose(inside_N: Mask) -> Indices:
        if name == SWA:
            return tuple(best_trial_with_snapshots(predictions.select_windows(inside_N)))
        return choose_greedily(predictions, maker.predict, inside_N)

    by_other_half_NO = np.empty_like(predictions.encoded_targets)
    for fit_N, test_N in subject_splits(predictions, SOUP_GROUPS):
        by_other_half_NO[test_N] = maker.predict(choose(fit_N))[test_N]
    chosen = choose(np.ones(len(predictions.targets), dtype=bool))
    return SoupResult(maker.soup(chosen), maker.predict(chosen), by_other_half_NO)


def choose_greedily(predictions: MemberPredictions, predict: PredictFunction, inside_N: Mask) -> Indices:
    """Return the members of a greedy soup: in order of their score, each is kept if the score does not get worse.

    This is recipe 1 of Wortsman et al.

    Parameters
    ----------
    predictions
        Of the members themselves.
    predict
        Returns the predictions (N, outputs) of the soup of some members.
    inside_N
        (N,) mask of the windows to choose on.
    """
    inside = predictions.select_windows(inside_N)
    sign = get_metric(predictions.metric).sign

    def loss(predictions_NO: Floats) -> float:
        return sign * inside.score(predictions_NO)

    first, *others = inside.ranking()
    chosen: Indices = (first,)
    lowest = loss(inside.predictions[first])
    for member in others:
        tried = tuple(sorted((*chosen, member)))
        found = loss(predict(tried)[inside_N])
        if found <= lowest:  # false for an undefined score
            chosen, lowest = tried, found
    return chosen
