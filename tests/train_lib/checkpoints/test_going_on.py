"""A run that goes on with other flags, other memory or as another's beginning."""

import dataclasses
import json
import pathlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline import splits
from input_pipeline.common.errors import SettingError, UnusableError
from tests.train_lib.test_edges import VALUES, make_trainer
from train_lib import config as config_lib
from train_lib.cadence import Patience, ValidationTracker
from train_lib.checkpoints.resume import kind_of
from train_lib.checkpoints.store import CheckpointStore, find_initial
from train_lib.distribution.workers import OneWorker
from train_lib.records.workdir import open_workdir
from train_lib.setup import initialize, open_run
from train_lib.train import train


@pytest.fixture(scope="module")
def half_done(tmp_path_factory, data_dir):
    """The workdir of a run of six steps after three, with its first evaluation; made with --momentum=0."""
    folder = tmp_path_factory.mktemp("half") / "run"
    trainer = make_trainer(folder, data_dir, momentum=0.0, early_stopping_monitor="validation_loss")
    batches = trainer.run.training_batches()
    while trainer.state.step < 3:
        trainer.turn(batches)
    assert trainer.status is None
    trainer.log.flush()
    return folder


@pytest.fixture
def folder(half_done, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(half_done, tmp_path / "run"))


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def slots(folder):
    """{name: tensor} of the newest checkpoint's momentum."""
    tensors = CheckpointStore(folder / "checkpoints").newest().tensors("optimizer/")
    return {name: tensor for name, tensor in tensors.items() if "momentum" in name}


# Another value to look at.


def test_another_monitor_begins_anew(folder, data_dir):
    """A loss of 2.3 is no accuracy that a later one could beat."""
    make_trainer(folder, data_dir, momentum=0.0, early_stopping_monitor="validation_accuracy", epochs=3).train()
    later = records(folder, "validation")[1:]
    best = max(later, key=lambda record: record["accuracy"])  # of equal ones the first
    result = json.loads((folder / "result.json").read_text())
    assert len(later) == 2 and result["best_step"] == best["step"] > 3
    tracker = CheckpointStore(folder / "checkpoints").newest().description["progress"]["judgement"]
    assert tracker["best"]["best"] == tracker["stopping"]["best"] == best["accuracy"]


def test_another_monitor_leaves_the_learning_rate_where_it_is(folder, data_dir):
    path = folder / "checkpoints" / "step-00000003"
    state = make_trainer(folder, data_dir, momentum=0.0, early_stopping_monitor="validation_loss").state
    assert state.validation.best_step == 3 and path.is_dir()
    state.validation.plateau_drops = 2
    checkpoint = CheckpointStore(folder / "checkpoints").newest()
    progress = checkpoint.description["progress"] | {"judgement": dataclasses.asdict(state.validation)}
    checkpoint = dataclasses.replace(checkpoint, description=checkpoint.description | {"progress": progress})
    config = config_lib.from_values(VALUES | {"workdir": str(folder), "data_dir": str(data_dir), "momentum": 0.0})
    store = CheckpointStore(folder / "checkpoints")
    run = open_run(config, open_workdir(config), checkpoint, store, log=lambda line: None)
    assert run.state.validation == ValidationTracker(plateau_drops=2) and run.state.validation.best == Patience()


# Momentum where there was none.


def test_momentum_begins_at_rest_where_the_run_had_none(folder, data_dir):
    """The first step with momentum then equals one without: velocity 0.9 * 0 - rate * gradient."""
    assert not slots(folder)
    with_it = pathlib.Path(shutil.copytree(folder, folder.parent / "with"))
    for path, momentum in ((folder, 0.0), (with_it, 0.9)):
        make_trainer(path, data_dir, momentum=momentum, early_stopping_monitor="validation_loss", max_steps=4).train()
    weights = [CheckpointStore(path / "checkpoints").newest().tensors("model/") for path in (folder, with_it)]
    assert slots(with_it) and not slots(folder)
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(weights[1][name], tensor, rtol=1e-6, atol=1e-8)


# A run that was asked for less in between.


@pytest.mark.parametrize("less", [{"max_steps": 2}, {"epochs": 0.5}, {"early_stopping_patience": 1}])
def test_a_run_that_ended_early_on_request_goes_on(folder, data_dir, capsys, less):
    """With its first flags, which ask for more than it has done; and the evaluation of its end counts once."""
    values = VALUES | {"data_dir": str(data_dir), "workdir": str(folder), "momentum": 0.0,
                       "early_stopping_monitor": "validation_loss"}
    if "early_stopping_patience" in less:  # as if the newest evaluation had gained nothing
        trainer = make_trainer(folder, data_dir, momentum=0.0, early_stopping_monitor="validation_loss")
        trainer.state.validation.stopping.waited = 1
        trainer.save(False)
    before = records(folder, "validation")
    config = config_lib.from_values(values | less)
    assert train(config, open_workdir(config)) == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == 3 and records(folder, "validation") == before
    config = config_lib.from_values(values)
    assert train(config, open_workdir(config)) == 0
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text())["steps"] == 6
    assert [record["step"] for record in records(folder, "validation")] == [3, 6]


def test_an_end_that_was_never_evaluated_is(data_dir, tmp_path):
    """Stopped by a signal in the middle of an epoch, then asked for no more than that."""
    trainer = make_trainer(tmp_path / "run", data_dir, steps_per_loop=1)
    trainer.turn(trainer.run.training_batches())
    trainer.save(False)
    assert trainer.state.step == 1 and trainer.state.validation.step is None
    make_trainer(tmp_path / "run", data_dir, max_steps=1).train()
    assert [record["step"] for record in records(tmp_path / "run", "validation")] == [1]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best_step"] == 1 and result["best_validation_accuracy"] is not None


def test_damaged_records_are_refused_before_the_result_is_given_up(folder, data_dir):
    make_trainer(folder, data_dir, momentum=0.0, test_split="test[:20]").train()
    (folder / "timing.jsonl").write_text("{\n")
    before = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "result.json")}
    with pytest.raises(UnusableError, match="timing.jsonl"):
        make_trainer(folder, data_dir, momentum=0.0, test_split="test[:20]", epochs=3)
    assert {name: (folder / name).read_bytes() for name in before} == before and b'"test"' in before["metrics.jsonl"]


# One way to read all splits.


def memory_for(monkeypatch, num_examples):
    """Lets a fifth of the free memory be just enough for so many images of 32 x 32."""
    monkeypatch.setattr(splits, "free_gigabytes", lambda: (num_examples + 0.5) * 32 * 32 * 3 / 1e9 / splits.MEMORY_SHARE)


def kinds(run):
    return [kind_of(split) for split in (run.train_split, run.validation_split, run.open_test_split())]


def test_all_splits_are_read_like_the_training_images(data_dir, tmp_path, monkeypatch):
    """60, 30 and 20 images. With crops, a stream evaluates a part of each image and memory the whole."""
    memory_for(monkeypatch, 40)
    run = make_trainer(tmp_path / "a", data_dir, test_split="test[:20]", augment="crop", cache_dir="").run
    assert kinds(run) == ["stream"] * 3
    memory_for(monkeypatch, 60)
    assert kinds(make_trainer(tmp_path / "b", data_dir, test_split="test[:20]", cache_dir="").run) == ["memory"] * 3


@pytest.mark.parametrize(("first", "then"), [(40, 1000), (1000, 59)])
def test_a_run_goes_on_reading_as_it_did(data_dir, tmp_path, monkeypatch, first, then):
    """--input=auto must not decide anew by what else runs on the machine: the order of the examples would be another."""
    memory_for(monkeypatch, first)
    trainer = make_trainer(tmp_path / "run", data_dir, test_split="test[:20]", cache_dir="", max_steps=3)
    before = kinds(trainer.run)
    trainer.train()
    memory_for(monkeypatch, then)
    assert kinds(make_trainer(tmp_path / "run", data_dir, test_split="test[:20]", cache_dir="").run) == before
    with pytest.raises(SettingError, match="give --input="):
        other = {"stream": "memory", "memory": "stream"}[before[0]]
        make_trainer(tmp_path / "run", data_dir, test_split="test[:20]", cache_dir="", input=other)


def test_workers_with_less_memory_read_as_the_chief_does(data_dir, tmp_path, monkeypatch):
    class Second(OneWorker):
        def gather(self, value):
            return ["stream" if value == "memory" else value]

    config = config_lib.from_values(VALUES | {"data_dir": str(data_dir), "workdir": str(tmp_path / "run"), "test_split": ""})
    workdir = open_workdir(config)
    run = open_run(config, workdir, None, CheckpointStore(workdir.checkpoints), log=lambda line: None, workers=Second())
    assert kind_of(run.train_split) == kind_of(run.validation_split) == "stream"


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_an_evaluation_reads_as_the_run_did(kind):
    config = config_lib.from_values({}).data
    assert splits.read_like(config, kind).input == kind
    assert splits.read_like(dataclasses.replace(config, input="device"), kind).input == "device"
    assert splits.read_like(config, None) is config and splits.read_like(config, "a disk") is config


# Another run's weights.


def test_weights_of_another_network_are_told_by_the_flag(folder, data_dir, tmp_path):
    with pytest.raises(SettingError) as error:
        make_trainer(tmp_path / "other", data_dir, init_from=str(folder), model="alexnet_tower")
    line = str(error.value)
    assert line.startswith(f"--init_from={folder}: ") and "conv1/kernel has shape" in line and line.endswith(
        "give the --model and --model_options of that run")


def test_a_checkpoint_folder_may_be_copied_elsewhere(folder, data_dir, tmp_path):
    copy = shutil.copytree(folder / "checkpoints" / "step-00000003", tmp_path / "weights")
    assert find_initial(copy).step == 3
    trainer = make_trainer(tmp_path / "other", data_dir, init_from=str(copy))
    for name, weight in trainer.state.weights().items():
        np.testing.assert_array_equal(weight.numpy(), find_initial(copy).tensors()[name])


def test_a_run_without_a_best_is_told_by_the_flag(folder, tmp_path):
    (folder / "checkpoints" / "best").unlink()
    with pytest.raises(UnusableError, match=f"--init_from={folder}: the run has no best .*; give one of the folders in "):
        initialize(SimpleNamespace(), str(folder), print)


def test_a_run_learns_how_long_it_waits_for_each_batch(folder, data_dir):
    """Without it, every record of timing.jsonl would say NaN."""
    trainer = make_trainer(folder, data_dir, momentum=0.0)
    trainer.advance(trainer.run.training_batches(trainer.state.step), trainer.state.step + 1)
    assert 0 < trainer.newest_report.data_wait[0] < 60
