"""Checks of users' networks on random windows, before anything is started."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from raypipe.core import own_code
from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.folds import FoldMap
from raypipe.core.foreign_code import code_errors
from raypipe.core.model_config import OwnConfig
from raypipe.core.random_streams import seeded
from raypipe.data.window_store import WindowStore
from raypipe.models.from_config import build_model
from raypipe.models.own import OwnNetwork
from raypipe.search.kept_state import changed, integers
from raypipe.training import checkpoint
from raypipe.training.finetuning import initial_id
from raypipe.training.optim import norm_parameters
from raypipe.training.sampling import even_batches

TOLERANCE = 1e-4
"""Largest difference of outputs that should be equal up to rounding, relative to their scale."""
STEPS = 3
"""Steps of training."""
_CPU = torch.device("cpu")

Shape = tuple[int, int, int, float]
"""Channels, samples, outputs, and sampling rate in Hz."""


def check_own_networks(configs: Iterable[TrialConfig], windows: WindowStore, folds: FoldMap) -> list[str]:
    """Check every network of a user's in some configurations.

    Each is made, trained for some steps on the smallest batch that an epoch may give, asked for predictions, and
    trained on from its state.

    Returns
    -------
    list of str
        Lines about what is odd but no error: parameters without a gradient.

    Raises
    ------
    UserError
        One cannot be trained, or gives numbers that a resumed or shipped network would not repeat.
    """
    smallest: dict[OwnConfig, int] = {}
    norms = set()
    for config in configs:
        if isinstance(config.model, OwnConfig):
            norms |= {config.model} if config.sam.name != "none" and config.sam.only == "norm" else set()
            sizes = [len(folds.split(windows.subjects, fold)[0]) for fold in range(folds.n_folds)]
            batch = min(min(even_batches(size, config.batch_size)) for size in sizes)
            smallest[config.model] = min(batch, smallest.get(config.model, batch))
    shape = (windows.n_channels, windows.crop_samples, windows.n_outputs, windows.sfreq)
    lines = [line for model, batch in smallest.items() for line in check_network(model, batch, shape)]
    for model in norms:
        _check_norms(model, shape)
    return list(dict.fromkeys(lines))


@functools.lru_cache(maxsize=256)
def check_network(config: OwnConfig, batch: int, shape: Shape) -> tuple[str, ...]:
    """Check one network; see `check_own_networks`.

    Parameters
    ----------
    config
        Its configuration.
    batch
        Windows of the smallest batch.
    shape
        Of the windows and outputs.
    """
    source = own_code.known_source(config.code)
    with code_errors(config.name, source.name if source else ""):
        with seeded(0, _CPU):
            network, other = _build(config, shape), own_code.made_anew(lambda: _build(config, shape))
            random_SBCT = torch.randn(STEPS, max(batch, 3), *shape[:2]) * 10.0
        batches = [network.prepare(x_BCT)[:batch] for x_BCT in random_SBCT]
        _check_parameters(network)
        with seeded(1, _CPU):
            _check_training(network, batches[0])
        unused = [name for name, p in network.network.named_parameters() if p.requires_grad and p.grad is None]
        _check_counters(network, batches[1:])
        _check_state(network, other)
        _check_predictions(network, other, network.prepare(random_SBCT[1])[:3])
        _check_resumed(network, other, batches[1:])
    if not unused:
        return ()
    return (f"{config.name}: no gradient reaches {', '.join(unused[:5])}{', ...' * (len(unused) > 5)}: not trained",)


def _check_norms(config: OwnConfig, shape: Shape) -> None:
    with seeded(0, _CPU):
        found = norm_parameters(_build(config, shape))
    if not any(parameter.requires_grad for parameter in found):
        raise UserError(f"{config.name}: it has no normalisation layer of torch to train: leave sam/only=norm out")


def _build(config: OwnConfig, shape: Shape) -> OwnNetwork:
    n_channels, n_times, n_outputs, sfreq = shape
    made = build_model(config, n_channels=n_channels, n_times=n_times, n_outputs=n_outputs, sfreq=sfreq)
    assert isinstance(made, OwnNetwork)
    return made


def _check_parameters(network: OwnNetwork) -> None:
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"{network.name}: it has no parameters to train")
    for name, parameter in network.network.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"{network.name}: parameters must be torch.float32, and {name} is {parameter.dtype}")


def _check_training(network: OwnNetwork, x_BCT: Tensor) -> None:
    """Pass the smallest batch forward and backward."""
    try:
        out_BK = network.train()(x_BCT, prepared=True)
        _require_finite(network.name, out_BK)
        if not out_BK.requires_grad:
            raise UserError(f"{network.name}: its outputs depend on no parameter: no gradient reaches any")
        out_BK.square().mean().backward()
    except (UserError, KeyboardInterrupt):
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{network.name}: its BatchNorm cannot train on a batch of {len(x_BCT)} windows, which an epoch has; "
            "choose another batch_size"
        ) from None
    for name, parameter in network.network.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise UserError(f"{network.name}: the gradient of {name} is not finite on random windows")


def _check_counters(network: OwnNetwork, batches: Sequence[Tensor]) -> None:
    """Train a step on each of some batches; check that nothing counts them but buffers."""
    counted: list[dict[str, int]] = []
    for seed, x_BCT in enumerate(batches, start=2):
        _descend(network)
        with seeded(seed, _CPU):
            network.train()(x_BCT, prepared=True).square().mean().backward()
        counted.append(integers(network.network))
    if where := changed(*counted[-2:]):
        before, after = (each[where] for each in counted[-2:])
        raise UserError(
            f"{network.name}: '{where}' goes from {before} to {after} in a step of training, which a resumed training "
            "would not know; keep it in a buffer"
        )


@torch.no_grad()
def _descend(network: OwnNetwork) -> None:
    """Change the parameters a little, down their gradients."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.sub_(1e-3 * parameter.grad.sign().nan_to_num())
            parameter.grad = None


def _check_state(network: OwnNetwork, other: OwnNetwork) -> None:
    """Do what training does with a network's state; load it into the other one."""
    state = network.state_dict()
    for key, value in state.items():
        where = key.removeprefix("network.")
        if not isinstance(value, Tensor):
            raise UserError(
                f"{network.name}: its state has '{where}', a {type(value).__name__}; get_extra_state must give a tensor"
            )
        try:
            value.detach().cpu().contiguous().numpy()
        except (TypeError, RuntimeError):
            kind = "sparse" if value.layout != torch.strided else value.dtype
            raise UserError(
                f"{network.name}: its state has '{where}', which is {kind}: NumPy has no such type; use torch.float32"
            ) from None
    initial_id(network)
    other.load_state_dict(checkpoint.loads(checkpoint.dumps(checkpoint.clone_tensors(state))))


@torch.no_grad()
def _check_predictions(network: OwnNetwork, other: OwnNetwork, x_BCT: Tensor) -> None:
    """Check that predictions follow from the weights and from each window alone; the other one has the same weights."""
    out_BK = network.eval()(x_BCT, prepared=True)
    _require_finite(network.name, out_BK)
    if not _identical(network(x_BCT, prepared=True), out_BK):
        raise UserError(f"{network.name}: in evaluation mode its outputs differ from call to call")
    apart_BK = torch.cat([network(x_1CT, prepared=True) for x_1CT in x_BCT[:, None]])
    if (apart_BK - out_BK).abs().max() > TOLERANCE * (1.0 + out_BK.abs().max()):
        raise UserError(f"{network.name}: in evaluation mode a window's output depends on the others of its batch")
    if not _identical(other.eval()(x_BCT, prepared=True), out_BK):
        raise UserError(
            f"{network.name}: a new one with the same weights gives other outputs; what it draws when it is made, or "
            "its file when it is read, must be a parameter or a buffer, as must what it keeps from training"
        )


@torch.no_grad()
def _check_resumed(network: OwnNetwork, other: OwnNetwork, batches: Sequence[Tensor]) -> None:
    """Check that training continues with a new network of the same weights as it does with the one that was trained."""
    for seed, x_BCT in enumerate(batches, start=STEPS + 1):
        outputs = []
        for each in (network, other):
            with seeded(seed, _CPU):
                outputs.append(each.train()(x_BCT, prepared=True))
        if not _identical(*outputs):
            raise UserError(
                f"{network.name}: after {STEPS} steps of training, a new one with the same weights gives other outputs "
                "in training mode; what it keeps must be a parameter or a buffer, and what it draws must come from the "
                "global generators of torch, NumPy or Python"
            )


def _require_finite(name: str, out_BK: Tensor) -> None:
    if not out_BK.isfinite().all():
        raise UserError(f"{name}: its outputs on random windows are not finite")


def _identical(one_BK: Tensor, other_BK: Tensor) -> bool:
    return torch.allclose(one_BK, other_BK, rtol=0.0, atol=0.0, equal_nan=True)
