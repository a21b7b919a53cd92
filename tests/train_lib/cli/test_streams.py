"""Closed streams, terminals that lack characters, names that are not UTF-8, and the signals of schedulers."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, run_main

SMALL = ("--model_options=width=0.1,dense_units=16", "--train_split=train[:60]", "--validation_split=train[60:90]",
         "--test_split=test[:30]", "--global_batch_size=20", "--augment=none", "--epochs=2", "--steps_per_loop=1")
# `request` handles signals and is asked to stop by the first; prints what it received.
LISTEN = """
import os, signal, sys, time
from train_lib.cli.signals import StopRequest
request = StopRequest()
{before}
request.listen()
with request.finishing("saving"):
    for name in sys.argv[1:]:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.1)
print(request.received)
"""


def listen(*names, before="", prefix=()):
    command = [*prefix, sys.executable, "-c", LISTEN.format(before=before), *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_what_schedulers_send_asks_to_stop_however_often(name):
    done = listen(name, name, name, "SIGTERM")  # such as SLURM: the signal that was asked for, and SIGTERM at the time limit
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", f"{name}: saving\n")


def test_a_second_sigterm_ends_at_once_after_any_other():
    assert listen("SIGUSR1", "SIGTERM", "SIGINT").returncode == 130


def test_nohup_is_respected():
    done = listen("SIGHUP", prefix=["nohup"])
    assert done.returncode == 0 and done.stdout == "None\n"


def test_a_handler_of_somebody_else_stays():
    done = listen("SIGUSR1", before="signal.signal(signal.SIGUSR1, lambda *_: print('theirs'))")
    assert done.returncode == 0 and done.stdout == "theirs\nNone\n"


def test_closed_streams_are_dev_null_and_a_scheduler_may_send_usr1(tmp_path, data_dir):
    """None of the run's own files gets a descriptor that something prints to."""
    workdir = tmp_path / "run"
    arguments = [str(ROOT / "main.py"), f"--workdir={workdir}", f"--data_dir={data_dir}", *SMALL, "--epochs=100000"]
    child = subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, *arguments])
    try:
        while not any(workdir.glob("checkpoints/step-*")) and child.poll() is None:
            time.sleep(0.2)
        opened = [os.readlink(f"/proc/{child.pid}/fd/{descriptor}") for descriptor in range(3)]
        child.send_signal(signal.SIGUSR1)
        assert child.wait(timeout=60) == 75
    finally:
        child.kill()
    assert opened == [os.devnull] * 3
    assert json.loads((workdir / "result.json").read_text())["status"] == "preempted"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&-"])
def test_each_stream_may_be_closed(closed, tmp_path, data_dir):
    arguments = [str(ROOT / "main.py"), f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", *SMALL]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = ["bash", "-c", f'exec "$@" {closed}', "-", sys.executable]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "" if ">&-" in closed.split() else "completed after 6 steps" in done.stdout
    bad = subprocess.run([*command, arguments[0], "--epochs=0"], capture_output=True, timeout=60)
    assert bad.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "latin-1"}])
def test_names_that_are_not_utf8_work_in_every_mode(settings, small_run, tmp_path):
    """The folders of workdir, data, classes, images and exported model."""
    name, images = os.fsdecode(b"\xffr\xe9seau \xe2\x82\xac"), tmp_path / os.fsdecode(b"donn\xe9es")
    for label in (b"chat\xe9", "€".encode()):
        (images / "train" / os.fsdecode(label)).mkdir(parents=True)
        for index, path in enumerate(sorted((small_run[1] / "star").glob("*.png"))[:8]):
            (images / "train" / os.fsdecode(label) / os.fsdecode(b"%d\xff.png" % index)).write_bytes(path.read_bytes())
    split = ("--train_split=train", "--validation_split=train[:50%]", "--test_split=train[50%:]", "--global_batch_size=4")
    done = run_main(f"--workdir={name}", f"--dataset=folder:{images}", "--image_size=32", "--input=stream", *SMALL[:1], *split,
                    "--epochs=2", "--profile_steps=1:2", cwd=tmp_path, env=settings)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "completed after 8 steps" in done.stdout
    for mode in ("evaluate", "report", "export", "predict"):
        done = run_main(f"--mode={mode}", f"--workdir={name}", f"--inputs={images}", cwd=tmp_path, env=settings)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / name / "export" / "model.keras").exists() and (tmp_path / name / "report.html").exists()
    assert (tmp_path / name / "predictions.csv").read_bytes().count(b"\xff.png") == 16
    again = run_main(f"--flagfile={name}/run.flags", f"--workdir={name}", cwd=tmp_path, env=settings)
    assert again.returncode == 0 and "finished at step 8" in again.stdout
