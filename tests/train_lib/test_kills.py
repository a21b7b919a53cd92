"""A run that is killed or stopped, at any moment and any number of times, ends as if nothing had happened: bit for bit."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT
from lives import FILE_OPERATIONS, Lives

from train_lib.checkpoints.store import CheckpointStore

# 30 steps: checkpoints after every third, evaluations after every fourth, 15 saves in all.
STEPS, INTERVAL = 30, 3
FLAGS = (
    "--train_split=train[:200]", "--validation_split=train[200:]", "--model=alexnet_mini", "--dropout_rate=0.3", "--epochs=3",
    "--model_options=width=0.1,dense_units=16", "--global_batch_size=20", "--augment=crop,flip", "--optimizer=adam",
    "--learning_rate=0.003", "--schedule=plateau", "--ema_decay=0.9", "--log_every_steps=1", "--steps_per_loop=3",
    f"--checkpoint_every_steps={INTERVAL}", "--eval_every_epochs=0.4", "--early_stopping_patience=50", "--deterministic",
)
SAVE, CONCLUDE = "train_lib.checkpoints.store:CheckpointStore.save", "train_lib.train:Trainer.conclude"
HOST = "train_lib.evaluate:SplitEvaluator._host"  # called three times a batch, here 12 times an evaluation
ADVANCE = "train_lib.train:Trainer.advance"
OPENING = ["train_lib.setup:open_source", "train_lib.checkpoints.store:verify", "train_lib.checkpoints.store:Checkpoint.tensors",
           "train_lib.setup:create_state", "train_lib.checkpoints.resume:assign", "train_lib.records.json_lines:JsonLines.keep"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of every run here, with images of noise.

    The validation images are of a class that training does not know, which it predicts ever less: so the first evaluation, after
    step 4, stays the best, whatever the machine's rounding, and five more lower the plateau schedule's rate.
    """
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (size, 16, 16, 3), np.uint8) for name, size in (("train", 240), ("test", 40))}
    labels = {name: generator.integers(0, 4, len(values)) for name, values in images.items()}
    labels["train"][200:] = 4
    np.savez(path, **{f"x_{name}": images[name] for name in images}, **{f"y_{name}": labels[name] for name in images})
    return (f"--dataset=npz:{path}", *FLAGS)


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    with Lives(tmp_path_factory.mktemp("lives")) as lives:
        yield lives


@pytest.fixture(scope="module")
def uninterrupted(lives, flags, tmp_path_factory):
    """The run that all others must repeat, and the seconds that it took."""
    workdir, start = tmp_path_factory.mktemp("uninterrupted") / "run", time.monotonic()
    code, _, error = lives.live(*flags, f"--workdir={workdir}")
    assert code == 0 and error == ""
    assert json.loads((workdir / "result.json").read_text())["best_step"] == 4
    return workdir, time.monotonic() - start


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pointed(workdir, pointer):
    return (workdir / "checkpoints" / pointer).read_text().strip()


def assert_same_run(workdir, expected):
    """Records, weights, slots, progress and pointers byte for byte; wall-clock files by their steps; no leftovers."""
    assert (workdir / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    for pointer in ("latest", "best"):
        name = pointed(workdir, pointer)
        assert name == pointed(expected, pointer)
        assert contents(workdir / "checkpoints" / name) == contents(expected / "checkpoints" / name)
    timing = [json.loads(line)["step"] for line in (workdir / "timing.jsonl").read_text().splitlines()]
    assert timing == list(range(1, STEPS + 1))
    assert summaries(workdir) == summaries(expected)
    results = [json.loads((folder / "result.json").read_text()) for folder in (workdir, expected)]
    for result in results:
        del result["seconds"], result["images_per_second"]
    assert results[0] == results[1]
    hidden = [path for path in workdir.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]
    assert not hidden and not (workdir / ".lock").exists()


def summaries(workdir):
    """{(folder, tag): [(step, value), ...]} of TensorBoard's files; images_per_second by its steps alone."""
    found = {}
    for kind in ("train", "validation"):
        for path in sorted((workdir / "tensorboard" / kind).iterdir()):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    number = None if value.tag == "images_per_second" else float(tf.make_ndarray(value.tensor))
                    found.setdefault((kind, value.tag), []).append((event.step, number))
    return found


# SIGKILL.


def moments_of_death(generator, counts):
    """Seeded moments: {kind: how many} -> [(kind, moment)], mixed."""
    makers = {
        # A save has about 22 operations; the signal comes before one, after one, in the middle of a write, or soon after.
        "save": lambda: {"where": FILE_OPERATIONS, "within": SAVE, "count": int(generator.integers(1, 46)),
                         "torn": bool(generator.integers(2)), "after": bool(generator.integers(2)),
                         "delay": [None, None, float(generator.uniform(0, 0.003))][generator.integers(3)]},
        "start": lambda: {"where": [*OPENING, *FILE_OPERATIONS], "until": ADVANCE, "count": int(generator.integers(1, 12)),
                          "after": bool(generator.integers(2))},
        "end": lambda: {"where": [HOST, "train_lib.train:restore_best", *FILE_OPERATIONS], "within": CONCLUDE,
                        "count": int(generator.integers(1, 6))},
        "any": lambda: {"seconds": float(generator.uniform(0.02, 1))},  # of an uninterrupted run's
    }
    moments = [(kind, makers[kind]()) for kind, count in counts.items() for _ in range(count)]
    return [moments[index] for index in generator.permutation(len(moments))]


def newest_step(workdir):
    """What a resumed run starts from, found without its code for cleaning up."""
    store = CheckpointStore(workdir / "checkpoints", log=lambda line: None)
    return store.newest().step if store.steps() else 0


def steps_done(workdir):
    """The steps that a killed run had recorded."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max([json.loads(line)["step"] for line in lines], default=0)


def next_moment(waiting, reached):
    """Takes one off the list; a run's start is only worth dying in where it restores a checkpoint."""
    for index, (kind, _) in enumerate(waiting):
        if kind != "start" or reached:
            return waiting.pop(index)
    return ("save", {"where": "os:fsync", "within": SAVE, "count": 20}) if waiting else ("none", None)


def kill_and_resume(lives, flags, uninterrupted, folder, moments):
    """Lives as many runs as it takes to die at all moments, each then like the uninterrupted one; returns {kind: deaths}."""
    expected, seconds = uninterrupted
    deaths, runs, waiting = {}, 0, list(moments)
    while waiting:
        workdir, reached = folder / f"run{runs}", 0
        runs += 1
        while True:
            kind, moment = next_moment(waiting, reached)
            if kind == "any":
                moment = {"seconds": moment["seconds"] * seconds}
            code, out, error = lives.live(*flags, f"--workdir={workdir}", moment=moment)
            if " at step " in out:
                assert f"{'resuming' if reached else 'starting'} at step {reached} of {STEPS}" in out, out
            if code == 0:
                if moment:  # the run was over before; a later one may be as quick
                    waiting.append((kind, moment | ({"seconds": 0.7 * moment["seconds"] / seconds} if kind == "any" else {})))
                break
            assert code == -signal.SIGKILL and error == "", (kind, moment, code, error)
            deaths[kind] = deaths.get(kind, 0) + 1
            before, reached = reached, newest_step(workdir)
            assert reached >= before and steps_done(workdir) - reached <= INTERVAL, (kind, moment)
        assert_same_run(workdir, expected)
        assert contents(workdir / "checkpoints") == contents(expected / "checkpoints")
    return deaths


@pytest.mark.slow
def test_fifty_kills(lives, flags, uninterrupted, tmp_path):
    """At least 25 inside a save, others while a run starts, restores and cleans up, at its end, and at any moment."""
    counts = {"save": 30, "start": 10, "end": 3, "any": 7}
    deaths = kill_and_resume(lives, flags, uninterrupted, tmp_path, moments_of_death(np.random.default_rng(5), counts))
    assert all(deaths[kind] >= count for kind, count in counts.items())


# SIGTERM and SIGINT.


def at(where, count=1, **options):
    return {"where": where, "count": count, "signal_name": "SIGTERM", **options}


# {what is under way: the moment of one life, or of several}; from "records" on a run is under way, which result.json tells.
BEFORE = {
    "opening the data": [at("train_lib.setup:open_source")],
    "opening the validation split": [at("train_lib.setup:open_split", 2)],
    "building the network": [at("train_lib.setup:create_state")],
    "restoring": [at(ADVANCE, 4), at("train_lib.checkpoints.resume:assign")],
    "pointing again": [at(ADVANCE, 9), at("train_lib.checkpoints.store:CheckpointStore.repair_pointers", after=True)],
}
UNDER_WAY = {
    "records": [at("train_lib.records.json_lines:JsonLines.keep", 2)],
    "opening the batches": [at("train_lib.setup:Run.training_batches")],
    "tracing": [at("tensorflow:nn.sparse_softmax_cross_entropy_with_logits")],
    "the first call": [at(ADVANCE, delay=0.5)],
    "before steps": [at(ADVANCE, 8)],
    "in a step": [at(ADVANCE, 9, delay=0.002)],
    "train record": [at("train_lib.train:Trainer.record", 7)],
    "evaluation, first batch": [at(HOST, 1)],
    "evaluation, between batches": [at(HOST, 15)],
    "evaluation of the averages": [at(HOST, 22)],
    "evaluation, last batch": [at("train_lib.cadence:ValidationTracker.observe", 3)],
    "an evaluation, twice": [at(HOST, 27), at(HOST, 2), at(HOST, 8)],
    "the last evaluation": [at(HOST, 86)],
    "writing tensors": [at("tensorflow:raw_ops.SaveV2", 2)],
    "flushing": [at("os:fsync", 20, within=SAVE)],
    "renaming": [at("os:rename", 3, within=SAVE)],
    "pointing": [at("os:replace", 4, within=SAVE)],
    "removing old checkpoints": [at("train_lib.checkpoints.store:remove_checkpoint", 2)],
    "the best for the test": [at("train_lib.train:restore_best")],
    "the test": [at(HOST, 2, within=CONCLUDE)],
}


def stop_and_resume(lives, flags, uninterrupted, workdir, moments, is_under_way):
    """A run stopped at each of the moments in turn, and then left alone."""
    arguments = (*flags, f"--workdir={workdir}")
    for moment in moments:
        code, _, error = lives.live(*arguments, moment=moment)
        assert code == 75 and "Traceback" not in error, error
        assert not (workdir / ".lock").exists()
    if is_under_way:
        command = f"{sys.executable} {ROOT / 'main.py'} --flagfile={workdir / 'run.flags'} --workdir={workdir}"
        result = json.loads((workdir / "result.json").read_text())
        assert result["status"] == "preempted"
        said, promised = error.splitlines()[-1], error.splitlines()[:-1]
        assert said == f"stopped at step {result['steps']}; to go on: {command}"
        assert promised == ["SIGTERM: saving and stopping after this call; once more to end at once"]
        assert newest_step(workdir) == result["steps"]  # nothing of what was done is lost
        arguments = shlex.split(command)[2:]
    else:
        assert error == "SIGTERM: stopped with nothing to save; the same command starts again\n"
    code, out, error = lives.live(*arguments)
    assert code == 0 and error == "", error
    assert_same_run(workdir, uninterrupted[0])


def test_a_run_that_is_killed_and_stopped_ends_as_if_nothing_had_happened(lives, flags, uninterrupted, tmp_path):
    """The small round: killed before `best` names the newest checkpoint, then with half a manifest written, then stopped in an
    evaluation, which the resumed run owes: its value decides on `best`, on the learning rate and on stopping."""
    pointing = {"where": "os:replace", "within": SAVE, "count": 3}  # `latest`, once for step 3 and once for 4, then `best`
    torn = {"where": "pathlib:Path.write_text", "within": SAVE, "count": 2, "torn": True}
    for moment, reached in ((pointing, 4), (torn, 4)):
        code, _, _ = lives.live(*flags, f"--workdir={tmp_path}", moment=moment)
        assert code == -signal.SIGKILL and newest_step(tmp_path) == reached
    stop_and_resume(lives, flags, uninterrupted, tmp_path, UNDER_WAY["evaluation, between batches"], is_under_way=True)


@pytest.mark.slow
@pytest.mark.parametrize("what", [*BEFORE, *UNDER_WAY])
def test_sigterm_while(lives, flags, uninterrupted, tmp_path, what):
    moments = (BEFORE | UNDER_WAY)[what]
    stop_and_resume(lives, flags, uninterrupted, tmp_path / "run", moments, is_under_way=what in UNDER_WAY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_while_tensorflow_is_imported(flags, tmp_path, name):
    """By main.py as users start it: the lock is taken just before the import, which takes seconds."""
    command = [sys.executable, ROOT / "main.py", *flags, f"--workdir={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75 and error == f"{name}: stopped with nothing to save; the same command starts again\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_second_signal_ends_at_once(lives, flags, tmp_path):
    code, _, _ = lives.live(*flags, f"--workdir={tmp_path}", moment=at(ADVANCE, times=2))
    assert code == 130 and not list(tmp_path.glob("checkpoints/*"))
