"""metrics.jsonl, timing.jsonl and TensorBoard hold each step once, however often a run is killed and resumed."""

import collections
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from helpers import ROOT

from train_lib.checkpoints.store import CheckpointStore
from train_lib.records.run_log import RunLog
from train_lib.records.workdir import Workdir


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder, kind, tag):
    """[(step, value)] of a tag in all event files of a kind, in the order of the files."""
    found = []
    for path in sorted((folder / "tensorboard" / kind).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found += [(event.step, float(tf.make_ndarray(v.tensor))) for v in event.summary.value if v.tag == tag]
    return found


def assert_records(folder, steps, validation_steps):
    """Every file has each step once, in order, and all files have the same values."""
    metrics, timing = records(folder / "metrics.jsonl"), records(folder / "timing.jsonl")
    for kind, expected in (("train", steps), ("validation", validation_steps)):
        of_kind = [record for record in metrics if record["kind"] == kind]
        assert [record["step"] for record in of_kind] == expected
        approximate = [(record["step"], pytest.approx(record["loss"], rel=1e-6)) for record in of_kind]
        assert scalars(folder, kind, "loss") == approximate
    assert [record["step"] for record in timing] == steps
    speeds = [(record["step"], pytest.approx(record["images_per_second"], rel=1e-6)) for record in timing]
    assert scalars(folder, "train", "images_per_second") == speeds


def test_a_value_beyond_float32_is_a_record_and_no_curve(tmp_path):
    """TensorFlow raises for a number that is a little larger than any float32."""
    log = RunLog(Workdir(tmp_path), 0)
    for step, loss in ((1, 1.5), (2, 3.4028235677973366e38), (3, -1e300), (4, 2.5)):
        log.add_metrics("train", step, 0.1, {"loss": loss})
    log.flush()
    assert [record["loss"] for record in records(tmp_path / "metrics.jsonl")] == [1.5, 3.4028235677973366e38, -1e300, 2.5]
    assert scalars(tmp_path, "train", "loss") == [(1, 1.5), (4, 2.5)]


def test_records_after_the_step_that_a_run_resumes_at_are_removed(tmp_path):
    """The resumed run writes them again. If they were there twice, TensorBoard would draw a zigzag."""
    killed = []  # a killed process closes nothing
    for life, (start, stop) in enumerate([(0, 10), (6, 12), (6, 8), (8, 20), (20, 24)]):
        log = RunLog(Workdir(tmp_path), start)
        for step in range(start + 2, stop + 1, 2):
            log.add_metrics("train", step, step / 9, {"loss": life + step / 100, "accuracy": 0.5, "learning_rate": 0.1})
            log.add_timing(step, {"seconds": 1.0, "train_seconds": 0.5, "images": 64, "images_per_second": 100.0 + life + step})
            if step % 4 == 0:
                log.add_metrics("validation", step, step / 9, {"loss": life + step / 50, "accuracy": 0.25})
        if stop == 12:
            log.add_metrics("test", 12, 1.0, {"loss": 1.0, "accuracy": 0.5})
        log.flush()
        killed.append(log)
        with open(tmp_path / ("metrics.jsonl", "timing.jsonl")[life % 2], "a") as file:
            file.write('{"kind": "tr')
    RunLog(Workdir(tmp_path), 24)
    assert_records(tmp_path, list(range(2, 25, 2)), list(range(4, 25, 4)))
    assert "test" not in (tmp_path / "metrics.jsonl").read_text()


def test_events_from_before_a_failure_are_not_there_twice(tmp_path):
    """After a failure, TensorBoard's files are rewritten from the records. Nothing of the old files may stay beside them."""
    logged = []
    log = RunLog(Workdir(tmp_path), 0, logged.append)
    for step in range(2, 13, 2):
        if step == 6:  # as if its folder were gone: a file has taken its place
            log.flush()
            (tmp_path / "tensorboard").rename(tmp_path / "elsewhere")
            (tmp_path / "tensorboard").touch()
        if step == 10:
            (tmp_path / "tensorboard").unlink()
        log.add_metrics("train", step, step / 9, {"loss": step / 100, "accuracy": 0.5})
        log.add_metrics("validation", step, step / 9, {"loss": step / 50})
        log.add_timing(step, {"seconds": 1.0, "train_seconds": 0.5, "images": 64, "images_per_second": 100.0 + step})
        log.flush()
    assert_records(tmp_path, list(range(2, 13, 2)), list(range(2, 13, 2)))
    assert logged and all(line.startswith(f"{tmp_path / 'tensorboard'}: cannot be written (") for line in logged)
    assert len(logged) == len(set(logged))  # logs each reason once, not at every record


@pytest.mark.slow
def test_each_step_once_after_six_kills(tmp_path, data_dir):
    """kill -9 of main.py whenever it has written some more records, at moments that nobody chose."""
    command = [sys.executable, str(ROOT / "main.py"), f"--workdir={tmp_path}", f"--data_dir={data_dir}", "--model=alexnet_mini",
               "--model_options=width=0.1,dense_units=32", "--train_split=train[:240]", "--validation_split=train[300:330]",
               "--test_split=", "--global_batch_size=24", "--steps_per_loop=2", "--log_every_steps=2", "--epochs=20",
               "--checkpoint_every_steps=7"]
    kills = collections.Counter()
    for target in (30, 60, 62, 90, 120, 150):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            path = tmp_path / "metrics.jsonl"
            if path.exists() and CheckpointStore(tmp_path / "checkpoints").steps() and f'"step": {target}' in path.read_text():
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        kills[process.wait()] += 1
    assert kills == {-signal.SIGKILL: 6}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "resuming at step" in done.stdout, done.stderr
    assert_records(tmp_path, list(range(2, 201, 2)), list(range(10, 201, 10)))
