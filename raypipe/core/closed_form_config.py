"""Configurations of models that are fitted in closed form."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raypipe.core.network_config import Model


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
    """Spatial components that replace the channels, the principal ones of the training windows (of 2,048, if
    there are more); 0, or as many as there
    are channels, for the channels. Needed where there are many channels."""
    bins: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Regression: 0 for ridge regression, or groups of as many targets each, of which a linear discriminant analysis
    predicts probabilities. Their mean is the prediction, and their variance the predicted uncertainty, which ensembles
    calibrate. For a target that depends on features in no straight line, such as the delay of a response. Classes have
    no bins."""
    crops: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Crops of each training window to fit on, evenly spaced over the places where a window can be cut; 1 for the crop
    that is evaluated. Only the tasks whose windows are longer than their crops have more than one."""

    @property
    def n_bins(self) -> int:
        """Return the groups of a regression's targets; 0 for none."""
        return self.bins

    @property
    def uncertainty(self) -> Literal["bins"] | None:
        """Return what predicts the uncertainty of a regression, if anything does."""
        return "bins" if self.bins else None

    @property
    def for_regression_only(self) -> None:
        """Return None: a model of classes has no bins, so that one configuration suits both kinds of target."""
        return None

    @model_validator(mode="after")
    def _edges_are_in_order(self) -> Self:
        if self.bins == 1:
            raise ValueError("bins=1 can tell no targets apart: set 0, or 2 or more")
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
    standardise: Literal["all", "half", "each"] = "all"
    """Tangent vectors are centred, and divided by one number, which keeps the distances between windows (`all`), or
    each of their values by its own standard deviation (`each`), or by the root of it (`half`)."""
    scale: Literal["none", "window", "band"] = "none"
    """Covariances are divided by their trace: `window`, by the trace over all bands, which keeps the relative power of
    bands; `band`, each by its own; `none`, not at all."""
    geometry: Literal["log-euclid", "riemann"] = "log-euclid"
    """Tangent vectors: `log-euclid`, logarithms of covariances; `riemann`, logarithms after whitening by the
    affine-invariant mean of the training windows (of 256, if there are more), in which directions that are
    empty in all of them are left out. Without `shrinkage` and `scale`, no invertible mixing of channels changes
    distances of these vectors."""
    order: Annotated[int, Field(ge=1, le=100)] = 1
    """Time-delay embedding: the copies of each signal whose covariance it is, each later than the one before (ACM,
    Carrara & Papadopoulo 2024, doi:10.1088/1741-2552/ad4ab3); 1 for none. What is shifted out at the end of a window
    comes in at its start."""
    lag: Annotated[float, Field(gt=0.0, le=10.0)] = 0.02
    """Seconds from one copy to the next, with `order` above 1."""
    prototypes: Annotated[int, Field(ge=0, le=100)] = 0
    """For windows that are cut at events: spatial filters (xDAWN, Rivet et al. 2009) for each class, or each third of a
    regression's targets, whose mean responses are further signals; 0 for none. Of K values, windows are in K groups of
    as many each, by the mean of the standardised values. While the penalty is chosen, filters are fitted anew without
    each part of the training subjects."""

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
    scale: Literal["none", "window"] = "none"
    """Signals as they are (`none`), or divided by the root mean square of the window over all of them (`window`), so
    that amplitudes of people do not matter."""
    rate: Annotated[float, Field(gt=0.0, le=100_000.0)] = 20.0
    """Intervals of `time-courses` per second."""

    @model_validator(mode="after")
    def _parameters_are_those_of_the_predictors(self) -> Self:
        if self.predictors == "band-power":
            self._require_defaults("predictors=time-courses", "rate")
        else:
            self._require_defaults("predictors=band-power", "bands", "low", "high", "n_bands")
        return self
