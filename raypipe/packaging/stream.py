"""Predict a stream of LabStreamingLayer with a bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from raypipe.packaging.bundle import LoadedEnsemble, load_ensemble
from raypipe.packaging.live import LivePredictor, LiveWindow
from raypipe.packaging.live_checks import check_bundle
from raypipe.recordings.live import JITTER, SampleSource
from raypipe.recordings.lsl import WAIT, LslSource


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def stream(
    bundle: str | Path | LoadedEnsemble,
    source: str | SampleSource,
    *,
    every: float | None = None,
    unit: str = "",
    jitter: float = JITTER,
    wait: float = WAIT,
    device: str = "cpu",
    say: Callable[[str], object] = _say,
) -> LivePredictor:
    """Predict the windows of a stream while it is recorded.

    Samples are prepared as the training data were, so that predictions are those of `predict` for the recorded file.
    They lie behind the signal by half the length of the filters. Channels are found by name. Where stamps show that
    samples were lost, windows begin anew.

    Parameters
    ----------
    bundle
        A bundle's folder, or a bundle that was read.
    source
        Name of a stream of LabStreamingLayer, which needs pylsl (the extra ``stream``); or an object with the name,
        the channels and the method `pull` of `raypipe.recordings.live.SampleSource`.
    every
        Seconds from one window to the next. None: as in the bundle's data.
    unit
        Unit of channels whose description has none, such as ``uV``.
    jitter
        Seconds by which the stamps of samples may be off without a gap.
    wait
        Seconds to wait for the stream at first, and for its return.
    device
        Where a bundle's folder is run, ``cpu`` or ``cuda``.
    say
        Called with sentences on the stream, which are not part of the predictions. Default: standard error.

    Returns
    -------
    LivePredictor
        An iterator over windows, which waits for samples and ends with the stream. A window has its `start` on the LSL
        clock (s), its `prediction` (class probabilities, or the value), the `label` of the class, a `flag` where there
        is no prediction, and the `delay` of the prediction (s). The iterator's `behind` is how far predictions lie
        behind the signal (s), its ``summary()`` says what has been predicted.

    Raises
    ------
    UserError
        The stream is not there, or lacks channels, units or a fitting rate; the bundle's windows cannot be cut from
        a stream, as those that are aligned to a recording; or pylsl is missing.

    Examples
    --------
    >>> for window in stream("demo/bundle", "EEG"):  # doctest: +SKIP
    ...     print(window.start, window.prediction)
    """
    ensemble = bundle if isinstance(bundle, LoadedEnsemble) else load_ensemble(bundle, device=device)
    check_bundle(ensemble, every, jitter)  # before it waits for a stream
    found = LslSource(source, unit=unit, wait=wait, say=say) if isinstance(source, str) else source
    return LivePredictor(ensemble, found, every=every, jitter=jitter, say=say)


def table_head(ensemble: LoadedEnsemble) -> str:
    """Return the names of the columns of `table_line`."""
    return "\t".join(["start", *ensemble.columns, *(["prediction"] if ensemble.classes else []), "flag"])


def table_line(ensemble: LoadedEnsemble, window: LiveWindow) -> str:
    """Return a window as a line of a TSV file: start (s), probabilities, class or value, flag; ``n/a`` for none."""
    values = ["n/a"] * ensemble.info.n_outputs if window.prediction is None else [f"{v:.7g}" for v in window.prediction]
    classes = [window.label or "n/a"] if ensemble.classes else []
    return "\t".join([f"{window.start:.6f}", *values, *classes, window.flag])
