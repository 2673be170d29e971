"""Resources of a sweep: workers per trial, trials at a time, and the wait for a cluster to grow."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.backend import resources
from raypipe.backend.messages import PretrainLayout
from raypipe.backend.resources import (
    PROCESS_BYTES,
    GpuCount,
    count_places,
    max_trials_in_memory,
    require_place,
    wait_for_resources,
    worker_resources,
    workers_per_trial,
)
from raypipe.backend.resources import divide_resources as fit
from raypipe.core.errors import InterruptedSweepError, UserError
from raypipe.core.gpu_share import PARTS
from raypipe.core.options import SweepOptions
from raypipe.core.stop import StopRequest
from tests.support.callbacks import Recorder


@pytest.mark.parametrize(
    ("folds", "fitting", "size"),
    [(4, 2, 2), (5, 2, 1), (5, 5, 5), (5, 4, 1), (4, 16, 4), (3, 1, 1), (6, 4, 3), (8, 4, 4)],
)
def test_workers_per_trial(folds, fitting, size):
    assert workers_per_trial(folds, fitting) == size


@given(st.integers(2, 20), st.integers(1, 64))
def test_hardly_any_worker_idles(folds, fitting):
    size = workers_per_trial(folds, fitting)
    assert 1 <= size <= min(folds, fitting)
    assert folds / (size * -(-folds // size)) >= 0.95


def layout(n_folds=4, cpus=2.0, gpus=0.0, **options):
    return fit(SweepOptions(**options), n_folds, [{"CPU": cpus, "GPU": gpus}])


def test_all_that_fits_runs_at_a_time():
    assert layout() == (2, 1)
    assert layout(n_folds=5) == (1, 2)
    assert layout(cpus=16) == (4, 4)
    assert layout(cpus=16, concurrent=2) == (4, 2)
    assert layout(cpus=16, concurrent=99) == (4, 4)
    assert layout(cpus=16, workers=8) == (4, 4)  # no more workers than folds
    assert layout(cpus=16, gpus=2, gpus_per_worker=0.25) == (4, 2)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match=r"4 worker\(s\) of 1 CPU.*there are 2 CPU"):
        layout(workers=4)
    with pytest.raises(UserError, match=r"1 GPU\(s\) each do not fit: there are 2 CPU\(s\) and 0 GPU"):
        layout(gpus_per_worker=1)
    with pytest.raises(UserError, match=r"0.6 GPU.* each do not fit: there are 8 CPU.* and 2 GPU\(s\), enough for 2"):
        layout(cpus=8, gpus=2, gpus_per_worker=0.6, workers=3)
    with pytest.raises(UserError, match=r"there are 6 CPU\(s\) and 0 GPU\(s\) on 2 machines, enough for 0;"):
        fit(SweepOptions(cpus_per_worker=4), 4, [{"CPU": 3.0}] * 2)


@pytest.mark.parametrize(
    ("gpus", "share", "workers", "trials"),
    [
        (2, 0.6, 2, 1),
        (8, 0.7, 5, 1),  # 8 workers
        (8, 0.3, 1, 24),
        (8, 1 / 3, 1, 24),
        (1, 0.1, 1, 10),
        (1, 1 / 93, 1, 93),
        (4, 1, 2, 2),
    ],
)
def test_a_worker_has_its_share_of_one_gpu(gpus, share, workers, trials):
    assert layout(5, 200.0, gpus, gpus_per_worker=share, workers=workers) == (workers, trials)


@pytest.mark.parametrize(
    ("nodes", "worker", "places"),
    [
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 2}, 2),
        ([{"CPU": 0.0}, {"memory": 1e9}, {"CPU": 3.0}], {"CPU": 1}, 3),  # a head without cores
        ([{"CPU": 0.1 * 3}, {"CPU": 0.3}], {"CPU": 0.1}, 6),
        ([{"CPU": 1.0 - 0.9}], {"CPU": 0.1}, 1),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}], {"CPU": 1, "GPU": 1}, 1),
        ([{"CPU": 2.0, "GPU": 8.0}], {"CPU": 1, "GPU": 0.5}, 2),
        ([{"CPU": 2.0}], {"CPU": 1, "GPU": 0}, 2),
        ([], {"CPU": 1}, 0),
    ],
)
def test_a_worker_is_on_one_node(nodes, worker, places):
    assert count_places(nodes, worker) == places


AMOUNTS = st.integers(1, 80).map(lambda tenths: tenths / 10)
NODES = st.lists(
    st.fixed_dictionaries({"CPU": AMOUNTS | st.just(0.0), "GPU": st.integers(0, 8).map(float)}), max_size=5
)
SHARES = st.sampled_from([0.0, 0.3, 0.4, 0.6, 0.7, 1.0]) | st.floats(1 / 28, 1)
"""Of smaller shares, what Ray rounds may amount to a worker."""


@given(
    NODES,
    st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0]),
    SHARES,
    st.integers(2, 8),
    st.none() | st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_all_workers_of_the_trials_that_fit_find_a_place_on_one_node_and_one_gpu(nodes, cpus, share, folds, asked, rng):
    """Ray looks for a node by the sum of its GPUs, and the node then for a GPU: it must not be sent in vain."""
    try:
        workers, trials = fit(SweepOptions(cpus_per_worker=cpus, gpus_per_worker=share, workers=asked), folds, nodes)
    except UserError:
        workers, trials = min(asked or 1, folds), 0
    need = worker_resources(cpus, share)
    cpu, gpu = round(cpus * PARTS), round(need.get("GPU", 0.0) * PARTS)
    cores = [round(node["CPU"] * PARTS) for node in nodes]
    cards = [[PARTS] * int(node["GPU"]) for node in nodes]

    def nodes_by_sums():
        return [n for n in range(len(nodes)) if cores[n] >= cpu and sum(cards[n]) >= gpu]

    for _ in range(trials * workers):
        place = rng.choice(nodes_by_sums())
        cores[place] -= cpu
        if gpu:
            card = next(number for number, left in enumerate(cards[place]) if left >= gpu)
            cards[place][card] -= gpu
            assert cards[place][card] >= 0 and share <= 1 / (PARTS // gpu) + 1e-9
    left = sum(min(c // cpu, sum(g // gpu for g in cs) if gpu else c) for c, cs in zip(cores, cards, strict=True))
    assert left < workers, "and no more trials would"


def node(name, alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": 1.0} | resources}


def test_the_memory_of_all_machines_bounds_trials_at_a_time(monkeypatch):
    nodes = [node("head", memory=9.5 * PROCESS_BYTES), node("b", memory=4.9 * PROCESS_BYTES)]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, node("lost", False, memory=1e12), node("counts none")])
    assert max_trials_in_memory("head", 10**6, 2) == (9 + 4) // 2
    assert max_trials_in_memory("head", 3 * PROCESS_BYTES, 2) == 3, "what each trial needs beside the driver"
    assert max_trials_in_memory("b", 3 * PROCESS_BYTES, 2) == 1
    assert max_trials_in_memory("head", 10**15, 2) == 1, "at least one trial runs"
    assert max_trials_in_memory("counts none", 10**6, 2) == 6
    assert max_trials_in_memory("head", 0, 0) > 10**6, "simulated trials take nothing"
    monkeypatch.setattr("ray.nodes", lambda: [node("counts none")])
    assert max_trials_in_memory("counts none", 10**6, 2) > 10**6


@given(st.lists(st.floats(0, 12), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_whatever_the_order_and_the_nodes_all_processes_of_the_trials_that_fit_find_a_place(sizes, rng):
    free = [size * PROCESS_BYTES for size in sizes]
    nodes = [node(str(number), memory=memory) for number, memory in enumerate(free)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.nodes", lambda: nodes)
        trials = max_trials_in_memory("0", 0, 2)
    if sum(int(memory // PROCESS_BYTES) for memory in free) < 2:
        return  # one trial is tried in any case
    for _ in range(2 * trials):
        place = rng.choice([number for number, memory in enumerate(free) if memory >= PROCESS_BYTES])
        free[place] -= PROCESS_BYTES
    fitting = sum(int(node["Resources"]["memory"] // PROCESS_BYTES) for node in nodes)
    assert fitting - 2 * trials < 2, "and no more trials would"


def test_pretraining_waits_for_a_place_on_a_cluster_only_and_says_so(monkeypatch):
    nodes, told = [node("a", CPU=3.0), node("b", CPU=3.0), node("lost", False, CPU=9.0)], Recorder()
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    require_place(PretrainLayout(workers=9, cpus_per_worker=3), told)
    with pytest.raises(UserError, match=r"1 worker\(s\) of 4 CPU.* do not fit: there are 6 CPU.* on 2 machines"):
        require_place(PretrainLayout(cpus_per_worker=4), told)
    assert not told.of("on_waiting")
    require_place(PretrainLayout(gpus_per_worker=1, address="auto"), told)
    assert "1 GPU(s) each do not fit" in told.of("on_waiting")[0].reason


class Growing:
    """Cluster that gets a CPU per second, up to `most`; `asked` are the requests for machines."""

    def __init__(self, monkeypatch, most):
        self.seconds, self.most, self.asked, self.seen = 0.0, most, [], Recorder()
        monkeypatch.setattr("ray.nodes", lambda: [node("a", CPU=min(self.seconds, self.most)), node("b", False)])
        monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: self.asked.append(bundles))

    def sleep(self, seconds):
        self.seconds += seconds

    def fit(self, stop=None, **options):
        clock, sleep = (lambda: self.seconds), self.sleep
        return wait_for_resources(SweepOptions(**options), 4, self.seen, stop or StopRequest(), clock, sleep)


def test_a_cluster_that_is_too_small_is_asked_for_machines_and_waited_for(monkeypatch):
    cluster = Growing(monkeypatch, most=8)
    assert cluster.fit(address="auto", workers=2, concurrent=3) == (2, 3)
    assert cluster.seconds == 6
    assert cluster.asked == [[{"CPU": 1}] * 6, []], "asked once, and no more than was needed is kept"
    (waiting,) = cluster.seen.of("on_waiting")
    assert "do not fit: there are 0 CPU" in waiting.reason


def test_a_cluster_that_does_not_grow_is_used_as_it_is_and_an_empty_one_is_one_line(monkeypatch):
    cluster = Growing(monkeypatch, most=4)
    assert cluster.fit(address="auto", workers=2, concurrent=3) == (2, 2)
    assert 600 < cluster.seconds < 610
    with pytest.raises(UserError, match="there are 0 CPU"):
        Growing(monkeypatch, most=0).fit(address="auto")


def test_a_stop_request_ends_the_wait_for_a_cluster(monkeypatch):
    cluster, stop = Growing(monkeypatch, most=0), StopRequest()
    cluster.seen._then = lambda *_: stop.set()
    with pytest.raises(InterruptedSweepError):
        cluster.fit(stop, address="auto")
    assert cluster.seconds == 0 and cluster.asked[-1] == [], "the request for machines is withdrawn"


def test_this_machine_does_not_grow(monkeypatch):
    cluster = Growing(monkeypatch, most=8)
    with pytest.raises(UserError, match="do not fit"):
        cluster.fit()
    assert (cluster.seconds, cluster.asked) == (0, [])


def test_gpus_are_counted_without_waiting_for_a_control_store_that_is_away(monkeypatch):
    answer, back, calls = {"GPU": 2.0}, threading.Event(), []

    def ask():
        calls.append(1)
        if len(calls) == 2:
            back.wait()
        return answer

    monkeypatch.setattr("ray.cluster_resources", ask)
    count = GpuCount()
    assert count() == 2.0
    answer = {}
    monkeypatch.setattr(resources, "COUNT_SECONDS", 0.0)
    assert [count(), count()] == [2.0, 2.0], "the last count"
    assert len(calls) == 2, "it asks once"
    back.set()
    count._asking.join()
    assert count._gpus == 0.0


def test_gpus_that_cannot_be_counted_yet_are_all_that_were_asked_for(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: 1 / 0)
    assert min(4.0, GpuCount()()) == 4.0
