"""Ways to train, through main.py: averaged weights, float16, accumulation, stepping through the loop with pdb."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, run_main

from train_lib import config as config_lib
from train_lib.checkpoints.store import CheckpointStore
from train_lib.records.workdir import open_workdir
from train_lib.setup import open_run
from train_lib.train import Trainer

SMALL = (
    "--model=alexnet_mini", "--model_options=dense_units=32", "--train_split=train[:300]", "--validation_split=train[300:350]",
    "--test_split=test[:70]", "--global_batch_size=24", "--log_every_steps=1", "--steps_per_loop=3", "--learning_rate=0.005",
    "--dropout_rate=0.5", "--epochs=2", "--max_steps=20",
)
AVERAGED = (*SMALL, "--precision=float16", "--ema_decay=0.75", "--accumulate_steps=2", "--virtual_devices=2")


def records(workdir, kind):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in lines if record["kind"] == kind]


def tensors(workdir, pointer="latest"):
    name = (workdir / "checkpoints" / pointer).read_text().strip()
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name / "ckpt"))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    done = run_main(f"--workdir={workdir}", f"--data_dir={data_dir}", *AVERAGED)
    assert done.returncode == 0, done.stderr
    return workdir


def test_averaged_weights_are_saved_and_evaluated_beside_the_weights(averaged):
    saved = tensors(averaged)
    weights = [name for name in saved if name.startswith("model/") and name.endswith(("/kernel", "/bias"))]
    pairs = [(name, name.replace("model/", "ema/")) for name in weights]
    assert all(other in saved for _, other in pairs)
    assert any((saved[name] != saved[other]).any() for name, other in pairs)
    for record in records(averaged, "validation"):
        assert record["raw_loss"] != record["loss"] and 0 <= record["raw_accuracy"] <= 1


def test_evaluate_uses_the_averages_as_training_did(averaged, main, data_dir):
    """The best checkpoint was chosen by them; the weights themselves are worse by what averaging gains."""
    done = main("--mode=evaluate", f"--workdir={averaged}", f"--data_dir={data_dir}", "--split=train[300:350]")
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((averaged / "evaluation.json").read_text())
    record = next(r for r in records(averaged, "validation") if r["step"] == evaluation["step"])
    assert evaluation["accuracy"] == record["accuracy"] and evaluation["loss"] == pytest.approx(record["loss"], rel=1e-3)


@pytest.mark.slow
def test_float16_keeps_its_loss_scale_over_a_resume(averaged, main, tmp_path, data_dir):
    """Lost, it would start high again and skip the first steps."""
    workdir = tmp_path / "run"
    for steps in (9, 20):
        done = main(f"--workdir={workdir}", f"--data_dir={data_dir}", *AVERAGED, f"--max_steps={steps}")
        assert done.returncode == 0, done.stderr
    whole, parts = tensors(averaged), tensors(workdir)
    assert {"loss_scale/value", "loss_scale/good_steps"} <= whole.keys() == parts.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(parts[name], tensor, err_msg=name)
    assert records(workdir, "train") == records(averaged, "train")
    assert all(record["loss_scale"] >= 1 for record in records(workdir, "train"))


@pytest.mark.slow
def test_averaging_may_begin_and_end_with_a_resume(averaged, main, tmp_path, data_dir):
    shutil.copytree(averaged, tmp_path / "run")
    arguments = (f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", *AVERAGED)
    done = main(*arguments, "--ema_decay=0", "--max_steps=22")
    assert done.returncode == 0 and "--ema_decay=0.0 from here on" in done.stdout, done.stderr
    assert not [name for name in tensors(tmp_path / "run") if name.startswith("ema/")]
    done = main(*arguments, "--max_steps=23")
    assert done.returncode == 0 and [name for name in tensors(tmp_path / "run") if name.startswith("ema/")], done.stderr


def test_nothing_is_traced_twice(tmp_path, data_dir):
    """Short last stretches, evaluations, saves and a resume must not compile again: on GPUs that is a minute each time."""
    values = {
        "model": "alexnet_mini", "model_options": "dense_units=32", "train_split": "train[:300]", "test_split": "",
        "validation_split": "train[300:350]", "global_batch_size": 24, "steps_per_loop": 4, "eval_every_epochs": 0.5,
        "log_every_steps": 3, "epochs": 2, "data_dir": str(data_dir), "workdir": str(tmp_path / "run"),
    }
    for last_step in (9, 20):
        config = config_lib.from_values(values | {"max_steps": last_step})
        workdir = open_workdir(config)
        store = CheckpointStore(workdir.checkpoints, 2)
        run = open_run(config, workdir, store.newest(), store, log=lambda line: None)
        assert run.state.step == (0 if last_step == 9 else 9)
        trainer = Trainer(run)
        assert trainer.train() == 0 and run.state.step == last_step
        for function in (trainer.train_loop, trainer.eval_step):
            assert function.experimental_get_tracing_count() == 1


def test_a_breakpoint_in_the_step_stops_there(tmp_path, main, data_dir):
    """A graph, a thread of tf.distribute or a worker of tf.data would leave pdb without a frame, a value or a terminal."""
    for name in ("main.py", "alexnet", "input_pipeline", "train_lib"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    steps = tmp_path / "train_lib" / "steps.py"
    before = "    gradients = tape.gradient("
    assert steps.read_text().count(before) == 1
    steps.write_text(steps.read_text().replace(before, "    breakpoint()\n" + before))
    arguments = (f"--data_dir={data_dir}", *SMALL, "--precision=float64", "--max_steps=3", "--validation_split=", "--test_split=")
    # `loss` is a number that can be read, in the main thread, once in each step.
    script = "import threading\np ('at', float(loss), threading.current_thread().name)\nc\n" * 3
    command = [sys.executable, str(tmp_path / "main.py"), f"--workdir={tmp_path / 'debug'}", "--debug", *arguments]
    debugged = subprocess.run(command, input=script, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert debugged.returncode == 0, debugged.stderr
    compiled = main(f"--workdir={tmp_path / 'compiled'}", *arguments)
    assert compiled.returncode == 0, compiled.stderr
    stops = [eval(line.split("(Pdb) ")[-1]) for line in debugged.stdout.splitlines() if "('at'" in line]
    losses = [record["loss"] for record in records(tmp_path / "compiled", "train")]
    assert [thread for _, _, thread in stops] == ["MainThread"] * 3
    np.testing.assert_allclose([loss for _, loss, _ in stops], losses, rtol=1e-12)
    np.testing.assert_allclose([record["loss"] for record in records(tmp_path / "debug", "train")], losses, rtol=1e-12)
