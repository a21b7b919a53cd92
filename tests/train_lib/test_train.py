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
from train_lib.hooks import Hook
from train_lib.records.workdir import open_workdir
from train_lib.setup import open_run
from train_lib.train import Trainer, train

SMALL = (
    "--model=alexnet_mini", "--model_options=dense_units=32", "--train_split=train[:300]", "--validation_split=train[300:350]",
    "--test_split=test[:70]", "--global_batch_size=24", "--log_every_steps=1", "--steps_per_loop=3", "--learning_rate=0.005",
    "--dropout_rate=0.5", "--epochs=2", "--max_steps=20",
)
# A narrow network, because float16 convolutions have slow kernels on CPUs.
AVERAGED = (*SMALL, "--model_options=width=0.1,dense_units=32", "--precision=float16", "--ema_decay=0.75", "--accumulate_steps=2",
            "--virtual_devices=2")


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


class Diary(Hook):
    """Notes the moments at which it is called, each with the step of the run."""

    def __init__(self, fail_at=None):
        self.moments, self.fail_at = [], fail_at

    def note(self, run, *what):
        self.moments.append((*what, run.state.step))
        if what[0] == self.fail_at:
            raise ZeroDivisionError

    def on_start(self, run):
        self.note(run, "start")

    def before_steps(self, run):
        self.note(run, "before")

    def after_steps(self, run, report):
        assert report.first_step + report.num_steps == run.state.step and report.seconds > 0
        assert len(report.metrics["loss"]) == len(report.learning_rates) == report.num_steps
        self.note(run, "after")

    def on_record(self, run, record):
        self.note(run, record["kind"], record["step"], record["loss"])

    def after_evaluation(self, run, evaluation):
        self.note(run, "evaluated", evaluation.kind, evaluation.step, evaluation.values["loss"])

    def after_part(self, run, part, seconds):
        assert seconds >= 0
        self.note(run, "part", part)

    def on_stop(self, run):
        self.note(run, "stop")

    def on_result(self, run, result):
        self.note(run, "result", result["status"])


HOOKED = {
    "model": "alexnet_mini", "model_options": "dense_units=16,width=0.1", "train_split": "train[:40]", "test_split": "test[:20]",
    "validation_split": "train[40:60]", "global_batch_size": 20, "steps_per_loop": 2, "log_every_steps": 2, "epochs": 1,
}


def test_a_hook_sees_the_whole_run(tmp_path, data_dir):
    config = config_lib.from_values(HOOKED | {"data_dir": str(data_dir), "workdir": str(tmp_path / "run")})
    diary = Diary()
    assert train(config, open_workdir(config), hooks=[diary]) == 0
    loss = {kind: records(tmp_path / "run", kind)[0]["loss"] for kind in ("train", "validation", "test")}
    assert diary.moments == [
        ("start", 0), ("before", 0), ("after", 2), ("part", "show", 2), ("part", "advance", 2), ("train", 2, loss["train"], 2),
        ("part", "record", 2), ("validation", 2, loss["validation"], 2), ("evaluated", "validation", 2, loss["validation"], 2),
        ("part", "evaluate", 2), ("part", "save", 2), ("stop", 2), ("evaluated", "test", 2, loss["test"], 2),
        ("test", 2, loss["test"], 2), ("result", "completed", 2),
    ]


@pytest.mark.parametrize("moment", ["start", "before", "after", "train"])
def test_the_hooks_are_told_of_the_end_of_a_loop_that_fails(tmp_path, data_dir, moment):
    """A profile that is left on writes nothing, and a progress bar that is left open spoils the error."""
    config = config_lib.from_values(HOOKED | {"data_dir": str(data_dir), "workdir": str(tmp_path / "run")})
    diary = Diary(fail_at=moment)
    with pytest.raises(ZeroDivisionError):
        train(config, open_workdir(config), hooks=[diary])
    assert diary.moments[-1][0] == "stop"


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
    left = subprocess.run(command, input="q\n", capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert left.returncode == 130 and "debugger" in left.stderr and "Traceback" not in left.stderr
    debugged = subprocess.run(command, input=script, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert debugged.returncode == 0, debugged.stderr
    compiled = main(f"--workdir={tmp_path / 'compiled'}", *arguments)
    assert compiled.returncode == 0, compiled.stderr
    stops = [eval(line.split("(Pdb) ")[-1]) for line in debugged.stdout.splitlines() if "('at'" in line]
    losses = [record["loss"] for record in records(tmp_path / "compiled", "train")]
    assert [thread for _, _, thread in stops] == ["MainThread"] * 3
    np.testing.assert_allclose([loss for _, loss, _ in stops], losses, rtol=1e-12)
    np.testing.assert_allclose([record["loss"] for record in records(tmp_path / "debug", "train")], losses, rtol=1e-12)
