"""Several workers as local processes through main.py: one computation, one workdir, one end."""

import contextlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT

from tests.train_lib.distribution.test_rendezvous import free_addresses
from tests.train_lib.distribution.test_replicas import COMMON

FLAGS = (*COMMON, "--precision=float64", "--checkpoint_every_steps=5")

# main.py with an accident in a method of the Trainer, from a step on: a signal to the process itself, or an error.
WORKER = """
import json, os, signal, sys
import main

def train(config, workdir, cluster=None):
    from input_pipeline.common.errors import UnusableError
    from train_lib import setup
    from train_lib import train as module
    from train_lib.distribution import rendezvous
    from train_lib.distribution import strategy
    rendezvous.CONNECT_SECONDS = float(os.environ["CONNECT_SECONDS"])
    what, method, step = json.loads(os.environ["ACCIDENT"])
    if method == "never":
        return module.train(config, workdir, cluster)
    owner = {"_across_workers": strategy, "training_batches": setup.Run}.get(method, module.Trainer)
    original = getattr(owner, method)

    def struck(self, *arguments):
        if owner is strategy or self.state.step >= step:
            if what == "error":
                raise UnusableError("--dataset=shapes: bad data")
            if what == "defect":
                raise ValueError("a defect")
            os.kill(os.getpid(), getattr(signal, what))
        return original(self, *arguments)

    setattr(owner, method, struck)
    return module.train(config, workdir, cluster)

main.MODES["train"] = "__main__:train"
main.app.run(main.main, flags_parser=main.parse_flags)
"""
NO_ACCIDENT = ("none", "never", 0)


@contextlib.contextmanager
def started(addresses, arguments, accidents=(), ranks=None, connect_seconds=60):
    """Starts one process per worker, and ends them with the block. `accidents`: {rank: (what, method of Trainer, step)}."""
    processes = {}
    try:
        for rank in range(len(addresses)) if ranks is None else ranks:
            environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | {
                "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}),
                "ACCIDENT": json.dumps(dict(accidents).get(rank, NO_ACCIDENT)), "CONNECT_SECONDS": str(connect_seconds)}
            processes[rank] = subprocess.Popen(
                [sys.executable, "-c", WORKER, *map(str, arguments)], cwd=ROOT, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def run_workers(count, arguments, accidents=(), victims=(), timeout=200):
    """{rank: (exit code, stdout, stderr)} of all workers except the victims, which may never end."""
    with started(free_addresses(count), arguments, accidents) as processes:
        others = {rank: process for rank, process in processes.items() if rank not in victims}
        outputs = {rank: process.communicate(timeout=timeout) for rank, process in others.items()}
        return {rank: (process.returncode, *outputs[rank]) for rank, process in others.items()}


def arguments_for(workdir, data_dir, *more):
    return (f"--workdir={workdir}", f"--data_dir={data_dir}", *FLAGS, *more)


def assert_same_run(workdir, reference):
    """Compares the records and tensors of a finished run with those of a reference, to 1e-9."""
    import tensorflow as tf

    expected_lines, expected = reference
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [(line["kind"], line["step"]) for line in expected_lines]
    for line, other in zip(lines, expected_lines, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert (line["accuracy"], line.get("examples")) == (other["accuracy"], other.get("examples"))
    name = (workdir / "checkpoints" / "latest").read_text().strip()
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name / "ckpt"))
    assert reader.get_variable_to_shape_map().keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(reader.get_tensor(name), tensor, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_equal_one_process(one_replica, tmp_path, data_dir, count):
    """A mean, mask, shard or evaluation of one worker alone would show, and so would a second writer of the workdir."""
    results = run_workers(count, arguments_for(tmp_path / "run", data_dir))
    assert [code for code, _, _ in results.values()] == [0] * count, results
    assert_same_run(tmp_path / "run", one_replica)
    assert f"on each of {count} workers" in results[0][1] and "completed after 20 steps" in results[0][1]
    for rank in range(1, count):
        assert results[rank][1:] == ("", "")  # only the chief prints progress
    assert not (tmp_path / "run" / ".workers").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_others_and_the_same_command_goes_on(one_replica, tmp_path, data_dir, victim):
    """The others must not hang in a reduction, die in a C++ abort or lose the checkpoint."""
    command = arguments_for(tmp_path / "run", data_dir)
    start = time.monotonic()
    (code, _, error), = run_workers(2, command, {victim: ("SIGKILL", "advance", 12)}, victims=[victim]).values()
    assert code == 75 and time.monotonic() - start < 60
    assert error.startswith(f"error: worker {victim} (127.0.0.1:") and error.count("\n") == 1, error
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000010\n"
    results = run_workers(2, command)
    assert [code for code, _, _ in results.values()] == [0, 0], results
    assert "resuming at step 10" in results[0][1]
    assert_same_run(tmp_path / "run", one_replica)


def test_a_worker_that_never_comes(tmp_path, data_dir):
    """TensorFlow would wait for it without a word, for more than a minute."""
    addresses = free_addresses(2)
    with started(addresses, arguments_for(tmp_path / "run", data_dir), ranks=[0], connect_seconds=1) as processes:
        _, error = processes[0].communicate(timeout=60)
        assert processes[0].returncode == 75
    assert error.startswith("error: ") and error.count("\n") == 1 and f"worker 1 ({addresses[1]})" in error


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_worker_that_dies_while_tensorflow_connects(tmp_path, data_dir, victim):
    """TensorFlow holds the interpreter lock while it connects, so no thread could end the process: it hung for minutes."""
    command = arguments_for(tmp_path / "run", data_dir)
    accidents = {victim: ("SIGKILL", "_across_workers", 0)}
    (code, _, error), = run_workers(2, command, accidents, victims=[victim], timeout=60).values()
    assert code == 75 and error.startswith(f"error: worker {victim} (127.0.0.1:") and error.count("\n") == 1, error


@pytest.mark.slow
@pytest.mark.parametrize("method", ["_across_workers", "training_batches", "evaluate", "save", "conclude"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_hung_worker_ends_the_others(tmp_path, data_dir, victim, method):
    """A stopped process keeps its connections open. Only its silence shows that it hangs, wherever the others wait."""
    start = time.monotonic()
    command = arguments_for(tmp_path / "run", data_dir)
    (code, _, error), = run_workers(2, command, {victim: ("SIGSTOP", method, 0)}, victims=[victim]).values()
    assert code == 75 and time.monotonic() - start < 120
    assert error.startswith(f"error: worker {victim} (127.0.0.1:") and "not heard of" in error and error.count("\n") == 1, error


@pytest.mark.slow
@pytest.mark.parametrize("method", ["advance", "evaluate"])
@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_on_one_worker_stops_all_at_one_step(one_replica, tmp_path, data_dir, victim, method):
    """A worker that stops alone leaves the others in a reduction, and one that stops a step later saves another state."""
    command = arguments_for(tmp_path / "run", data_dir)
    results = run_workers(2, command, {victim: ("SIGTERM", method, 7)})
    assert [code for code, _, _ in results.values()] == [75, 75], results
    step = json.loads((tmp_path / "run" / "result.json").read_text())["steps"]
    assert step in ((7, 8, 9) if method == "advance" else (13,))  # the first evaluation, which the resumed run owes
    for _, _, error in results.values():
        assert f"stopped at step {step}" in error
    assert [code for code, _, _ in run_workers(2, command).values()] == [0, 0]
    assert_same_run(tmp_path / "run", one_replica)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "words"), [("error", 3, "error: --dataset=shapes: bad data\n"), ("defect", 1, "a defect")])
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_on_one_worker_releases_the_others(tmp_path, data_dir, victim, what, code, words):
    """After bad data or a wrong edit on one machine, the others must not wait, and its own error must not be lost."""
    results = run_workers(2, arguments_for(tmp_path / "run", data_dir), {victim: (what, "advance", 5)})
    assert (results[victim][0], results[1 - victim][0]) == (code, 75), results
    assert words in results[victim][2]
    error = results[1 - victim][2]
    assert f"worker {victim} (127.0.0.1:" in error and f"exit code {code}" in error and error.count("\n") == 1


@pytest.mark.slow
def test_workers_started_differently_are_refused(tmp_path, data_dir):
    """With another learning rate on one worker, the weights would silently differ; with another folder, after a resume."""
    addresses = free_addresses(2)
    chief, other = (arguments_for(tmp_path / "run", data_dir, f"--learning_rate={rate}") for rate in (0.1, 0.2))
    with started(addresses, chief, ranks=[0]) as first, started(addresses, other, ranks=[1]) as second:
        for process in (first[0], second[1]):
            _, error = process.communicate(timeout=60)
            assert process.returncode == 2 and "--learning_rate=" in error and "0.1" in error and "0.2" in error, error
    addresses = free_addresses(2)
    chief, other = (arguments_for(tmp_path / name, data_dir) for name in ("run", "elsewhere"))
    with started(addresses, chief, ranks=[0]) as first, started(addresses, other, ranks=[1]) as second:
        for process in (first[0], second[1]):
            _, error = process.communicate(timeout=60)
            assert process.returncode == 3 and "worker 1 " in error and "cannot see" in error, error


@pytest.mark.slow
def test_moving_statistics_are_saved_and_read_by_all(tmp_path, data_dir):
    """Reading them is a reduction over the replicas. If only the chief read them, it would wait for the others."""
    import tensorflow as tf

    command = (f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", "--model=MobileNetV2", "--train_split=train[:32]",
               "--validation_split=train[:16]", "--test_split=", "--global_batch_size=8", "--max_steps=2", "--image_size=32")
    assert [code for code, _, _ in run_workers(2, command).values()] == [0, 0]
    assert [code for code, _, _ in run_workers(2, [*command, "--max_steps=4"]).values()] == [0, 0]
    reader = tf.train.load_checkpoint(str(tmp_path / "run" / "checkpoints" / "step-00000004" / "ckpt"))
    moving = [name for name in reader.get_variable_to_shape_map() if "moving_" in name]
    assert moving and all(np.isfinite(reader.get_tensor(name)).all() for name in moving)
