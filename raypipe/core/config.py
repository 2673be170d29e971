"""The configuration of a trial: frozen, validated, and with a stable hash.

The ranges that a sweep searches are defined in search spaces (`search_spaces/`), not here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from raypipe.core.combinations import check_combination
from raypipe.core.effects import LOSS_PARAMETERS
from raypipe.core.model_config import MODELS, ModelConfig, OwnConfig, is_closed_form
from raypipe.core.network_config import ConformerConfig
from raypipe.core.own_config import OWN, Arguments, OwnCode, own_or
from raypipe.core.record import FrozenModel, leaving_out

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0.0, le=1e6)]


class OptimConfig(FrozenModel):
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and a learning-rate schedule."""

    lr: Positive = 1e-3
    """Peak of the learning rate."""
    weight_decay: NotNegative = 1e-2
    """Decoupled weight decay per step, as a factor of the learning rate. Biases and the parameters of normalisation
    layers do not decay (He et al. 2019, arXiv:1812.01187)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the running means of gradients and of their squares."""
    warmup: Fraction = 0.1
    """Share of all steps in which the rate rises linearly from zero; with `cyclic`, share of the first cycle."""
    schedule: Literal["cosine", "constant", "cyclic"] = "cosine"
    """`cyclic`: cosine decay in `cycles` cycles. Weights at the end of each cycle are stored as members of ensembles
    (snapshots: Huang et al. 2017, arXiv:1704.00109)."""
    cycles: Annotated[int, Field(ge=2, le=10_000)] = 4
    """Number of cycles of `cyclic`, as equal in epochs as possible."""
    clip: NotNegative = 1.0
    """Largest gradient norm (SAM: of the second gradient); 0 disables clipping."""
    ema: Fraction = 0.0
    """Decay per step of the exponential moving average of the weights, which is evaluated and stored; 0 for none."""


class SamConfig(FrozenModel):
    """Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412) and its variants."""

    name: Literal["none", "sam", "asam", "looksam", "msam"] = "none"
    """`sam`; `asam`, its scale-invariant form; `looksam`, SAM every few steps; `msam`, which perturbs against the
    momentum and costs one pass. See `training.sam`."""
    rho: Positive = 0.05
    """Radius of the perturbation. ASAM (Kwon et al. 2021, arXiv:2102.11600) needs a radius 10 to 40 times larger, MSAM
    (Becker et al. 2024, arXiv:2401.12033) about 10 times."""
    only: Literal["all", "norm"] = "all"
    """Parameters that are perturbed: all, or those of the normalisation layers (SAM-ON, Mueller et al. 2023,
    arXiv:2306.04226)."""
    every: Annotated[int, Field(ge=2, le=1_000_000)] = 5
    """LookSAM (Liu et al. 2022, arXiv:2203.02714): steps from one SAM step to the next."""
    alpha: Positive = 0.7
    """LookSAM: norm of the reused part, as a factor of the gradient's norm."""


class MixupConfig(FrozenModel):
    """Mixing of windows within a batch."""

    name: Literal["none", "mixup", "cmixup", "cutmix", "cutmix-channels"] = "none"
    """`mixup` (Zhang et al. 2018, arXiv:1710.09412); `cmixup`, with partners of similar targets (Yao et al. 2022,
    arXiv:2210.05775); `cutmix` in time, `cutmix-channels` over channels (after Yun et al. 2019, arXiv:1905.04899)."""
    alpha: Positive = 0.3
    """Mixing weights are drawn from Beta(alpha, alpha)."""
    prob: Share = 1.0
    """Share of batches that are mixed."""
    bandwidth: Positive = 0.5
    """C-Mixup: width of the kernel over target differences, in standard deviations of the training targets."""
    other_subject: bool = False
    """Draw partners of other subjects only. Windows of a batch of one subject are not mixed."""


class AugmentConfig(FrozenModel):
    """Random changes of training windows that keep the target (Rommel et al. 2022, doi:10.1088/1741-2552/aca220)."""

    name: Literal[
        "none",
        "noise",
        "amplitude",
        "time-shift",
        "channel-dropout",
        "band-stop",
        "sign-flip",
        "fourier-surrogate",
    ] = "none"
    """`noise`: white noise is added; `amplitude`: each channel is scaled; `time-shift`: circular, of all channels
    together, not for targets that depend on response timing; `channel-dropout`: channels are set to zero; `band-stop`:
    a random band is removed; `sign-flip`: of all channels; `fourier-surrogate`: random phases, the same in all
    channels, so that spectra and covariances are kept."""
    prob: Share = 0.5
    """Share of windows that are changed, in each epoch anew."""
    noise: Positive = 0.2
    """`noise`: its standard deviation, in standard deviations of the channel in the window."""
    gain: Annotated[float, Field(gt=0.0, le=100.0)] = 3.0
    """`amplitude`: largest change in dB, up or down."""
    shift: Annotated[float, Field(gt=0.0, le=1e6)] = 0.1
    """`time-shift`: largest shift in seconds, forward or back."""
    dropped: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """`channel-dropout`: chance of each channel."""
    bandwidth: Positive = 2.0
    """`band-stop`: width of the band in Hz; its centre is drawn between 0 and half the sampling rate."""
    phase: Annotated[float, Field(gt=0.0, le=180.0)] = 180.0
    """`fourier-surrogate`: largest change of a phase in degrees; 180 draws all phases anew."""


class OwnAugmentConfig(OwnCode):
    """A change of training windows of one's own: ``change(x, **args)``, see docs/models.md."""

    name: str
    """`file.py:name` with a file beside the search space, or `package.module:name`."""
    prob: Share = 0.5
    """Share of windows that are changed, in each epoch anew."""
    args: Arguments = ()
    """Its arguments, searched as `augment/args/NAME`."""


class LossConfig(FrozenModel):
    """The training loss. Trials are ranked by the target's metric, not by the loss."""

    name: Literal["plain", "focal", "huber", "kl", "nll"] = "plain"
    """`plain`: cross-entropy or mean squared error. `focal`: focal loss (Lin et al. 2017, arXiv:1708.02002) for
    classes, Focal-R (Yang et al. 2021, arXiv:2102.09554) for regression. `huber`: regression only. `kl`: divergence of
    the predicted distribution from a Gaussian around the target, regression with `model/bins`. `nll`: Gaussian negative
    log-likelihood of the target, regression with `model/variance`."""
    width: Positive = 0.3
    """Standard deviation of `kl`'s Gaussian, in standard deviations of the training targets."""
    variance_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """`nll`: weight of a window is its predicted variance to this power (beta-NLL, Seitzer et al. 2022,
    arXiv:2203.09168). 0 is the likelihood itself, which gives little weight to hard windows; 1 has the gradient of the
    squared error."""
    gamma: NotNegative = 1.0
    """Focusing exponent of `focal`; 0 is the plain loss."""
    beta: Positive = 3.5
    """Slope of Focal-R's sigmoid, per standard deviation of the training targets. The paper's 0.2 is per year of age,
    and ages in its AgeDB have a standard deviation of 17.6 years: 3.5 here. Far below 1 the loss is a cubed error (with
    `gamma` 1), which outliers dominate; far above, the squared error."""
    delta: Positive = 1.0
    """Error from which Huber is linear, in standard deviations of the training targets."""
    smoothing: Fraction = 0.0
    """Label smoothing (classes only)."""
    balanced: bool = True
    """Weight classes by inverse frequency among the windows that are drawn, which follows `sampling` (classes only)."""

    @model_validator(mode="after")
    def _parameters_are_those_of_the_loss(self) -> Self:
        for name, losses in LOSS_PARAMETERS.items():
            if self.name not in losses and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for name={losses[0]}, not for name={self.name}: leave it out")
        return self


class OwnLossConfig(OwnCode):
    """A loss of one's own: ``loss(outputs, target, **args)``, see docs/models.md."""

    name: str
    """`file.py:name` with a file beside the search space, or `package.module:name`."""
    args: Arguments = ()
    """Its arguments, searched as `loss/args/NAME`."""

    smoothing: ClassVar[float] = 0.0
    balanced: ClassVar[bool] = True
    """Weights of the classes are computed: the loss may take them."""


class PretrainConfig(FrozenModel):
    """Self-supervised pretraining in place of training. A linear probe then predicts (see `raypipe.pretraining`)."""

    name: Literal["none", "mae", "simclr"] = "none"
    """`mae`: masked autoencoder (He et al. 2022, arXiv:2111.06377), with `model/name=vit`. `simclr`: Chen et al. 2020,
    arXiv:2002.05709, with `vit` or, in ``raypipe pretrain``, `conformer`."""
    mask: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    """MAE: share of patches that are masked."""
    decoder_width: Annotated[int, Field(ge=1, le=10_000)] = 32
    """MAE: width of the decoder's tokens."""
    decoder_depth: Annotated[int, Field(ge=0, le=1_000)] = 1
    """MAE: transformer blocks of the decoder."""
    temperature: Positive = 0.5
    """SimCLR: temperature of the softmax over similarities."""
    projection: Annotated[int, Field(ge=1, le=100_000)] = 32
    """SimCLR: outputs of the projection head."""
    strength: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """SimCLR: strength of the augmentations."""
    time_shift: bool = False
    """SimCLR: shift views in time; not for targets that depend on response timing."""
    negatives: Literal["all", "other-subject", "same-subject"] = "all"
    """SimCLR: `other-subject` leaves out windows of the same subject; `same-subject` counts those `weight` times."""
    weight: Positive = 2.0
    """SimCLR: weight of a negative of the same subject, with `negatives=same-subject`."""


class InitConfig(FrozenModel):
    """Initial weights: random, or those of the pretrained encoder that the sweep was given (``--init``)."""

    name: Literal["none", "pretrained"] = "none"
    """`pretrained`: start from the encoder of ``--init``, with `model/name=vit` or `conformer`."""
    tune: Literal["full", "frozen", "lora"] = "full"
    """Weights that are trained: `full`, all; `frozen`, the head; `lora`, the head and low-rank changes of the blocks,
    which are merged into the stored weights (Hu et al. 2022, arXiv:2106.09685)."""
    rank: Annotated[int, Field(ge=1, le=10_000)] = 4
    """LoRA: rank of the changes."""
    alpha: Positive = 16.0
    """LoRA: changes are scaled by alpha / rank."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor of the learning rate from one block to the one below it (Bao et al. 2022, arXiv:2106.08254)."""


class DataConfig(FrozenModel):
    """Preprocessing as a parameter: one of several stores of the same windows (``--data a=STORE1,b=STORE2``)."""

    store: str = ""
    """Name of the store; empty where the sweep has one store without a name. A space that does not set it gets a
    choice among all names."""


AnyLoss = Annotated[
    Annotated[LossConfig, Tag("raypipe")] | Annotated[OwnLossConfig, Tag(OWN)], Discriminator(own_or("raypipe"))
]
AnyAugment = Annotated[
    Annotated[AugmentConfig, Tag("raypipe")] | Annotated[OwnAugmentConfig, Tag(OWN)], Discriminator(own_or("raypipe"))
]
SECTIONS: dict[str, list[type[BaseModel]]] = {
    "model": [*MODELS.values(), OwnConfig],
    "augment": [AugmentConfig, OwnAugmentConfig],
    "loss": [LossConfig, OwnLossConfig],
}
"""Configurations of the sections whose ``name`` decides which parameters there are; users' code is the last."""


class TrialConfig(FrozenModel):
    """Everything that decides a trial's numbers, given the data and the fold map."""

    model: ModelConfig = ConformerConfig()
    optim: OptimConfig = OptimConfig()
    sam: SamConfig = SamConfig()
    augment: AnyAugment = AugmentConfig()
    mixup: MixupConfig = MixupConfig()
    loss: AnyLoss = LossConfig()
    pretrain: PretrainConfig = PretrainConfig()
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Maximum number of epochs; the learning-rate schedule covers all of them. Models that are fitted in closed form
    have one."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 64
    """Windows per step, of each fold. Every window is in one batch of an epoch: the last two batches share what is left
    evenly (90 windows at 48 make two batches of 45)."""
    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Epochs without a better score until training stops; see `early_stop`."""
    early_stop: Literal["trial", "fold"] = "trial"
    """`trial`: one best epoch for all folds, by the score over all of them. `fold`: each fold holds out subjects of its
    training side (15 %, at least 4), and chooses its epoch and stops by them, by people where the run scores people. No
    choice uses the scored windows. Folds with fewer than 16 training subjects, or groups of them, are refused."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the network's passes (autocast); `auto` is bfloat16 on a GPU that computes it (NVIDIA's from
    compute capability 8.0 on; older ones emulate it), else float32, and float32 with `model/norm: none`. The
    Fourier stem, the loss and the optimiser use float32."""
    sampling: Literal["window", "subject"] = "window"
    """Windows of an epoch: `window`, each of them once; `subject`, as many draws of first a subject and then one of its
    windows, so that all subjects have equal weight. Class weights and the scale of targets follow it."""
    target_scale: Literal["standard", "robust"] = "standard"
    """Scaling of regression targets by the training windows, weighted as `sampling` draws them: `standard`, mean and
    standard deviation; `robust`, median and 1.4826 * median absolute deviation."""
    shrink: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Regression: shrinkage of predictions to the mean of the drawn training targets, from 0 (none) to 1 (always the
    mean). Where most of a target is noise, the best prediction is near the mean."""
    seed: Annotated[int, Field(ge=0, le=10**18)] = 0
    """Seed of weights, batches, mixing, augmentation and dropout; a search space that sets none gives each trial its
    number. Weights of trials can be averaged (a soup) only if they start from the same ones: set a constant for that.
    The fold map and the data have seeds of their own."""

    @model_validator(mode="before")
    @classmethod
    def _one_epoch_in_closed_form(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "epochs" not in values and is_closed_form(values.get("model")):
            return {**values, "epochs": 1}
        return values

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        check_combination(self)
        return self

    _serializer = leaving_out("data")  # where there is one store, without a name

    @property
    def cycle_ends(self) -> list[int]:
        """Return the epochs that end a cycle of the learning rate; empty without cycles."""
        if self.optim.schedule != "cyclic":
            return []
        return [round(self.epochs * cycle / self.optim.cycles) for cycle in range(1, self.optim.cycles + 1)]

    @property
    def passes(self) -> float:
        """Return the forward and backward passes per step: 2 for SAM, between 1 and 2 for LookSAM, 1 for MSAM."""
        return {"none": 1.0, "msam": 1.0, "looksam": 1.0 + 1.0 / self.sam.every}.get(self.sam.name, 2.0)

    def hash(self) -> str:
        """Return twelve hex digits that are equal for equal configurations only."""
        return config_hash(self.model_dump(mode="json"))


def config_hash(config: Mapping[str, Any]) -> str:
    """Return `TrialConfig.hash` of a configuration as a file has it."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
