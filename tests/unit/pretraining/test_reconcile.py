"""Records of a pretrained run that were lost, changed or exchanged: made again with the same numbers, or refused."""

from __future__ import annotations

import collections
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe.cli.doctor import diagnose
from raypipe.core.errors import CheckpointError, DamagedFileError, InterruptedSweepError, UserError
from raypipe.core.stop import StopRequest
from raypipe.pretraining.encoders import CARD_FILE, PretrainedRun, encoder_files, load_encoder, read_card
from raypipe.search.pretrain import pretrain, resume
from raypipe.storage.lease import DRIVER_FILE
from raypipe.storage.records import OPTIONS_FILE
from raypipe.trial.callback import SweepCallback
from tests.support.damage import damage
from tests.support.toys import ToyWindows, write_store

PARAMS = {"model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16, "batch_size": 8, "epochs": 2}
FIRST, SECOND = "encoder-fold-0.safetensors", "encoder-fold-1.safetensors"


class Said(SweepCallback):
    """What a driver warns of."""

    def __init__(self):
        self.lines = []

    def on_warning(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("toy") / "store", ToyWindows(subjects=8, each=4))


def make(store, where, stop_after=0, **options):
    """Pretrain an encoder for each of three folds, to the end or for some epochs."""
    stop, done = StopRequest(), []

    def count(epochs, total, text):
        done.append(epochs)
        if len(done) == stop_after:
            stop.set()

    how = {"params": PARAMS, "folds": 3, "fold_wise": True, "probe_every": 0} | options
    if stop_after:
        with pytest.raises(InterruptedSweepError):
            pretrain("mae", store, where, progress=count, stop=stop, **how)
    else:
        pretrain("mae", store, where, **how)
    return where


@pytest.fixture(scope="module")
def finished(store):
    return make(store, store.parent / "finished")


@pytest.fixture(scope="module")
def stopped(store):
    """A run whose first two encoders are finished, and whose third has one epoch."""
    return make(store, store.parent / "stopped", 5)


@pytest.fixture(scope="module")
def other(store):
    """The same of other folds: other people are held out."""
    return make(store, store.parent / "other", 5, held_out=0.4)


@pytest.fixture
def left(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def numbers_of(where):
    """Return all numbers of a finished run."""
    run = PretrainedRun(where)
    losses = {part: [(e.epoch, e.loss, e.probe) for e in run.history(part)] for part in run.parts}
    last = {part: (e.epoch, e.loss, e.probe) for part, e in read_card(where).last.items()}
    for fold in range(3):
        load_encoder(where, fold=fold)
    return encoder_files(where), losses, last


def broken(where):
    return [finding.what for finding in diagnose(where) if finding.level == "broken"]


def exchange(where, one, two):
    first, second = (where / one).read_bytes(), (where / two).read_bytes()
    (where / one).write_bytes(second)
    (where / two).write_bytes(first)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 0x01
    path.write_bytes(bytes(content))


def forget_the_digest(where):
    """As if the process had died before the encoder was written, and the encoder came from elsewhere."""
    run = PretrainedRun(where)
    run.write_history("fold-0", run.history("fold-0"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda where: exchange(where, FIRST, SECOND),
        lambda where: flip(where / FIRST),
        lambda where: (where / FIRST).write_bytes(b""),
        forget_the_digest,
    ],
    ids=["exchanged", "flipped", "empty", "unknown"],
)
@pytest.mark.parametrize("ended", [False, True], ids=["stopped", "without its card"])
def test_an_encoder_that_is_not_the_one_written_is_made_again(stopped, finished, tmp_path, harm, ended):
    where = shutil.copytree(finished if ended else stopped, tmp_path / "run")
    if ended:
        (where / CARD_FILE).unlink()
    harm(where)
    assert any(FIRST in what for what in broken(where))
    said = Said()
    resume(where, callback=said)
    assert numbers_of(where)[0] == numbers_of(finished)[0]
    assert [line for line in said.lines if f"{FIRST}: not the encoder that fold-0/history.json has" in line]
    assert not broken(where)


def test_a_run_does_not_finish_with_another_encoder(stopped, finished, tmp_path):
    where = shutil.copytree(finished, tmp_path / "run")
    (where / CARD_FILE).unlink()
    flip(where / SECOND)
    with pytest.raises(DamagedFileError, match=rf"{SECOND}: changed since it was written"):
        PretrainedRun(where).finish()
    (where / SECOND).unlink()
    with pytest.raises(DamagedFileError, match=rf"{SECOND}: missing"):
        PretrainedRun(where).finish()


def test_a_kill_before_the_encoder_is_written_changes_nothing(store, finished, tmp_path):
    where = shutil.copytree(finished, tmp_path / "run")
    for name in (CARD_FILE, SECOND):
        (where / name).unlink()
    said = Said()
    resume(where, callback=said)
    assert numbers_of(where) == numbers_of(finished)
    assert said.lines == []


def test_the_checkpoint_of_another_run_is_passed_over(left, other, finished):
    name = "fold-2/epoch-0001.ckpt"
    shutil.copy(other / name, left / name)
    with pytest.raises(CheckpointError, match="the checkpoint of another run"):
        PretrainedRun(left).checkpoint("fold-2", 1)
    assert any(name in what for what in broken(left))
    resume(left)
    assert numbers_of(left)[0] == numbers_of(finished)[0]


@pytest.mark.parametrize("ended", [False, True], ids=["stopped", "finished"])
@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda where, _: exchange(where, "fold-0/history.json", "fold-1/history.json"), "the record of fold-1"),
        (
            lambda where, other: shutil.copy(other / "fold-0/history.json", where / "fold-0"),
            "the record of another run",
        ),
        (lambda where, _: (where / "fold-0/history.json").unlink(), "missing"),
        (lambda where, _: flip(where / "fold-0/history.json"), "changed since raypipe wrote it"),
    ],
    ids=["exchanged", "foreign", "lost", "damaged"],
)
def test_a_history_is_made_again_from_the_last_checkpoint(stopped, finished, other, tmp_path, harm, what, ended):
    where = shutil.copytree(finished if ended else stopped, tmp_path / "run")
    harm(where, other)
    assert any("fold-0/history.json" in line and what in line for line in broken(where))
    said = Said()
    resume(where, callback=said)
    assert numbers_of(where) == numbers_of(finished)
    assert any("fold-0/history.json" in line and what in line for line in said.lines)
    assert not broken(where)


def test_a_history_that_no_checkpoint_has_is_refused_in_a_finished_run(finished, tmp_path):
    where = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(where / "fold-1")
    assert any("fold-1/history.json" in line for line in broken(where))
    with pytest.raises(
        DamagedFileError, match=r"fold-1/history\.json: missing; restore it, or card\.json, from a copy"
    ):
        resume(where)


def test_the_card_of_another_run_is_found(store, finished, tmp_path):
    foreign = make(store, tmp_path / "foreign", seed=1)
    where = shutil.copytree(finished, tmp_path / "run")
    for name in (CARD_FILE, *encoder_files(foreign)):
        shutil.copy(foreign / name, where / name)
    assert any("not the one that card.json was written with" in line for line in broken(where))
    with pytest.raises(DamagedFileError, match=r"restore it, or card\.json, from a copy"):
        resume(where)


@pytest.mark.parametrize("name", [OPTIONS_FILE, DRIVER_FILE])
def test_small_records_of_another_run_are_refused(left, other, name):
    shutil.copy(other / name, left / name)
    with pytest.raises(DamagedFileError, match="the record of another run"):
        resume(left)
    assert any("the record of another run" in line for line in broken(left))


def test_lost_options_are_not_replaced_by_others(store, left, finished):
    (left / OPTIONS_FILE).unlink()
    message = r"options\.json: missing; give the same raypipe pretrain command again"
    with pytest.raises(UserError, match=message):
        resume(left)
    assert any("options.json: missing" in line for line in broken(left))
    make(store, left)
    assert numbers_of(left) == numbers_of(finished)


def test_a_run_without_its_fold_map_is_one_line(left):
    (left / "folds.json").unlink()
    with pytest.raises(DamagedFileError, match=r"folds\.json: missing; restore it from a copy"):
        PretrainedRun(left)


@pytest.mark.parametrize("name", ["fold-2", FIRST, "fold-0/history.json", OPTIONS_FILE])
def test_nothing_is_read_or_written_through_a_link(left, tmp_path, name):
    (left / name).rename(tmp_path / "aside")
    (left / name).symlink_to(tmp_path / "aside")
    with pytest.raises(DamagedFileError, match=f"{name}: a link, and raypipe writes through none"):
        resume(left)
    assert any(f"{name}: a link" in line for line in broken(left))


def check(source, where, store, expected, harm, counts):
    """Damage a copy of a run, and check what comes out."""
    shutil.copytree(source, where)
    done, said = harm(where), Said()
    try:
        resume(where, callback=said)
        numbers = numbers_of(where)
    except UserError as error:
        assert "\n" not in str(error), done
        found = broken(where)
        assert found, (done, str(error))
        assert not any("Errno" in what for what in found), (done, found)
        counts["refused, found by doctor"] += 1
        return
    assert numbers == expected, (done, said.lines)
    counts["made again" if said.lines else "as before"] += 1


def play(count, sources, store, finished, tmp_path_factory):
    counts, expected = collections.Counter(), numbers_of(finished)

    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def one(data):
        source = data.draw(st.sampled_from(sources), label="run")
        where = tmp_path_factory.mktemp("damaged") / "run"
        try:
            check(source, where, store, expected, lambda place: damage(place, data), counts)
        finally:
            shutil.rmtree(where.parent)

    one()
    print(f"\n{sum(counts.values())} damages of pretrained runs: {dict(counts)}; 0 tracebacks, 0 silent changes")


def test_some_drawn_damages(store, stopped, finished, tmp_path_factory):
    play(15, [stopped, finished], store, finished, tmp_path_factory)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_300_drawn_damages(store, stopped, finished, tmp_path_factory):
    play(300, [stopped, finished], store, finished, tmp_path_factory)
