"""Configurations of the models: a class for each, told apart by ``model/name``.

A parameter belongs to one model only: of another it is an unknown parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag, model_validator

from raypipe.core import own_code
from raypipe.core.own_code import SourceFile
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
    """Parameters on which it depends how it is computed fastest; empty if there is only one way."""
    closed_form: ClassVar[bool] = False
    """It is fitted in closed form, in one epoch, and not trained by gradients."""

    name: str

    @property
    def n_bins(self) -> int:
        """Return the bins of a predicted distribution; 0 without one."""
        return 0

    @property
    def uncertainty(self) -> Literal["bins", "variance"] | None:
        """Return the parameter by which the model predicts a variance too; None if it does not."""
        return None

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
    compute_parameters: ClassVar[tuple[str, ...]] = ("kernels", "filters", "depth")

    name: Literal["conformer"] = "conformer"
    """This model; the parameters up to the next one are its own."""
    kernels: Literal["rate", "paper", "short"] = "rate"
    """Lengths of temporal kernel, pool and stride. `rate`: the paper's (25, 75, 15 samples at 250 Hz) scaled to the
    data's sampling rate (10, 30, 6 at 100 Hz); `paper`: the same numbers of samples at any rate; `short`: as `rate`
    with a third of the pool (10, 10, 6 at 100 Hz), for targets that are times."""
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
    (square, mean, log: Schirrmeister et al. 2017), for tasks that depend on rhythms."""

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
    sampling rate (50 and 3 at 100 Hz); `paper`: the same numbers of samples at any rate."""
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


class ClosedFormConfig(Model):
    """Base class of models that are fitted in closed form, on frequency bands and spatial components."""

    closed_form: ClassVar[bool] = True

    bands: Literal["rhythms", "theta-alpha", "even", "log"] = "rhythms"
    """Frequency bands: `rhythms`, 1 to 4, 8, 13, 30 and 45 Hz; `theta-alpha`, 4 to 8 and 13 Hz; `even`, `n_bands` of
    equal width from `low` to `high` (a filter bank, Ang et al. 2012); `log`, `n_bands` of equal ratio. A band without a
    frequency of the window's Fourier transform is left out: it is above half the sampling rate, or narrower than one
    over the window's length."""
    low: Annotated[float, Field(gt=0.0, le=10_000.0)] = 4.0
    """Hz: lower edge of the first band of `even` and `log`."""
    high: Annotated[float, Field(gt=0.0, le=10_000.0)] = 40.0
    """Hz: upper edge of the last band of `even` and `log`."""
    n_bands: Annotated[int, Field(ge=1, le=100)] = 9
    """Number of bands of `even` and `log`."""
    components: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Spatial components that replace the channels, the principal ones of the training windows; 0, or as many as there
    are channels, for the channels. Needed where there are many channels."""

    @model_validator(mode="after")
    def _edges_are_in_order(self) -> Self:
        if self.bands not in ("even", "log"):
            self._require_defaults("bands=even or log", "low", "high", "n_bands")
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g} Hz) must be below high ({self.high:g} Hz)")
        return self

    def _require_defaults(self, needed: str, *names: str) -> None:
        """Refuse values of parameters that have no effect without what is `needed`."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for {needed}: leave it out")


class CovarianceConfig(ClosedFormConfig):
    """Riemannian decoding: tangent vectors of each band's covariance, and a linear map of them (Barachant et al. 2013,
    doi:10.1016/j.neucom.2012.12.039; regressions: Sabbagh et al. 2020, doi:10.1016/j.neuroimage.2020.116893). It is
    fitted in closed form; the penalty is chosen on subjects of the training side."""

    name: Literal["covariance"] = "covariance"
    """This model; the parameters up to the next one are its own."""
    taper: Literal["none", "hann"] = "none"
    """Taper of the window before its Fourier transform; `hann` keeps slow drifts out of higher bands."""
    shrinkage: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of the scaled identity in each covariance. Without any, the logarithms of directions that references or
    artefact removal have emptied are noise."""
    standardise: Literal["all", "each"] = "all"
    """Tangent vectors are centred, and divided by one number, which keeps the distances between windows (`all`), or
    each of their values by its own standard deviation (`each`)."""
    scale: Literal["none", "window", "band"] = "none"
    """Covariances are divided by their trace: `window`, by the trace over all bands, which keeps the relative power of
    bands; `band`, each by its own; `none`, not at all."""
    geometry: Literal["log-euclid", "riemann"] = "log-euclid"
    """Tangent vectors: `log-euclid`, logarithms of covariances; `riemann`, logarithms after whitening by the
    affine-invariant mean of the training windows, which no mixing of channels changes."""
    order: Annotated[int, Field(ge=1, le=100)] = 1
    """Time-delay embedding: the copies of each signal whose covariance it is, each later than the one before (ACM,
    Carrara & Papadopoulo 2024, doi:10.1088/1741-2552/ad4ab3); 1 for none."""
    lag: Annotated[float, Field(gt=0.0, le=10.0)] = 0.02
    """Seconds from one copy to the next, with `order` above 1."""
    prototypes: Annotated[int, Field(ge=0, le=100)] = 0
    """For windows that are cut at events: spatial filters (xDAWN, Rivet et al. 2009) for each class, or each third of a
    regression's targets, whose mean responses are further signals; 0 for none."""

    @model_validator(mode="after")
    def _one_kind_of_further_signals(self) -> Self:
        if self.order > 1 and self.prototypes:
            raise ValueError("order and prototypes both add signals: use one of them")
        if self.order == 1:
            self._require_defaults("order above 1", "lag")
        return self


class LinearConfig(ClosedFormConfig):
    """Ridge regression, or logistic regression for classes, fitted in closed form; the penalty is chosen on subjects of
    the training side."""

    name: Literal["linear"] = "linear"
    """This model; the parameters up to the next one are its own."""
    predictors: Literal["band-power", "time-courses"] = "band-power"
    """`band-power`: logarithm of the power in each band; `time-courses`: mean amplitudes of short intervals, for
    windows that are cut at events."""
    rate: Annotated[float, Field(gt=0.0, le=100_000.0)] = 20.0
    """Intervals of `time-courses` per second."""

    @model_validator(mode="after")
    def _parameters_are_those_of_the_predictors(self) -> Self:
        if self.predictors == "band-power":
            self._require_defaults("predictors=time-courses", "rate")
        else:
            self._require_defaults("predictors=band-power", "bands", "low", "high", "n_bands")
        return self


def _freeze(value: Any) -> Any:
    """Return an argument of a network so that it can be hashed: text, a number, a truth value, None, or tuples."""
    if isinstance(value, list | tuple):
        return tuple(_freeze(each) for each in value)
    if value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError(f"must be text, a number, True, False, None or a list of these (given {type(value).__name__})")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite (given {value})")
    return value


def _freeze_args(value: Any) -> Any:
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple(sorted((str(name), _freeze(each)) for name, each in pairs))


class OwnConfig(Network):
    """A network of one's own: ``Net(n_channels, n_times, n_outputs, sfreq, **args)``, see docs/models.md."""

    name: str
    """`file.py:Name` with a file beside the search space, `package.module:Name`, or a name that a package registers
    (entry point `raypipe.models`)."""
    args: Annotated[
        tuple[tuple[str, Any], ...], BeforeValidator(_freeze_args), PlainSerializer(dict, return_type=dict)
    ] = ()
    """Its arguments, searched as `model/args/NAME`."""
    code: Annotated[str, Field(max_length=200)] = ""
    """The file's hash, or the package and its version; set by raypipe."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_own, (type(self), self.model_dump(), own_code.known_source(self.code))


def _restore_own(kind: Callable[..., Any], fields: Mapping[str, Any], source: SourceFile | None) -> Any:
    """Return a configuration in another process, which then knows the file of its code."""
    if source is not None:
        own_code.keep_source(source)
    return kind(**fields)


def _tag(value: Any) -> str:
    """Return the model that a configuration is of: ``own`` for a user's, the Conformer for one without a name."""
    is_map = isinstance(value, Mapping)
    name = str(value.get("name", "conformer") if is_map else getattr(value, "name", ""))
    if name in MODELS:
        return name
    return "own" if isinstance(value, OwnConfig) or (is_map and "code" in value) or own_code.is_code(name) else name


ModelConfig = Annotated[
    Annotated[ConformerConfig, Tag("conformer")]
    | Annotated[EegnetConfig, Tag("eegnet")]
    | Annotated[ShallowConfig, Tag("shallow")]
    | Annotated[TcnConfig, Tag("tcn")]
    | Annotated[VitConfig, Tag("vit")]
    | Annotated[CovarianceConfig, Tag("covariance")]
    | Annotated[LinearConfig, Tag("linear")]
    | Annotated[OwnConfig, Tag("own")],
    Discriminator(_tag),
]
"""The model of a trial; `name` decides which parameters there are."""

MODELS: dict[str, type[Model]] = {
    "conformer": ConformerConfig,
    "eegnet": EegnetConfig,
    "shallow": ShallowConfig,
    "tcn": TcnConfig,
    "vit": VitConfig,
    "covariance": CovarianceConfig,
    "linear": LinearConfig,
}
"""The configurations by ``model/name``; `OwnConfig` has all other names."""


def is_closed_form(model: object) -> bool:
    """Return whether a model, its configuration or its ``model/`` parameters, is fitted in closed form."""
    config = MODELS.get(_tag(model))
    return config is not None and config.closed_form
