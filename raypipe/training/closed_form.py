"""One fold of a model that is fitted in closed form: spatial filters, reference, features, and a linear map of them.

Everything is computed on the CPU in float64, and windows are read in batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypipe.core.closed_form_config import ClosedFormConfig
from raypipe.core.config import TrialConfig
from raypipe.core.errors import InterruptedEpochError, NonFiniteError
from raypipe.core.fold_drawing import split_units
from raypipe.core.folds import Index
from raypipe.core.outputs import one_value
from raypipe.core.seeds import derive_seed
from raypipe.models.closed_form import ClosedForm, centre
from raypipe.models.covariance import Covariance
from raypipe.models.sizes import n_groups
from raypipe.training import features
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.discriminant import fit_discriminant, left_out_squares
from raypipe.training.features import SharedFeatures, compute_features, read_batches
from raypipe.training.fold_trainer import Interrupted, never
from raypipe.training.linear_head import Head, fit_head, left_out_losses
from raypipe.training.loader import FoldData
from raypipe.training.losses import class_weights
from raypipe.training.result import FoldEpoch
from raypipe.training.riemann import whitening
from raypipe.training.spatial_filters import Responses, fit_responses, principal_components
from raypipe.training.trainer import make_network

MAX_PARTS = 5
"""Parts of the training people, to choose the penalty by."""
MAX_COMPONENT_WINDOWS = 2048
"""Most windows from which spatial components are estimated."""
MAX_REFERENCE_WINDOWS = 256
"""Most windows of whose covariances the mean is taken."""


class ClosedFormTrainer:
    """Fit one fold of one trial, in one epoch. It is a `FoldTrainer`.

    Parameters
    ----------
    config
        The trial's configuration.
    data
        The fold's windows.
    groups_N
        Group of each window of the store: parts that choose the penalty divide no group.
    shared
        Features that the trial's folds share; None to compute those of this fold.
    """

    stopped = False

    def __init__(
        self, config: TrialConfig, data: FoldData, groups_N: NDArray[Any], shared: SharedFeatures | None = None
    ) -> None:
        self.config, self.data, self.groups_N, self.shared = config, data, groups_N, shared
        self.fold, self.epoch = data.fold, 0
        self.model = cast(ClosedForm, make_network(config, data.windows, torch.device("cpu")).eval())
        self.note = ""
        """What the fit has used, for the trial's log."""

    def run_epoch(self, interrupted: Interrupted = never) -> FoldEpoch:
        """Fit the model and predict the validation windows; see `FoldTrainer`."""
        start = time.perf_counter()
        fit = _Fit(self.config, self.data, self.model, self.shared, interrupted)
        head = fit.run(self.groups_N)
        self.note = fit.note(head)
        if not all(torch.isfinite(tensor).all() for tensor in self.model.state_dict().values()):
            raise NonFiniteError(f"fold {self.fold}: the fit is not finite")
        self.epoch = 1
        predictions = self.predict(self.data.validation, interrupted)
        return FoldEpoch(head.loss, predictions, time.perf_counter() - start)

    @torch.no_grad()
    def predict(self, index: Index, interrupted: Interrupted = never) -> NDArray[np.float32]:
        """Predict windows (N, n_outputs), in target units or as probabilities."""
        x_NF = self.shared.of(self.data, self.model, index, interrupted) if self.shared else None
        if x_NF is not None:
            return self.data.decode(self.model.back(x_NF))
        parts = [self.model(x_BCT) for _, x_BCT in read_batches(self.data, self.model, index, interrupted)]
        return self.data.decode(torch.cat(parts))

    def weights(self) -> dict[str, Tensor]:
        """Return what is evaluated and shipped."""
        return cast(dict[str, Tensor], clone_tensors(self.model.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the end of the trial needs; see `FoldTrainer`.

        There are no weights before the first step, so ``initial`` is empty: no two fits can be averaged.
        """
        return {
            "config": self.config.hash(),
            "initial": "",
            "fold": self.fold,
            "epoch": self.epoch,
            "target": self.data.out_units,
            "weights": self.weights(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to where `state` was taken; see `FoldTrainer`."""
        if (state["config"], state["fold"]) != (self.config.hash(), self.fold):
            raise ValueError(
                f"a checkpoint of configuration {state['config']}, fold {state['fold']} cannot continue "
                f"configuration {self.config.hash()}, fold {self.fold}"
            )
        self.model.load_state_dict(state["weights"])
        self.epoch = state["epoch"]


class _Sample(NamedTuple):
    """Windows, or crops of them, that something is estimated from."""

    places: Index
    """Of the windows among the training windows."""
    numbers: Index
    weights: Tensor
    """Of the windows, as the epochs of other models draw them."""
    offsets: Index | None
    """Where they are cropped; None for where they are evaluated."""
    targets: NDArray[Any]


class _Fit:
    """The steps of a fit, each of which sets buffers of the model that the next one uses."""

    def __init__(
        self,
        config: TrialConfig,
        data: FoldData,
        model: ClosedForm,
        shared: SharedFeatures | None,
        interrupted: Interrupted,
    ) -> None:
        self.config, self.data, self.model, self.shared, self.interrupted = config, data, model, shared, interrupted
        self.most = max(2, features.MAX_FEATURE_VALUES // model.weight_OF.shape[1])
        spare = data.windows.window_samples - data.windows.crop_samples
        self.crops = min(cast(ClosedFormConfig, config.model).crops, spare + 1)
        self.among = np.arange(len(data.train))
        """Places of the training windows that are used."""

    @torch.no_grad()
    def run(self, groups_N: NDArray[Any]) -> Head:
        """Fit the model; return its linear map."""
        data, model = self.data, self.model
        targets_T = data.windows.targets[data.train]
        part_T = inner_parts(groups_N[data.train], targets_T, bool(data.n_classes), self.config.seed, data.fold)
        losses = None
        if getattr(model, "prototypes_ST", None) is not None and int(part_T.max()):
            losses = self._losses_without_parts(part_T)
        self._fit_front()
        head = self._fit_head(part_T, losses)
        model.weight_OF.copy_(head.weight)
        model.bias_O.copy_(head.bias)
        return head

    def _losses_without_parts(self, part_T: Tensor) -> Tensor:
        """Return the loss of people who are left out, by penalty, where targets shape the features.

        Filters and prototypes are fitted without each part of the people too. Filters
        fitted on them would separate the classes of these windows even in noise, and the least penalty would be chosen.
        """
        losses = []
        for part in range(int(part_T.max()) + 1):
            self.among = np.flatnonzero((part_T != part).numpy())
            self._fit_front()
            self.among = np.arange(len(self.data.train))
            losses.append(self._left_out_loss(part_T == part))
        return torch.stack(losses).sum(0)

    def _fit_front(self) -> None:
        """Set all buffers of the model but those of the linear map."""
        model = self.model
        self._fit_filters()
        if isinstance(model, Covariance) and model.whitening_GDD is not None:
            self._fit_reference(model, model.whitening_GDD)

    def note(self, head: Head) -> str:
        """Return what was fitted and on how many windows, in one line."""
        n, used = self.crops * len(self.data.train), len(self._sample(self.most).numbers)
        what = "training windows" if self.crops == 1 else f"crops of {n // self.crops} training windows"
        some = f"{used} of {n} {what}, drawn by seed," if used < n else f"{n} {what}"
        unit = "sum of squares" if self.model.values_O is None else "mean variance within bins"
        return (
            f"fold {self.data.fold}: {self.model.weight_OF.shape[1]} features of {some} with a penalty of "
            f"{head.penalty:.2g} of their {unit}"
        )

    def _sample(self, most: int) -> _Sample:
        """Return the training windows, or their crops, or `most` of them, drawn by seed.

        Evenly spaced ones could be of one class, where classes follow each other in a fixed order.
        """
        windows, n = self.data.windows, len(self.among)
        place_N = np.arange(n * self.crops)
        if len(place_N) > most:  # a permutation of the windows for each place of a crop, so all places are as frequent
            rng = np.random.default_rng(derive_seed("sample", self.config.seed, self.data.fold, most))
            order_NC = rng.permuted(np.tile(np.arange(n)[:, None], self.crops), axis=0)
            place_N = np.sort((order_NC * self.crops + np.arange(self.crops)).ravel()[:most])
        window_N = self.among[place_N // self.crops]
        numbers = self.data.train[window_N]
        offsets, targets = None, windows.targets[numbers]
        if self.crops > 1:
            spare = windows.window_samples - windows.crop_samples
            offsets = np.round(np.linspace(0, spare, self.crops)).astype(np.int64)[place_N % self.crops]
            targets = targets if self.data.n_classes else windows.target_at(numbers, offsets)
        return _Sample(window_N, numbers, torch.from_numpy(self.data.chances[window_N]), offsets, targets)

    def _read(self, some: _Sample) -> Iterator[tuple[slice, Tensor]]:
        return read_batches(self.data, self.model, some.numbers, self.interrupted, some.offsets)

    # Spatial filters

    def _fit_filters(self) -> None:
        """Set the spatial filters, and with them the prototypes."""
        model = self.model
        components_KC: Tensor | None = None
        if model.n_components:
            some = self._sample(MAX_COMPONENT_WINDOWS)
            batches = ((centre(x_BCT), some.weights[part]) for part, x_BCT in self._read(some))
            components_KC = principal_components(batches, model.n_components)
        if isinstance(model, Covariance) and model.prototypes_ST is not None:
            responses = self._responses(model, components_KC)
            model.prototypes_ST.copy_(responses.prototypes)
            filters_SC = responses.filters
            components_KC = filters_SC if components_KC is None else filters_SC @ components_KC
        if model.filters_SC is not None and components_KC is not None:
            model.filters_SC.copy_(components_KC)

    def _responses(self, model: Covariance, components_KC: Tensor | None) -> Responses:
        every = self._sample(self.crops * len(self.data.train))
        group_N = torch.from_numpy(self._groups(every.targets, n_groups(model.n_outputs)))

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for part, x_BCT in self._read(every):
                y_BCT = centre(x_BCT)
                yield y_BCT if components_KC is None else components_KC @ y_BCT, every.weights[part], group_N[part]

        return fit_responses(batches(), n_groups(model.n_outputs), model.n_prototypes // n_groups(model.n_outputs))

    def _groups(self, targets_N: NDArray[Any], count: int) -> NDArray[np.int64]:
        """Return the class (N,) of windows, or which of `count` groups of as many targets each they are in."""
        if self.data.n_classes:
            return targets_N.astype(np.int64)
        values_N = one_value(targets_N)
        inner = np.quantile(values_N, np.arange(1, count) / count)
        return np.searchsorted(inner, values_N)

    # Reference and head

    def _fit_reference(self, model: Covariance, whitening_GDD: Tensor) -> None:
        """Set the whitening by the affine-invariant mean of each band's covariances."""
        some = self._sample(MAX_REFERENCE_WINDOWS)
        c_NGDD = torch.cat([model.covariances(x_BCT) for _, x_BCT in self._read(some)])
        for band, white_DD in enumerate(whitening_GDD):
            if self.interrupted():
                raise InterruptedEpochError
            white_DD.copy_(whitening(c_NGDD[:, band], some.weights))

    def _fit_head(self, part_T: Tensor, losses: Tensor | None) -> Head:
        x_NF, y_N, weight_N, some = self._features()
        part_N, how = part_T[some.places], {"standardise": self.standardise}
        values_K = self.model.values_O
        if values_K is None:
            return fit_head(x_NF, y_N, weight_N, part_N, self.data.n_classes, losses_P=losses, **how)
        bin_N = self._set_bins(y_N, weight_N, values_K)
        return fit_discriminant(x_NF, bin_N, y_N, values_K, weight_N, part_N, squares_PT=losses, **how)

    def _left_out_loss(self, left_out_T: Tensor) -> Tensor:
        """Return the loss of windows that are left out, by penalty; see `_losses_without_parts`."""
        x_NF, y_N, weight_N, some = self._features()
        left_out_N, how = left_out_T[some.places], {"standardise": self.standardise}
        values_K = self.model.values_O
        if values_K is None:
            return left_out_losses(x_NF, y_N, weight_N, left_out_N, self.data.n_classes, **how)
        bin_N = self._set_bins(y_N, weight_N, values_K)
        return left_out_squares(x_NF, bin_N, y_N, values_K, weight_N, left_out_N, **how)

    @property
    def standardise(self) -> str:
        """How features are standardised."""
        return cast(str, getattr(self.config.model, "standardise", "each"))

    def _features(self) -> tuple[Tensor, Tensor, Tensor, _Sample]:
        """Return features (N, F), targets and weights (N,) of training windows, and which they are."""
        data, some = self.data, self._sample(self.most)
        x_NF = None
        if self.shared and some.offsets is None:
            x_NF = self.shared.of(data, self.model, some.numbers, self.interrupted)
        if x_NF is None:
            x_NF = compute_features(data, self.model, some.numbers, self.interrupted, some.offsets)
        targets, weight_N = some.targets, some.weights
        if data.n_classes and self.config.loss.balanced:
            weight_N = (
                weight_N * class_weights(targets, data.n_classes, some.weights / some.weights.sum()).double()[targets]
            )
        y_N = torch.as_tensor(targets) if data.n_classes else torch.as_tensor((targets - data.centre) / data.scale)
        return x_NF, y_N, weight_N, some

    def _set_bins(self, y_N: Tensor, weight_N: Tensor, values_O: Tensor) -> Tensor:
        """Set the mean target of each bin; return the bin of each window."""
        bin_N = torch.from_numpy(self._groups(y_N.numpy(), len(values_O)))
        total_O = torch.zeros_like(values_O).index_add_(0, bin_N, weight_N)
        sum_O = torch.zeros_like(values_O).index_add_(0, bin_N, weight_N * y_N.double())
        values_O.copy_(torch.where(total_O > 0, sum_O / total_O.clamp_min(1e-300), 0.0))
        return bin_N


def inner_parts(groups_N: NDArray[Any], targets_N: NDArray[Any], classes: bool, seed: int, fold: int) -> Tensor:
    """Return the part (N,) of each training window, from 0: no group is in two parts, unless there is one group only.

    Parts of a single group are runs of neighbouring windows.
    """
    n_parts = min(MAX_PARTS, len(np.unique(groups_N)))
    if n_parts < 2:
        return torch.arange(len(groups_N)) * min(MAX_PARTS, len(groups_N)) // len(groups_N)
    drawn = derive_seed("penalty", seed, fold) % 2**32
    part_of = {
        group: part
        for part, groups in enumerate(split_units(groups_N, targets_N, classes, n_parts, drawn))
        for group in groups
    }
    return torch.tensor([part_of[str(group)] for group in groups_N])
