"""Configurations of networks, which are trained by gradients, and the base class of all models' configurations."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raypipe.core.record import FrozenModel

Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Filters = Annotated[int, Field(ge=1, le=10_000)]
Depth = Annotated[int, Field(ge=0, le=1_000)]
Heads = Annotated[int, Field(ge=1, le=10_000)]
Expansion = Annotated[int, Field(ge=1, le=1_000)]


class Model(FrozenModel):
    """Base class of the models' configurations."""

    encodes: ClassVar[bool] = False
    """It can be pretrained, and start from a pretrained encoder."""
    has_stem: ClassVar[bool] = False
    """Its first layers are a stem, which can be computed in two ways (`raypipe.models.stem`)."""
    compute_parameters: ClassVar[tuple[str, ...]] = ()
    """Parameters on which it depends how it is computed fastest, and what fits in memory; empty if there is only one
    way."""
    closed_form: ClassVar[bool] = False
    """It is fitted in closed form, in one epoch, and not trained by gradients."""

    name: str

    @property
    def n_bins(self) -> int:
        """Return the bins of a predicted distribution; 0 without one."""
        return 0

    @property
    def uncertainty(self) -> Literal["bins", "variance"] | None:
        """Return the parameter by which the model predicts the variance of a regression too; None if it does not."""
        return None

    @property
    def for_regression_only(self) -> str | None:
        """Return the parameter that no classification may set; None if there is none."""
        return self.uncertainty

    @property
    def n_blocks(self) -> int:
        """Return the number of layers that are repeated."""
        return 0


class Network(Model):
    """Base class of networks that are trained by gradients."""

    norm: Literal["channel", "window", "robust", "none"] = "channel"
    """Normalisation of each window in `forward`: z-score per `channel`; one scale for the whole `window`, which keeps
    the relative power of channels; `robust` (median and MAD per channel); or `none`."""


class _WithDistribution(Network):
    """Base class of networks that can predict a distribution or a variance of a regression's target."""

    bins: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Regression: 0 to predict one number, or the bins of a predicted distribution over the standardised target, whose
    mean is the prediction (soft-argmax). `loss/name=kl` needs bins; other losses use the mean. The variance of the
    distribution is the predicted uncertainty."""
    variance: bool = False
    """Regression: also predict the variance, for ensembles that weight each window by it; with `loss/name=nll` only."""

    @model_validator(mode="after")
    def _one_kind_of_variance(self) -> Self:
        if self.bins == 1:
            raise ValueError("bins must be 0, or 2 or more")
        if self.bins and self.variance:
            raise ValueError("bins predict a variance already: leave variance False")
        return self

    @property
    def n_bins(self) -> int:
        return self.bins

    @property
    def uncertainty(self) -> Literal["bins", "variance"] | None:
        return "bins" if self.bins else "variance" if self.variance else None


class ConformerConfig(_WithDistribution):
    """EEG-Conformer (Song et al. 2023, doi:10.1109/TNSRE.2022.3230250)."""

    encodes: ClassVar[bool] = True
    has_stem: ClassVar[bool] = True
    compute_parameters: ClassVar[tuple[str, ...]] = ("kernels", "filters", "depth", "heads", "expansion", "hidden")

    name: Literal["conformer"] = "conformer"
    """This model; the parameters up to the next one are its own."""
    kernels: Literal["rate", "paper", "short"] = "rate"
    """Lengths of temporal kernel, pool and stride. `rate`: the paper's (25, 75, 15 samples at 250 Hz) scaled to the
    data's sampling rate (10, 30, 6 at 100 Hz); `paper`: the same numbers of samples at any rate; `short`: as `rate`
    with a third of the pool (10, 10, 6 at 100 Hz), for targets that are times. Windows that are too short for `paper`
    or `rate` have the next shorter of them, `rate` or `short`."""
    filters: Filters = 40
    """Temporal filters, spatial filters and the width of a token (a multiple of `heads`)."""
    depth: Depth = 6
    """Transformer blocks."""
    heads: Heads = 10
    """Attention heads of a block."""
    expansion: Expansion = 4
    """Width of a block's feed-forward layer, in tokens."""
    hidden: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Width of the head's first layer. The second has an eighth of it (256 and 32 in the paper)."""
    dropout: Dropout = 0.5
    """Dropout rate of the stem, the blocks and the head."""
    features: Literal["mean", "log-power"] = "mean"
    """What a token summarises: `mean` of ELU activations (the paper), or `log-power` of the filtered signal
    (square, mean, log: Schirrmeister et al. 2017), for targets that depend on rhythms."""

    @model_validator(mode="after")
    def _heads_divide_filters(self) -> Self:
        if self.filters % self.heads:
            raise ValueError(f"filters ({self.filters}) must be a multiple of heads ({self.heads})")
        return self

    @property
    def n_blocks(self) -> int:
        return self.depth


class EegnetConfig(_WithDistribution):
    """EEGNet (Lawhern et al. 2018, doi:10.1088/1741-2552/aace8c)."""

    compute_parameters: ClassVar[tuple[str, ...]] = ("kernels", "filters", "spatial")

    name: Literal["eegnet"] = "eegnet"
    """This model; the parameters up to the next one are its own."""
    kernels: Literal["rate", "paper"] = "rate"
    """Lengths of temporal kernel and first pool. `rate`: the paper's (64 and 4 samples at 128 Hz) scaled to the data's
    sampling rate (50 and 3 at 100 Hz); `paper`: the same numbers of samples at any rate. The kernel is no longer than
    the window."""
    filters: Filters = 8
    """Temporal filters (F1)."""
    spatial: Annotated[int, Field(ge=1, le=1_000)] = 2
    """Spatial filters of each temporal filter (D)."""
    dropout: Dropout = 0.25
    """Dropout rate after both pools (the paper's between subjects; 0.5 within one)."""
    spatial_max_norm: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """Largest norm of a spatial filter; 0 for no limit."""
    head_max_norm: Annotated[float, Field(ge=0.0, le=1e6)] = 0.25
    """Largest norm of the last layer's weights of an output; 0 for no limit."""


class ShallowConfig(_WithDistribution):
    """ShallowFBCSPNet (Schirrmeister et al. 2017, doi:10.1002/hbm.23730)."""

    has_stem: ClassVar[bool] = True
    compute_parameters: ClassVar[tuple[str, ...]] = ("kernels", "filters")

    name: Literal["shallow"] = "shallow"
    """This model; the parameters up to the next one are its own."""
    kernels: Literal["rate", "paper", "short"] = "rate"
    """Lengths of temporal kernel, pool and stride, as the Conformer's; the paper's are for 250 Hz too."""
    filters: Filters = 40
    """Temporal filters, and spatial filters."""
    dropout: Dropout = 0.5
    """Dropout rate before the last layer."""


class TcnConfig(_WithDistribution):
    """A small network of depthwise temporal convolutions (`raypipe.models.tcn`)."""

    name: Literal["tcn"] = "tcn"
    """This model; the parameters up to the next one are its own."""
    filters: Filters = 40
    """Channels of each convolution."""
    depth: Depth = 6
    """Blocks, each with twice the dilation of the one before."""
    dropout: Dropout = 0.5
    """Dropout rate of the blocks and the head."""

    @property
    def n_blocks(self) -> int:
        return self.depth


class VitConfig(Network):
    """A transformer whose tokens are patches of one channel (`raypipe.models.vit`)."""

    encodes: ClassVar[bool] = True

    name: Literal["vit"] = "vit"
    """This model; the parameters up to the next one are its own."""
    patch: Annotated[int, Field(ge=2, le=100_000)] = 25
    """Samples of a patch."""
    filters: Filters = 40
    """Width of a token (a multiple of `heads`)."""
    depth: Depth = 6
    """Transformer blocks."""
    heads: Heads = 10
    """Attention heads of a block."""
    expansion: Expansion = 4
    """Width of a block's feed-forward layer, in tokens."""
    dropout: Dropout = 0.5
    """Dropout rate of the blocks and the head."""

    @property
    def n_blocks(self) -> int:
        return self.depth
