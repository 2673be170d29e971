"""Steps that do not wait for their outcome, on a CPU; and when a call is captured, with a stand-in for CUDA graphs."""

from __future__ import annotations

import contextlib
import copy
import weakref

import numpy as np
import pytest
import torch

from raypipe.core.errors import NonFiniteError
from raypipe.training import graphs
from raypipe.training.graphs import MAX_GRAPHS, UNCAPTURED_CALLS, CudaGraphs
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from tests.support.toys import ToyWindows, fold_trainer, tiny


def trainer(**changes):
    toy = ToyWindows()
    index = np.arange(len(toy))
    return fold_trainer(tiny(**changes), toy, index[16:], index[:16], fold=0)


@pytest.mark.parametrize("method", ["none", "sam", "asam", "looksam", "msam"])
def test_steps_that_do_not_wait_have_the_same_numbers(method, monkeypatch, request):
    waiting = trainer(sam__name=method)
    expected = [waiting.run_epoch() for _ in range(2)]
    request.getfixturevalue("deferred")
    one = trainer(sam__name=method)
    one.state.optimizer.use_device_rate()
    for outcome, reference in zip([one.run_epoch() for _ in range(2)], expected, strict=True):
        assert outcome.loss == pytest.approx(reference.loss, rel=1e-5)
        np.testing.assert_allclose(outcome.predictions, reference.predictions, atol=1e-4)


@pytest.mark.parametrize("passes", [(True, True), (True, False), (False, True)], ids=["both", "first", "second"])
@pytest.mark.parametrize("method", ["none", "sam", "msam"])
def test_a_step_that_is_not_finite_moves_nothing(deferred, method, passes):
    one = trainer(sam__name=method)
    one.run_epoch()
    before = copy.deepcopy(one.state.state_dict())
    calls = []
    real = one.loss

    def loss(raw, y):
        calls.append(1)
        return real(raw, y) * (float("inf") if passes[(len(calls) - 1) % 2] else 1.0)

    one.loss = loss
    one.start_epoch()
    batch = next(one.batches())
    found = one.step(batch, 0)
    bad = passes[0] if method != "sam" else True
    assert isinstance(found, torch.Tensor) and found.isfinite() == (not bad)
    if bad:
        torch.testing.assert_close(weights_and_moments(one.state.state_dict()), weights_and_moments(before))


def weights_and_moments(state):
    learned = {k: v for k, v in state["model"].items() if "running" not in k and "num_batches" not in k}
    return learned, state["optimizer"]["state"]


@pytest.mark.parametrize("train", [SupervisedTrainer.run_epoch, SupervisedTrainer.train_epoch])
def test_an_epoch_with_such_a_step_fails(deferred, train):
    one = trainer()
    real = one.loss
    one.loss = lambda raw, y: real(raw, y) * float("nan")
    with pytest.raises(NonFiniteError, match="fold 0, epoch 1: the training loss is not finite"):
        train(one)


def test_a_stacked_epoch_with_such_a_step_fails(deferred):
    pair = [trainer(), trainer()]
    real = pair[1].loss
    pair[1].loss = lambda raw, y: real(raw, y) * float("nan")
    with pytest.raises(NonFiniteError, match="fold 0, epoch 1: the training loss is not finite"):
        StackedTrainer(pair).run_epoch()


def test_a_learning_rate_on_the_device_is_saved_as_a_number():
    one = trainer()
    one.state.optimizer.use_device_rate()
    one.run_epoch()
    saved = one.state_dict()
    assert all(isinstance(g["lr"], float) and not g["capturable"] for g in saved["optimizer"]["param_groups"])
    other = trainer()
    other.state.optimizer.use_device_rate()
    other.load_state_dict(saved)
    groups = other.state.optimizer.param_groups
    assert all(isinstance(g["lr"], torch.Tensor) and g["capturable"] for g in groups)
    assert float(groups[0]["lr"]) == pytest.approx(saved["optimizer"]["param_groups"][0]["lr"])
    other.run_epoch()
    one.run_epoch()
    torch.testing.assert_close(weights_and_moments(other.state_dict()), weights_and_moments(one.state_dict()))


class Calls:
    """A function of tensors whose captures are recorded instead."""

    def __init__(self, monkeypatch):
        self.plain, self.captured, self.replayed = 0, 0, 0
        self.graphs = CudaGraphs(self.double)
        monkeypatch.setattr(self.graphs, "_capture", self.capture)

    def double(self, arguments):
        self.plain += 1
        return arguments[0] * 2

    def capture(self, arguments):
        self.captured += 1
        inputs = [None if argument is None else argument.clone() for argument in arguments]
        output = torch.empty_like(arguments[0])
        calls = self

        class Graph:
            def replay(self):
                calls.replayed += 1
                output.copy_(inputs[0] * 2)

        return graphs._Captured(Graph(), inputs, output)


def test_a_shape_is_captured_after_a_few_calls_and_then_replayed(monkeypatch):
    calls = Calls(monkeypatch)
    results = [calls.graphs([torch.full((3,), float(n)), None], 0) for n in range(UNCAPTURED_CALLS + 3)]
    assert [r[0].item() for r in results] == [2.0 * n for n in range(UNCAPTURED_CALLS + 3)]  # no result is overwritten
    assert (calls.plain, calls.captured, calls.replayed) == (UNCAPTURED_CALLS, 1, 3)


def test_another_version_of_the_state_is_captured_anew(monkeypatch):
    calls = Calls(monkeypatch)
    for version in (0, 1):
        for _ in range(UNCAPTURED_CALLS + 1):
            calls.graphs([torch.ones(3)], version)
    assert (calls.plain, calls.captured, calls.replayed) == (2 * UNCAPTURED_CALLS, 2, 2)


def test_only_so_many_shapes_are_captured(monkeypatch):
    calls = Calls(monkeypatch)
    for size in range(1, MAX_GRAPHS + 3):
        for _ in range(UNCAPTURED_CALLS + 1):
            assert calls.graphs([torch.ones(size)], 0).tolist() == [2.0] * size
    assert calls.captured == MAX_GRAPHS


def test_loading_and_stacking_make_another_version():
    from raypipe.training.stacked_trainer import StackedModels

    one, other = trainer(), trainer()
    before = one.state.version, other.state.version
    one.load_state_dict(one.state_dict())
    between = one.state.version
    StackedModels([one.state, other.state])
    assert before[0] < between < one.state.version and before[1] < other.state.version


def test_nothing_is_captured_on_a_cpu():
    one = trainer(sam__name="sam")
    assert not one.state.deferred and one._stepper._graphs is None and one._forward is None


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_a_capture_that_fails_is_undone_and_leaves_its_pool_to_none(monkeypatch, caplog, out_of_memory):
    """With stand-ins: torch takes the pool of a failed capture for one that is still recorded to."""

    class Graph:
        def pool(self):
            return "of a failed capture"

    pools, undone = [], []

    def capture(graph, pool, capture_error_mode):
        pools.append(pool)
        if len(pools) == 2:
            raise torch.OutOfMemoryError("full") if out_of_memory else RuntimeError("waits")
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(graphs, "_live", weakref.WeakSet())
    calls = CudaGraphs(lambda arguments: arguments[0] * 2, lambda: undone.append(True))
    first = calls._capture([torch.ones(3)])
    if out_of_memory:
        with pytest.raises(torch.OutOfMemoryError):
            calls._capture([torch.ones(3)])
    else:
        assert calls._capture([torch.ones(3)]) is None
        assert "computed kernel by kernel, not as a CUDA graph: waits" in caplog.text
    last = calls._capture([torch.ones(3)])
    assert first is not None and last is not None and undone == [True]
    assert pools == [None, "of a failed capture", None]
