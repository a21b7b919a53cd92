"""A run that diverges names the step and the examples, keeps finite weights, and can go on."""

import json

import numpy as np
import pytest
import tensorflow as tf
from drivers import Driver, make_config, random_split
from helpers import run_main

from input_pipeline.sources.base import Source
from input_pipeline.splits.stream import StreamingSplit
from train_lib import config as config_lib
from train_lib import steps
from train_lib.checkpoints.store import CheckpointStore, verify
from train_lib.records.terminal import divergence_in_words
from train_lib.records.workdir import open_workdir
from train_lib.setup import open_run
from train_lib.train import Trainer

VALUES = {
    "model": "alexnet_mini", "model_options": "width=0.1,dense_units=32", "train_split": "train[:300]", "test_split": "",
    "validation_split": "train[300:330]", "global_batch_size": 24, "steps_per_loop": 4, "log_every_steps": 3, "epochs": 2,
    "augment": "crop,flip", "learning_rate": 0.005,
}
BAD_STEP = 13  # in the second epoch; an epoch has 12.5 batches


@pytest.fixture
def spoil(monkeypatch):
    """Makes the gradients infinite where `is_bad(step)`, called on each replica, is true."""
    compute = steps.forward_and_backward

    def spoil_at(is_bad):
        def spoiled(state, config, batch, step, first_example):
            gradients, sums = compute(state, config, batch, step, first_example)
            return [tf.where(is_bad(step), np.inf * tf.ones_like(g), g) for g in gradients], sums

        monkeypatch.setattr(steps, "forward_and_backward", spoiled)

    yield spoil_at


def open_at(folder, data_dir, **values):
    config = config_lib.from_values(VALUES | {"data_dir": str(data_dir), "workdir": str(folder)} | values)
    workdir = open_workdir(config)
    store = CheckpointStore(workdir.checkpoints, 0)
    return open_run(config, workdir, store.newest(), store, log=lambda line: None), store


def train(folder, data_dir, **values):
    run, store = open_at(folder, data_dir, **values)
    run.workdir.remove_result()
    return Trainer(run).train(), run, store


def images_of_step(run, step):
    """The images of a training batch, without augmentation."""
    config = run.config
    batches = run.train_split.training_batches(config.general.seed, step, config.optimization.global_batch_size, ())
    return next(iter(batches))["image"].numpy()


def test_divergence_names_step_and_examples_and_a_restart_goes_on_after_them(tmp_path, data_dir, spoil, capsys):
    """The user has to find out which batch it was, and a checkpoint of NaN would be useless.

    A restart skips that batch. With the same batch again, the run could never go on.
    """
    _, whole, _ = train(tmp_path / "whole", data_dir, max_steps=BAD_STEP)
    before = {name: variable.numpy() for name, variable in whole.state.weights().items()}
    capsys.readouterr()
    spoil(lambda step: tf.equal(step, BAD_STEP))
    code, run, store = train(tmp_path / "run", data_dir, max_steps=20)
    line = capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    about = result["diverged"]
    assert (code, result["status"], result["steps"]) == (4, "diverged", BAD_STEP + 1)
    assert (about["step"], about["skipped_in_a_row"], about["split"]) == (BAD_STEP, 1, "train[:300]")
    assert about["gradient_norm"] is None and about["loss"] > 0
    np.testing.assert_array_equal(run.train_split.images[about["examples"]], images_of_step(run, BAD_STEP))
    assert f"error: the gradient norm is not finite at step {BAD_STEP}, examples {about['examples'][0]}, " in line
    assert line.count("\n") == 1 and "16 more" in line and "--learning_rate" in line
    saved = verify(store.folder / f"step-{BAD_STEP + 1:08d}").tensors("model/")
    for name, weight in before.items():
        np.testing.assert_array_equal(saved[name], weight, err_msg=name)

    code, resumed, _ = train(tmp_path / "run", data_dir, max_steps=20)
    assert code == 0 and "diverged" not in json.loads((tmp_path / "run" / "result.json").read_text())
    code, tolerant, _ = train(tmp_path / "tolerant", data_dir, max_steps=20, max_nonfinite_steps=1)
    assert code == 0
    for name, variable in tolerant.state.weights().items():
        np.testing.assert_array_equal(resumed.state.weights()[name].numpy(), variable.numpy(), err_msg=name)
    records = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "tolerant")]
    assert records[0] == records[1] and '"skipped_steps": 1' in records[0]


@pytest.mark.slow
def test_skipped_updates_in_a_row_are_counted_over_a_resume(tmp_path, data_dir, spoil):
    """If the count began anew after every kill, a run that is killed often would never stop."""
    spoil(lambda step: step >= BAD_STEP - 1)
    assert train(tmp_path / "run", data_dir, max_steps=BAD_STEP + 1, max_nonfinite_steps=3)[0] == 0  # two are skipped
    assert train(tmp_path / "run", data_dir, max_nonfinite_steps=3)[0] == 4
    about = json.loads((tmp_path / "run" / "result.json").read_text())["diverged"]
    assert (about["step"], about["skipped_in_a_row"]) == (BAD_STEP + 2, 4)
    assert ", update 4 in a row, " in divergence_in_words(about)


@pytest.mark.parametrize("num_replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_infinity_on_any_replica_leaves_all_weights_finite(spoil, num_replicas):
    """Replica r is bad at step 2 r + 1. That update is skipped on all replicas, and the updates between are made on all."""
    def is_bad(step):
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        return tf.equal(step, 2 * replica + 1)

    spoil(is_bad)
    config = make_config(precision="float64", model_options="width=0.1,dense_units=32", max_nonfinite_steps=1, augment="none")
    driver = Driver(config, random_split(), num_replicas)
    for step in range(2 * num_replicas):
        before = driver.weights()
        done, skipped, reports = driver.run(1, first_step=step)
        assert (done, skipped, bool(reports["finite"][0])) == (1, step % 2, step % 2 == 0)
        for variable, weight in zip(driver.state.model.trainable_variables, before, strict=True):
            copies = [value.numpy() for value in variable.value.values]
            assert all(np.isfinite(copy).all() and (copy == copies[0]).all() for copy in copies)
            assert step % 2 == 0 or (copies[0] == weight).all()


def test_an_update_beyond_the_range_of_float32_is_skipped():
    """Loss and gradient are finite, but the weights would be infinite afterwards."""
    driver = Driver(make_config(learning_rate=1e38, model_options="width=0.1,dense_units=32"), random_split())
    before = driver.weights()
    done, skipped, reports = driver.run(3)
    assert (done, skipped) == (1, 1) and np.isfinite(reports["loss"][0]) and np.isfinite(reports["gradient_norm"][0])
    for ours, weight in zip(driver.weights(), before, strict=True):
        np.testing.assert_array_equal(ours, weight)


def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path, data_dir):
    """The checkpoint before is worth more, whatever made the weights infinite."""
    run, store = open_at(tmp_path / "run", data_dir)
    assert run.save(False) is None and store.steps() == [0]
    name, variable = next(iter(run.state.weights().items()))
    variable.assign(np.full(variable.shape, np.nan, np.float32))
    run.state.step = 4
    assert run.save(False) == f"{name} is not finite" and store.steps() == [0]


def test_a_stream_names_the_positions_of_the_batch():
    """It does not remember how it shuffled, so it can only name the place in the order of the epoch."""
    stream = StreamingSplit(Source, "train", 300, 32, 0)
    assert stream.locate_batch(0, 3, 24) == {"positions": [[0, 72, 95]]}
    assert stream.locate_batch(0, 12, 24) == {"positions": [[0, 288, 299], [1, 0, 11]]}
    about = {"step": 12, "skipped_in_a_row": 1, "loss": None, "gradient_norm": None, "split": "train"}
    words = divergence_in_words(about | stream.locate_batch(0, 12, 24))
    assert words == ("the loss is not finite at step 12, positions 288 to 299 of epoch 0 and 0 to 11 of epoch 1 in the shuffled "
                     "order of train")


# Runs main.py with a spoiled batch.
SPOILED = """
import sys
import numpy as np
import main
from train_lib import config as config_lib
main.prepare_environment(config_lib.ExperimentConfig(), None)
import tensorflow as tf
from train_lib import steps
compute, bad_step, bad_replica = steps.forward_and_backward, {step}, {replica}
def spoiled(state, config, batch, step, first_example):
    gradients, sums = compute(state, config, batch, step, first_example)
    hit = tf.equal(step, bad_step) & tf.equal(tf.distribute.get_replica_context().replica_id_in_sync_group, bad_replica)
    spoiled_sums = sums | {{"loss": tf.where(hit, np.nan * sums["loss"], sums["loss"])}}
    return [tf.where(hit, np.inf * tf.ones_like(g), g) for g in gradients], spoiled_sums
steps.forward_and_backward = spoiled
main.app.run(main.main, argv=["main.py", *sys.argv[1:]], flags_parser=main.parse_flags)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "bad"), [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_an_infinity_on_each_replica_through_the_command_line(tmp_path, data_dir, replicas, bad):
    """Exit code 4 and a line with the step. The checkpoint equals that of a run that ended before the step, bit for bit."""
    import os
    import subprocess
    import sys

    from helpers import ROOT

    flags = [f"--{name}={value}" for name, value in VALUES.items()] + [f"--data_dir={data_dir}", f"--virtual_devices={replicas}"]
    command = [sys.executable, "-c", SPOILED.format(step=BAD_STEP, replica=bad), f"--workdir={tmp_path / 'run'}", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert done.returncode == 4, done.stderr
    assert f"error: the loss is not finite at step {BAD_STEP}, examples " in done.stderr and "Traceback" not in done.stderr
    whole = run_main(f"--workdir={tmp_path / 'whole'}", *flags, f"--max_steps={BAD_STEP}")
    assert whole.returncode == 0, whole.stderr
    ours = verify(tmp_path / "run" / "checkpoints" / f"step-{BAD_STEP + 1:08d}").tensors()
    theirs = verify(tmp_path / "whole" / "checkpoints" / f"step-{BAD_STEP:08d}").tensors()
    assert all(np.isfinite(tensor).all() for tensor in ours.values())
    for name in theirs.keys() - {"step"}:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
