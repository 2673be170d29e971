"""Checks of a search space against the data of a sweep, before anything is started."""

from __future__ import annotations

from raypipe.core import own_code
from raypipe.core.combinations import check_kind
from raypipe.core.config import OwnAugmentConfig, OwnLossConfig, TrialConfig
from raypipe.core.effects import parameters_without_effect
from raypipe.core.errors import UserError
from raypipe.core.folds import FoldMap
from raypipe.core.model_config import MODELS, OwnConfig
from raypipe.core.search_space import SearchSpace
from raypipe.data.targets import parse_target
from raypipe.data.window_store import WindowStore
from raypipe.models.window_checks import check_windows, replaced_kernels
from raypipe.search.example_configs import example_configs
from raypipe.training.inner_split import split_inner


def check_space(space: SearchSpace, windows: WindowStore, folds: FoldMap) -> list[str]:
    """Check that configurations of a space can be trained on the windows of a sweep's folds.

    Returns
    -------
    list of str
        Lines of warning.

    Raises
    ------
    UserError
        One suits another kind of target or one value only, has a model that the windows do not suit, shifts
        windows whose targets are times, or chooses its epoch by fold where a fold has too few training subjects or
        groups, in all or of a class; or a network, loss or augmentation of a user's cannot be used (`own_networks`,
        `own_functions`).
    """
    configs = example_configs(space)
    try:
        for config in configs:
            check_kind(config, windows.kind, windows.n_outputs)
        lines = _check_models(configs, windows)
        if any(config.augment.name == "time-shift" for config in configs):
            _check_targets_stay(windows)
        if any(config.early_stop == "fold" for config in configs):
            _check_inner_subjects(windows, folds)
        own_code.check_registered(MODELS)
        return lines + _check_own_code(configs, windows, folds)
    except UserError as error:
        raise UserError(f"{space.name}: {error}") from None


def foreseen_warnings(space: SearchSpace, windows: WindowStore) -> list[str]:
    """Return a line if a space draws parameters without effect, and one if several stores leave windows out."""
    lines = [parameters_without_effect(space, windows.kind), windows.left_out_line()]
    return [line for line in lines if line]


def _check_models(configs: list[TrialConfig], windows: WindowStore) -> list[str]:
    """Check that the windows suit each model, and return lines on kernels that are replaced."""
    lines: list[str | None] = []
    for config in configs:
        own, model = windows.of(config.data.store), config.model
        shape = {"n_channels": own.n_channels, "n_times": own.crop_samples, "n_outputs": own.n_outputs}
        check_windows(model, **shape, sfreq=own.sfreq)
        lines.append(replaced_kernels(model, own.crop_samples, own.sfreq))
    return list(dict.fromkeys(line for line in lines if line))


def _check_own_code(configs: list[TrialConfig], windows: WindowStore, folds: FoldMap) -> list[str]:
    if not any(
        isinstance(part, OwnConfig | OwnLossConfig | OwnAugmentConfig)
        for config in configs
        for part in (config.model, config.loss, config.augment)
    ):
        return []
    # These import torch, which takes the driver a second and 100 MB, and is not needed otherwise.
    from raypipe.search.own_functions import check_own_functions
    from raypipe.search.own_networks import check_own_networks

    lines: list[str] = []
    for name in windows.names or ("",):
        own = [config for config in configs if config.data.store == name]
        check_own_functions(own, windows.of(name))
        lines += check_own_networks(own, windows.of(name), folds)
    return list(dict.fromkeys(lines))


def _check_targets_stay(windows: WindowStore) -> None:
    """Refuse shifts in time where the target depends on response timing."""
    plan = windows.manifest.plan
    if parse_target(plan).target_is_time:
        raise UserError(
            f"augment/name=time-shift: the targets of '{plan.target}' are times, which a shift would change"
        )


def _check_inner_subjects(windows: WindowStore, folds: FoldMap) -> None:
    groups_N = folds.groups(windows.subjects)
    for fold in range(folds.n_folds):
        train, _ = folds.split(windows.subjects, fold)
        classes = windows.targets[train] if windows.classes else None
        split_inner(train, windows.subjects[train], classes, groups=groups_N[train], seed=folds.seed, fold=fold)
