"""Sweeps that train: killed at any moment, and by the commands that docs/sweeps.md prints. All of them take minutes."""

import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, run_main

from tests.train_lib.modes.test_modes import assert_same_tensors, weights_of
from tests.train_lib.modes.test_sweep import events_of
from train_lib.modes.sweep.combinations import folder_name

pytestmark = pytest.mark.slow

FLAGS = (
    "--train_split=train[:200]", "--validation_split=train[200:]", "--model=alexnet_mini", "--dropout_rate=0.3", "--epochs=12",
    "--model_options=width=0.1,dense_units=16", "--global_batch_size=20", "--augment=crop,flip", "--optimizer=adam",
    "--log_every_steps=1", "--steps_per_loop=2", "--checkpoint_every_steps=3", "--eval_every_epochs=0.5", "--ema_decay=0.9",
    "--deterministic", "--schedule=constant",
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of a small run on images of noise."""
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    generator = np.random.default_rng(0)
    arrays = {}
    for name, size in (("train", 240), ("test", 40)):
        arrays |= {f"x_{name}": generator.integers(0, 256, (size, 16, 16, 3), np.uint8), f"y_{name}": np.arange(size) % 4}
    np.savez(path, **arrays)
    return (f"--dataset=npz:{path}", *FLAGS)


def command_of(*arguments):
    return [sys.executable, str(ROOT / "main.py"), "--mode=sweep", *map(str, arguments)]


def runs_of(folder):
    return json.loads((folder / "sweep.json").read_text())["runs"]


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for pointer in ("latest", "best"):
        assert (one / "checkpoints" / pointer).read_text() == (other / "checkpoints" / pointer).read_text()
        assert_same_tensors(weights_of(one, pointer), weights_of(other, pointer))


def test_runs_of_a_killed_sweep_are_those_that_were_started_alone(flags, tmp_path):
    """Killed and stopped at ten random moments: eight soon after the first checkpoint that its process saved, two at any time.

    Alone, a run has all cores; in the sweep, two share them.
    """
    rates, flags = (0.001, 0.003, 0.009), ("--virtual_devices=2", *flags)
    arguments = (f"--sweep=learning_rate={','.join(map(str, rates))};seed=0:2", "--parallel=2", *flags)

    def alone(rate, seed):
        folder = tmp_path / "alone" / folder_name({"learning_rate": rate, "seed": seed})
        done = run_main(*flags, f"--learning_rate={rate}", f"--seed={seed}", f"--workdir={folder}")
        assert done.returncode == 0, done.stderr

    generator, codes = random.Random(5), []
    for number in 5 * (signal.SIGKILL, signal.SIGTERM):
        start = time.time()
        with open(tmp_path / "output", "ab") as output:
            sweep = subprocess.Popen(command_of(*arguments, f"--workdir={tmp_path / 'all'}"), stdout=output, stderr=output)
        while len(codes) > 1 and sweep.poll() is None and not any(
                path.stat().st_mtime > start for path in tmp_path.glob("all/*/checkpoints/latest")):
            time.sleep(0.05)
        time.sleep(generator.uniform(0, 2 if len(codes) > 1 else 15))
        sweep.send_signal(number)
        codes.append(sweep.wait(timeout=120))
    assert codes == 5 * [-signal.SIGKILL, 75], (tmp_path / "output").read_text()
    done = run_main(*command_of(*arguments, f"--workdir={tmp_path / 'all'}")[2:])
    assert done.returncode == 0, done.stderr
    runs = runs_of(tmp_path / "all")
    assert len(runs) == 6 and {(run["status"], run["exit_code"], run["steps"]) for run in runs} == {("completed", 0, 120)}
    for run in runs:
        alone(*run["settings"].values())
        assert_same_run(tmp_path / "all" / run["folder"], tmp_path / "alone" / run["folder"])
        events = events_of(tmp_path / "all" / run["folder"] / "tensorboard" / "hparams")
        assert events["test_accuracy"] == pytest.approx(run["test_accuracy"])


def test_two_runs_that_start_at_once_decode_once(flags, tmp_path, data_dir):
    more = ("--dataset=shapes", f"--data_dir={data_dir}", "--max_steps=2", f"--cache_dir={tmp_path / 'cache'}")
    done = run_main(*command_of("--sweep=seed=0:4", "--parallel=4", *flags, *more, f"--workdir={tmp_path / 'all'}")[2:])
    assert done.returncode == 0, done.stderr
    texts = [(tmp_path / "all" / run["folder"] / "output.log").read_text() for run in runs_of(tmp_path / "all")]
    for split in ("train[:200]", "train[200:]"):  # of the test split, a run prints no such line
        lines = [line for text in texts for line in text.splitlines() if line.startswith(f"{split} of ")]
        assert len(lines) == 4 and sum(line.endswith("from cache") for line in lines) == 3, lines
    assert len(list((tmp_path / "cache").iterdir())) == 3


def block(name):
    """A block of docs/sweeps.md as it is printed."""
    text = (ROOT / "docs" / "sweeps.md").read_text()
    return re.search(rf"<!-- {re.escape(name)} -->\n```bash\n(.*?)```\n<!-- /{re.escape(name)} -->", text, re.DOTALL)[1]


class Printed:
    """Runs the blocks of docs/sweeps.md in a folder that has a main.py; its runs get a few flags more."""

    def __init__(self, folder, flags):
        self.folder, self.flags = folder, shlex.join(["--max_steps=3", *flags])
        (folder / "main.py").symlink_to(ROOT / "main.py")
        (folder / "sweep.sh").write_text(block("sweep.sh"))
        self.run("runs.txt")
        assert len((folder / "runs.txt").read_text().splitlines()) == 4 and not (folder / "runs").exists()

    def run(self, name, change=lambda text: text, timeout=400):
        command = change(block(name)).replace("main.py ", f"main.py {self.flags} ")
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, timeout=timeout,
                              env=os.environ | {"PATH": path, "SHELL": shutil.which("bash")})

    def check(self):
        """All runs have ended; the sweep itself then trains nothing, and writes its own files."""
        before = {path: path.stat().st_mtime_ns for path in self.folder.glob("runs/rates/*/metrics.jsonl")}
        assert len(before) == 4
        done = self.run("runs.txt", lambda text: text.replace("--dry_run > runs.txt", ""))
        assert done.returncode == 0 and "started" not in done.stdout, done
        runs = runs_of(self.folder / "runs" / "rates")
        assert [run["settings"]["learning_rate"] for run in runs] == [0.001, 0.001, 0.0025, 0.0025]
        assert {run["steps"] for run in runs} == {3}
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert len(list(self.folder.glob("runs/rates/*/tensorboard/hparams/*"))) == 4


@pytest.fixture
def printed(flags, tmp_path):
    return Printed(tmp_path, flags)


def test_the_printed_loop(printed):
    done = printed.run("loop")
    assert done.returncode == 0 and "exit code" not in done.stdout, done
    printed.check()


def test_the_printed_command_for_gnu_parallel(printed):
    if "GNU parallel" not in subprocess.run(["bash", "-c", "parallel --version"], capture_output=True, text=True).stdout:
        pytest.skip("no GNU parallel here")
    done = printed.run("parallel")
    assert done.returncode == 0, done
    environments = [json.loads(path.read_text()) for path in printed.folder.glob("runs/rates/*/environment.json")]
    assert {about["settings"]["CUDA_VISIBLE_DEVICES"] for about in environments} == {"0", "1"}
    printed.check()


def test_the_printed_slurm_array(printed):
    from tests.train_lib.distribution.test_on_slurm import why_not

    if reason := why_not():
        pytest.skip(reason)
    done = printed.run("sbatch", lambda text: text.replace("sbatch", "sbatch --wait"))
    outputs = [path.read_text() for path in printed.folder.glob("sweep-*.out")]
    assert done.returncode == 0 and len(outputs) == 4, (done, outputs)
    printed.check()
