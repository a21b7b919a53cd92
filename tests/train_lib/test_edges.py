"""A run at the edges of what can happen to it: a broken terminal, a lost best checkpoint, a lost last one, foreign links."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from input_pipeline.common.small_files import replace_file
from train_lib import config as config_lib
from train_lib.checkpoints.store import CheckpointStore
from train_lib.records.lock import _take
from train_lib.records.run_log import RunLog
from train_lib.records.workdir import Workdir, open_workdir
from train_lib.setup import open_run
from train_lib.train import Trainer, train

VALUES = {
    "model": "alexnet_mini", "model_options": "width=0.1,dense_units=16", "train_split": "train[:60]", "test_split": "",
    "validation_split": "train[60:90]", "global_batch_size": 20, "steps_per_loop": 3, "log_every_steps": 1, "epochs": 2,
    "keep_checkpoints": 0, "learning_rate": 0.001,
}


def make_trainer(folder, data_dir, **values):
    config = config_lib.from_values(VALUES | {"data_dir": str(data_dir), "workdir": str(folder)} | values)
    workdir = open_workdir(config)
    store = CheckpointStore(workdir.checkpoints, 0)
    return Trainer(open_run(config, workdir, store.newest(), store, log=lambda line: None))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """The workdir of a run of six steps, with checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert make_trainer(folder, data_dir).train() == 0
    return folder


def damage(folder, step):
    path = next((folder / "checkpoints" / f"step-{step:08d}").glob("ckpt.data*"))
    path.write_bytes(path.read_bytes()[:-9])


def test_a_signal_with_a_broken_stderr_is_only_a_signal():
    """`python main.py 2>&1 | tee log`: Ctrl-C ends tee, too, and what cannot be said must not end the run before it saves."""
    code = """
import os, signal
from train_lib.cli.signals import StopRequest
request = StopRequest()
request.listen()
with request.finishing("saving"):
    os.kill(os.getpid(), signal.SIGTERM)
print(request.received)
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, text=True, cwd=ROOT)
    os.close(write)
    assert done.returncode == 0 and done.stdout == "SIGTERM\n"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_answered_within_a_compiled_call(second):
    """Python runs no handler before the call returns (here: half a minute), and two equal signals are one to it."""
    code = """
import hashlib
from train_lib.cli.signals import StopRequest
request = StopRequest()
request.listen()
with request.finishing("saving"):
    print("calling", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as child:
        assert child.stdout.readline() == "calling\n"
        time.sleep(0.2)  # into the call
        child.send_signal(signal.SIGTERM)
        assert child.stderr.readline() == "SIGTERM: saving; once more to end at once\n"
        time.sleep(0.2)
        assert child.poll() is None
        child.send_signal(second)
        assert child.wait(timeout=60) == 130 and child.stderr.read() == ""


def test_a_signal_that_a_debugger_has_taken_over_does_not_count():
    code = """
import os, signal, time
from train_lib.cli.signals import StopRequest
request = StopRequest()
request.listen()
signal.signal(signal.SIGINT, lambda *_: None)
for _ in range(3):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
print(request.received)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "None\n"


def test_an_evaluation_that_is_owed_has_no_record_yet(tmp_path):
    """Written by a life that was killed before it could save that it had done it."""
    lines = [{"kind": kind, "step": step, "epoch": 0.1 * step} for step in (2, 4) for kind in ("train", "validation")]
    for owed, kept in ((False, lines), (True, lines[:3])):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert RunLog(Workdir(tmp_path), 4, last={"train": 4, "validation": 4 - owed}).metrics.read() == kept


def test_a_run_at_its_end_without_its_best_evaluates_once_more(finished, tmp_path, data_dir, monkeypatch):
    """The best is then the last; to fail on each start would leave the run without a result for good."""
    folder = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "result.json").unlink()
    monkeypatch.setattr(CheckpointStore, "repair_pointers", lambda self, newest, best: False)  # the best one is gone or damaged
    assert make_trainer(folder, data_dir).train() == 0
    assert json.loads((folder / "result.json").read_text())["best_step"] == 6
    assert (folder / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_a_finished_run_that_lost_its_last_checkpoint_does_that_part_again(finished, tmp_path, data_dir, capsys):
    folder = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    before = (folder / "metrics.jsonl").read_bytes()
    damage(folder, 6)
    config = config_lib.from_values(VALUES | {"data_dir": str(data_dir), "workdir": str(folder)})
    assert train(config, open_workdir(config)) == 0
    assert "resuming at step 3" in capsys.readouterr().out
    assert CheckpointStore(folder / "checkpoints").newest().step == 6
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_links_in_a_foreign_workdir_are_not_followed(tmp_path):
    """What they name is somebody's."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(OSError):
        _take(tmp_path / ".lock", print)
    (tmp_path / "config.json.tmp").symlink_to(victim)
    replace_file(tmp_path / "config.json", "{}")
    assert victim.read_text() == "precious" and not (tmp_path / "config.json").is_symlink()


def test_a_clipping_norm_beyond_float32_clips_nothing(tmp_path, data_dir):
    """Infinity over infinity is not a number, and the step would have counted as finite."""
    trainer = make_trainer(tmp_path / "run", data_dir, clip_global_norm=1e39, epochs=1)
    assert trainer.train() == 0


def test_a_workdir_that_no_file_system_takes_is_told(main):
    done = main("--mode=evaluate", f"--workdir={'a' * 300}")
    assert done.returncode == 3 and "Traceback" not in done.stderr and done.stderr.startswith("error: --workdir=aaa")


def test_a_source_of_weights_may_be_gone_once_the_run_has_begun(finished, tmp_path, data_dir):
    folder = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    values = {"data_dir": str(data_dir), "workdir": str(folder), "init_from": str(tmp_path / "gone")}
    assert open_workdir(config_lib.from_values(VALUES | values)).path == folder
