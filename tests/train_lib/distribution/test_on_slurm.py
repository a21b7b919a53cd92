"""Runs on a real SLURM: tasks of `srun`, and the job scripts of docs/slurm.md as they are printed. Skipped where none answers.

Two nodes must see pytest's temporary folder and this repository.
"""

import json
import os
import re
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT

from tests.train_lib.distribution.test_rendezvous import free_addresses
from tests.train_lib.distribution.test_workers import FLAGS, NO_ACCIDENT, WORKER, assert_same_run

MAIN = (sys.executable, str(ROOT / "main.py"))
# main.py, whose steps take some seconds more, so that a time limit comes in the middle.
SLOWLY = """
import os, sys, time
del sys.argv[0]
import main

def train(config, workdir, cluster=None):
    from train_lib import train as module
    advance = module.Trainer.advance

    def slowly(self, *arguments):
        time.sleep(float(os.environ.get("SECONDS_MORE", 0)))
        return advance(self, *arguments)

    module.Trainer.advance = slowly
    return module.train(config, workdir, cluster)

main.MODES["train"] = "__main__:train"
main.app.run(main.main, flags_parser=main.parse_flags)
"""
# Before the code of test_workers: the accident of the task whose number this one has.
STRUCK = f"""
import json, os
os.environ["ACCIDENT"] = json.dumps(json.loads(os.environ["ACCIDENTS"]).get(os.environ["SLURM_PROCID"], {list(NO_ACCIDENT)}))
"""


def why_not():
    """Why these tests cannot run; None if they can."""
    try:
        done = subprocess.run(["sinfo", "--noheader", "--states=idle", "--Node", "--format=%N"], capture_output=True, text=True,
                              timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no SLURM: {error}"
    count = len(set(done.stdout.split()))
    return f"SLURM has {count} idle nodes, 2 are needed: {done.stderr.strip()[:200]}" if count < 2 else None


@pytest.fixture(autouse=True, scope="module")
def _slurm():
    if reason := why_not():
        pytest.skip(reason)


pytestmark = pytest.mark.slow


def environment(**more):
    names = ("TF_CPP_MIN_LOG_LEVEL", "TF_CONFIG")
    return {name: value for name, value in os.environ.items() if name not in names} | more


def arguments_for(workdir, data_dir):
    return (f"--workdir={workdir}", f"--data_dir={data_dir}", *FLAGS, "--deterministic")


def srun(options, command, **more):
    """Starts srun, with the output of each task labelled by its number."""
    return subprocess.Popen(["srun", "--label", *options, *map(str, command)], cwd=ROOT, env=environment(**more), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end_of(process, timeout=200):
    """(exit code, stdout, stderr) of a process."""
    try:
        out, error = process.communicate(timeout=timeout)
    finally:
        process.terminate()  # srun ends its tasks
    return process.returncode, out, error


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory, data_dir):
    """The workdir of two tasks on two nodes that nothing has interrupted."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    code, out, error = end_of(srun(["-N2", "-n2"], [*MAIN, *arguments_for(workdir, data_dir)]))
    assert code == 0, error
    assert "0: starting at step 0 of 20 on CPU:0 on each of 2 workers" in out
    assert not re.search("^1: ", out + error, re.MULTILINE)  # only the chief prints
    return workdir


def content(workdir):
    """The records and the final tensors of a run."""
    import tensorflow as tf

    name = (workdir / "checkpoints" / "latest").read_text().strip()
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name / "ckpt"))
    tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    return name, (workdir / "metrics.jsonl").read_bytes(), tensors


def assert_bit_for_bit(workdir, reference):
    (name, records, tensors), (expected_name, expected_records, expected) = content(workdir), content(reference)
    assert (name, records) == (expected_name, expected_records) and tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(tensors[key], tensor, err_msg=key)


def test_two_tasks_equal_one_process(two_tasks, one_replica):
    """Without a word about the cluster."""
    assert_same_run(two_tasks, one_replica)


def test_four_tasks_that_are_dealt_out_in_turn(one_replica, tmp_path, data_dir):
    """Tasks 0 and 2 share a node, and 1 and 3."""
    code, _, error = end_of(srun(["-N2", "-n4", "--overcommit", "--distribution=cyclic"],
                                 [*MAIN, *arguments_for(tmp_path / "run", data_dir)]))
    assert code == 0, error
    assert_same_run(tmp_path / "run", one_replica)


def test_tf_config_wins(two_tasks, tmp_path, data_dir):
    """It makes task 1 the chief, which shows that it counts. The same two workers compute the same bits."""
    value = json.dumps({"cluster": {"worker": free_addresses(2)}, "task": {"type": "worker", "index": "INDEX"}})
    shell = 'export TF_CONFIG="${VALUE/INDEX/$((1 - SLURM_PROCID))}"; exec "$@"'
    command = ["bash", "-c", shell, "bash", *MAIN, *arguments_for(tmp_path / "run", data_dir)]
    code, out, error = end_of(srun(["-N2", "-n2"], command, VALUE=value))
    assert code == 0, error
    assert "1: starting at step 0" in out and not re.search("^0: ", out, re.MULTILINE)
    assert_bit_for_bit(tmp_path / "run", two_tasks)


def test_two_jobs_on_the_same_nodes(two_tasks, tmp_path, data_dir):
    """Neither takes the other's port or joins its tasks."""
    workdirs = [tmp_path / "a", tmp_path / "b"]
    jobs = [srun(["-N2", "-n2", "--oversubscribe"], [*MAIN, *arguments_for(workdir, data_dir)]) for workdir in workdirs]
    for (code, _, error), workdir in zip([end_of(job, 300) for job in jobs], workdirs, strict=True):
        assert code == 0, error
        assert_bit_for_bit(workdir, two_tasks)


def test_a_killed_task_ends_the_other_and_the_same_srun_goes_on(two_tasks, tmp_path, data_dir):
    """The line names the task as srun does, and its node; srun's exit code tells it from an orderly stop."""
    command = (sys.executable, "-c", STRUCK + WORKER, *arguments_for(tmp_path / "run", data_dir))
    accidents = json.dumps({"1": ("SIGKILL", "advance", 12)})
    code, _, error = end_of(srun(["-N2", "-n2"], command, ACCIDENTS=accidents, CONNECT_SECONDS="60"))
    assert code == 137
    line, = re.findall("^0: (error: .*)$", error, re.MULTILINE)
    assert re.match(r"error: task 1 \(\S+:2\d{4}\) died.*; start the same srun again", line), line
    code, out, error = end_of(srun(["-N2", "-n2"], command, ACCIDENTS="{}", CONNECT_SECONDS="60"))
    assert code == 0 and "resuming at step 10" in out, error
    assert_bit_for_bit(tmp_path / "run", two_tasks)


def test_a_single_task_and_a_script_without_srun_train_alone(tmp_path, data_dir):
    """The script's job has two tasks, but nobody has started a second."""
    flags = (f"--data_dir={data_dir}", *FLAGS, "--max_steps=2")
    code, out, error = end_of(srun(["-n1"], [*MAIN, *flags, f"--workdir={tmp_path / 'one'}"]))
    assert code == 0 and "on CPU:0: " in out, error
    script = tmp_path / "script.sh"
    script.write_text('#!/bin/bash\n"$@"\n')
    job = submit(script, ["-N2", "-n2", f"--output={tmp_path / 'out'}"], [*MAIN, *flags, f"--workdir={tmp_path / 'two'}"])
    assert wait_for(job, ENDS) == "COMPLETED"
    assert "on CPU:0: " in (tmp_path / "out").read_text()


ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def submit(script, options, arguments, **more):
    """Submits a job and returns its number."""
    command = ["sbatch", "--parsable", *options, str(script), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def describe(job):
    """{name: value} of what SLURM says about a job."""
    done = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=60)
    return dict(word.partition("=")[::2] for word in done.stdout.split())


def wait_for(job, states, timeout=600):
    """Waits until a job is in one of the states; returns which."""
    deadline = time.monotonic() + timeout
    while (state := describe(job).get("JobState")) not in states:
        assert time.monotonic() < deadline, describe(job)
        time.sleep(0.5)
    return state


def printed_script(name, folder):
    """A script of docs/slurm.md, and the PATH whose `python` is this one and takes SECONDS_MORE for a step."""
    text = (ROOT / "docs" / "slurm.md").read_text()
    script, python = folder / name, folder / "bin" / "python"
    script.write_text(re.search(rf"<!-- {name} -->\n```bash\n(.*?)```\n<!-- /{name} -->", text, re.DOTALL)[1])
    python.parent.mkdir()
    (folder / "slowly.py").write_text(SLOWLY)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$(cat {folder / "slowly.py"})" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return script, f"{python.parent}:{os.environ['PATH']}"


def test_the_printed_job_outlives_its_time_limit(two_tasks, tmp_path, data_dir):
    """SLURM signals the tasks after 60 to 120 s, in the middle of the steps; the job goes on after two minutes in the queue."""
    script, path = printed_script("train.sh", tmp_path)
    options, workdir = ["--time=4", f"--output={tmp_path / 'out'}"], tmp_path / "run"
    job = submit(script, options, arguments_for(workdir, data_dir), PATH=path, SECONDS_MORE="6")
    state = wait_for(job, ENDS, timeout=900)
    output = (tmp_path / "out").read_text()
    assert state == "COMPLETED", output
    assert describe(job)["Restarts"] != "0" and describe(job)["ExitCode"] == "0:0"
    stopped, resumed = (re.findall(rf"{words} (\d+)", output) for words in ("stopped at step", "resuming at step"))
    assert resumed and set(stopped) == set(resumed), output  # nothing was computed twice
    assert_bit_for_bit(workdir, two_tasks)


def test_the_printed_job_is_not_requeued_by_scancel_or_an_error(tmp_path, data_dir):
    """`scancel` sends SIGTERM too: the tasks save and exit with 75, but who cancels a job does not want it back."""
    script, path = printed_script("train.sh", tmp_path)
    options, workdir = [f"--output={tmp_path / 'out'}"], tmp_path / "run"
    job = submit(script, options, arguments_for(workdir, data_dir), PATH=path, SECONDS_MORE="1")
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline, describe(job)
        time.sleep(0.2)
    subprocess.run(["scancel", job], check=True, timeout=60)
    deadline = time.monotonic() + 60
    while "srun: error" not in (tmp_path / "out").read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert json.loads((workdir / "result.json").read_text())["status"] == "preempted"
    wrong = submit(script, options, ["--learning_rate=-1"], PATH=path)
    assert wait_for(wrong, ENDS) == "FAILED" and describe(wrong)["ExitCode"] == "2:0"
    for number in (job, wrong):
        assert describe(number)["Restarts"] == "0"
    assert describe(job)["JobState"] == "CANCELLED"


def test_the_printed_array_is_a_run_per_seed(tmp_path, data_dir):
    """One workdir for all would be refused, and one seed for all would be one run."""
    script, path = printed_script("seeds.sh", tmp_path)
    flags = (f"--data_dir={data_dir}", *FLAGS, "--max_steps=2")
    job = submit(script, ["--array=3-4", f"--output={tmp_path}/out-%a"], flags, PATH=path, RUNS=str(tmp_path / "runs"))
    for seed in (3, 4):
        assert wait_for(f"{job}_{seed}", ENDS) == "COMPLETED", (tmp_path / f"out-{seed}").read_text()
        folder = tmp_path / "runs" / f"seed-{seed}"
        assert json.loads((folder / "config.json").read_text())["seed"] == seed
        assert json.loads((folder / "result.json").read_text())["status"] == "completed"
