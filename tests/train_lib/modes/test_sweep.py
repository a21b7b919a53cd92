"""Sweeps: their grammar, their runs, and what becomes of them when processes fail, are stopped or are killed.

Most tests let a small script stand for main.py, which "trains" by counting, so that they take no time.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from absl import flags as absl_flags
from helpers import ROOT, run_main

from input_pipeline.common.errors import SettingError
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.modes.sweep import children, hparams
from train_lib.modes.sweep.combinations import folder_name, parse_sweep, plan_runs, without_own_flags
from train_lib.records.workdir import Workdir

# Stands for main.py in a run: --max_steps steps of 20 ms. Seed 3 diverges, seed 4 fails until there is a file "mended".
FAKE_RUN = """
import json, os, signal, sys, time
from absl import flags
from train_lib.cli import flags as flags_lib
from train_lib.records.lock import locked
from train_lib.records.workdir import Workdir

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
config = flags_lib.parse(sys.argv, flags_lib.define(flags.FlagValues()))
workdir = Workdir(config.general.workdir)
last, seed, counter = config.schedule.max_steps, config.general.seed, workdir.path / "steps"
assert config.general.mode == "train" and not config.modes.sweep

def end(code, status):
    rate = config.optimization.learning_rate
    workdir.write_json("result.json", {"status": status, "steps": step, "best_validation_accuracy": rate, "test_accuracy": None})
    print(f"the end: {status}")
    sys.exit(code)

with locked(workdir.path):
    workdir.write_config(config)
    seen = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "cores": sorted(os.sched_getaffinity(0)), "group": os.getpgid(0),
            "threads": os.environ.get("TF_NUM_INTRAOP_THREADS"), "pid": os.getpid(), "start": time.time()}
    with open(workdir.path / "starts.jsonl", "a") as file:
        print(json.dumps(seen), file=file)
    step = int(counter.read_text()) if counter.exists() else 0
    while step < last:
        time.sleep(float(os.environ.get("STEP_SECONDS", 0.02)))
        step += 1
        counter.write_text(str(step))
        if asked:
            end(75, "preempted")
    if seed == 3:
        end(4, "diverged")
    if seed == 4 and not os.path.exists("mended"):
        print("error: not mended yet", file=sys.stderr)
        sys.exit(1)
    end(0, "completed")
"""
# main.py, for whose runs the script above stands.
FAKE_SWEEP = """
import os, pathlib, sys
import main
from train_lib.cli import commands
from train_lib.modes.sweep import children
commands.MAIN = pathlib.Path(os.environ["FAKE_RUN"])
if "GPUS" in os.environ:
    children.find_accelerators = lambda environ: os.environ["GPUS"].split(",")
main.app.run(main.main, flags_parser=main.parse_flags)
"""


class FakeSweeps:
    """Starts sweeps of fake runs in a folder, by the same command line each time."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "run.py").write_text(FAKE_RUN)

    def start(self, *arguments, **more):
        command = [sys.executable, "-c", FAKE_SWEEP, "--mode=sweep", "--workdir=all", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "FAKE_RUN": str(self.folder / "run.py")} | more
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *arguments, **more):
        process = self.start(*arguments, **more)
        out, error = process.communicate(timeout=60)
        assert "Traceback" not in error, error
        return process.returncode, out, error

    def runs(self):
        """The entries of sweep.json by their folders."""
        return {run["folder"]: run for run in json.loads((self.folder / "all" / "sweep.json").read_text())["runs"]}

    def starts(self, run="*"):
        """What each process of a run saw."""
        paths = sorted(self.folder.glob(f"all/{run}/starts.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def wait_for(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def fakes(tmp_path):
    return FakeSweeps(tmp_path)


def files_of(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        ("learning_rate=0.02,0.040;seed=0:3", {"learning_rate": [0.02, 0.04], "seed": [0, 1, 2]}),
        ('augment="crop,flip",none; seed = 7 ;', {"augment": ["crop,flip", "none"], "seed": [7]}),
        ("seed=0:10:4,20", {"seed": [0, 4, 8, 20]}),
        ("epochs=1:3", {"epochs": [1.0, 2.0]}),
        ("nesterov=true,false", {"nesterov": [True, False]}),
        ("train_split=train[0:90],train[:9%]", {"train_split": ["train[0:90]", "train[:9%]"]}),
        ("dropout_rate=,0.3", {"dropout_rate": [None, 0.3]}),
        ('model_options="width=0.5,lrn=false", ""', {"model_options": ["width=0.5,lrn=false", ""]}),
        ('dataset="npz:a;b.npz"', {"dataset": ["npz:a;b.npz"]}),
    ],
)
def test_grammar(text, lists):
    assert parse_sweep(text) == lists
    kinds = [[type(value) for value in values] for values in parse_sweep(text).values()]
    assert kinds == [[type(value) for value in values] for values in lists.values()]


REFUSED = {
    "lerning_rate=0.1": ("'lerning_rate'", "did you mean learning_rate?"),
    "seed": ("'seed' has no values",),
    "seed=": ("seed has no values",),
    ";": ("names no setting",),
    "seed=1,2,1": ("seed has the value 1 twice",),
    "learning_rate=0.1,1e-1": ("learning_rate has the value 0.1 twice",),
    "seed=0:2;seed=5": ("seed is there twice",),
    "seed=3:3": ("seed=3:3 is empty",),
    "seed=1,x": ("--seed=x", "whole number"),
    "learning_rate=0.1,": ("--learning_rate=", "a number"),
    'augment="crop,flip': ("a quote is not closed",),
    "workdir=a,b": ("workdir is the same for all runs",),
    "parallel=1,2": ("parallel is the same",),
    "learning_rate=0.1,-1": ("with learning_rate=-1.0", "above 0"),
    "preset=cifar10,cifar11": ("with preset=cifar11", "no such preset"),
    "global_batch_size=32,33": ("with global_batch_size=33", "must divide by the 2 replicas", "32 or 34"),
    "optimizer=sgd,adam;momentum=0.5": ("with optimizer=adam;momentum=0.5", "--momentum=0.5", "no such setting"),
    "dataset=shapes,npz:missing.npz": ("with dataset=npz:missing.npz", "no such file"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_created(text, tmp_path):
    with pytest.raises(SettingError) as error:
        plan_runs(text, ["--virtual_devices=2"], Workdir(tmp_path / "all"))
    assert str(error.value).startswith(f"--sweep={text}: ") and all(word in str(error.value) for word in REFUSED[text])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sweep=seed=0,0"], ["--sweep=seed=0,0", "twice"]),
        ([], ["--sweep=", "--mode=sweep needs"]),
        (["--sweep=seed=0:3", "--parallel=-1"], ["--parallel=-1", "at least 0"]),
        (["--sweep=seed=0:3", "--mode=train"], ["--sweep=seed=0:3", "--mode=sweep"]),
        (["--dry_run", "--mode=train"], ["--dry_run=True", "--mode=sweep"]),
        (["--dry_run", "--mode=evaluate"], ["--dry_run=True", "--mode=sweep"]),
        (["--sweep=seed=0:3", "--init_from=nowhere"], ["--init_from=nowhere"]),
    ],
)
def test_errors_are_one_line_without_tensorflow(arguments, words, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    done = run_main("--mode=sweep", "--workdir=all", *arguments, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("error: ") and all(word in done.stderr for word in words)
    assert not (tmp_path / "all").exists() and not (tmp_path / "runs").exists()


def test_a_sweep_on_several_machines_is_refused(tmp_path):
    """Each of its runs would otherwise wait for the other workers."""
    variables = {"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}})}
    done = run_main("--mode=sweep", "--sweep=seed=0:2", "--workdir=all", cwd=tmp_path, env=variables)
    assert done.returncode == 2 and "TF_CONFIG names 2 workers" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_names_of_folders():
    assert folder_name({"seed": 0, "learning_rate": 0.02}) == folder_name({"learning_rate": 0.02, "seed": 0})
    assert folder_name({"seed": 0, "learning_rate": 0.02}) == "learning_rate=0.02,seed=0"
    strange = ["npz:/a/b.npz", "npz:/a-b.npz", "npz:-a/b.npz", "a,seed=1", "x" * 400, "x" * 401, "\udcff", "é", "../..", "\n", ""]
    names = [folder_name({"dataset": value, "seed": 1}) for value in strange]
    names += [folder_name({"augment": value}) for value in ("crop,flip", "crop-flip", "flip,crop")]
    assert len(set(names)) == len(names)
    assert all(len(os.fsencode(name)) < 255 and "/" not in name and name.isascii() and name.isprintable() for name in names)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--mode=sweep", "--sweep=seed=1", "--dry_run", "--parallel=2", "--seed=4", "--workdir=a"], ["--seed=4"]),
        (["-mode", "sweep", "--sweep", "seed=1", "--nodry_run", "--seed", "3", "--dry_run=false"], ["--seed", "3"]),
        (["--flagfile=a", "--mode=sweep"], ["--flagfile=a", "--mode=train", "--sweep=", "--dry_run=false"]),
    ],
)
def test_runs_do_not_get_the_flags_of_the_sweep(arguments, kept):
    assert without_own_flags(arguments) == kept


def test_dry_run_prints_the_command_of_each_run(tmp_path):
    """On every flag, those of a preset, a flagfile and the command line, and where another model drops the preset's options."""
    assert "--mode=" not in flags_lib.to_flagfile(config_lib.ExperimentConfig())  # such a file may come behind --mode=sweep
    (tmp_path / "some.flags").write_text("--label_smoothing=0.1\n--mode=sweep\n")
    given = ["--flagfile=some.flags", "--preset=cifar10_fast", "--epochs=3"]
    text = 'model=alexnet_tower,alexnet_mini;augment="crop,flip",none'
    done = run_main(*given, f"--sweep={text}", "--dry_run", "--workdir=it's", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and [path.name for path in tmp_path.iterdir()] == ["some.flags"]
    lines = done.stdout.splitlines()
    expected = [(model, augment) for model in ("alexnet_tower", "alexnet_mini") for augment in ("crop,flip", "none")]
    for line, (model, augment) in zip(lines, expected, strict=True):
        words = shlex.split(line)
        assert words[:2] == [sys.executable, str(ROOT / "main.py")]
        words = [word.replace("some.flags", str(tmp_path / "some.flags")) for word in words[1:]]
        config = flags_lib.parse(words, flags_lib.define(absl_flags.FlagValues()))
        alone = ["main.py", f"--model={model}", f"--augment={augment}", "--label_smoothing=0.1", *given[1:]]
        wanted = config_lib.to_values(flags_lib.parse(alone, flags_lib.define(absl_flags.FlagValues())))
        folder = tmp_path / "it's" / folder_name({"model": model, "augment": augment})
        assert config_lib.to_values(config) == wanted | {"workdir": str(folder)}


def test_a_run_of_a_sweep_reads_no_config_of_the_folder_above(tmp_path):
    """The workdir of the sweep may hold a run of its own from an earlier day."""
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 99.0}))
    (run,) = plan_runs("seed=5", [], Workdir(tmp_path))
    arguments = ["", "--mode=sweep", "--sweep=seed=5", f"--workdir={tmp_path}"]
    parsed = flags_lib.parse(arguments, flags_lib.define(absl_flags.FlagValues()))
    assert run.config.schedule.epochs == parsed.schedule.epochs == 24


@pytest.mark.slow
def test_ten_thousand_combinations_are_validated_in_half_a_minute(tmp_path):
    start = time.monotonic()
    runs = plan_runs("seed=0:100;learning_rate=1:101", ["--preset=cifar10"], Workdir(tmp_path))
    assert len({run.folder for run in runs}) == 10_000 and time.monotonic() - start < 30


def config_with(**values):
    return config_lib.from_values({"mode": "sweep", "sweep": "seed=0"} | values)


def test_accelerators_are_shared_out():
    gpus = ["3", "GPU-a", "7", "1", "0"]
    one_each = children.make_slots(config_with(), gpus)
    assert [slot.accelerators for slot in one_each] == [("3",), ("GPU-a",), ("7",), ("1",), ("0",)]
    assert [slot.accelerators for slot in children.make_slots(config_with(devices=2), gpus)] == [("3", "GPU-a"), ("7", "1")]
    assert len(children.make_slots(config_with(devices=2, parallel=1), gpus)) == 1
    refused = ({"devices": 6}, "there are 5"), ({"parallel": 6}, "at most 5"), ({"devices": 2, "parallel": 3}, "at most 2")
    for values, words in refused:
        with pytest.raises(SettingError, match=words):
            children.make_slots(config_with(**values), gpus)


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7, 9})
    assert [slot.cores for slot in children.make_slots(config_with(), [])] == [()]
    assert [slot.cores for slot in children.make_slots(config_with(parallel=2), [])] == [(4, 5), (6, 7)]
    assert [slot.cores for slot in children.make_slots(config_with(parallel=6), [])] == [()] * 6


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 2, ["0", "1"]), ("5,3", 2, ["5", "3"]), ("5,-1,3", 1, ["5"]), ("", 0, []), (None, 0, [])],
)
def test_tensorflow_counts_the_accelerators(monkeypatch, tmp_path, visible, count, names):
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(children, "COUNT", f"print('noise'); print('gpus:', {count})")
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert children.find_accelerators(environ) == names


@pytest.mark.slow
def test_each_run_sees_its_own_accelerators(fakes):
    code, out, _ = fakes.run("--sweep=seed=0:3,5:7", "--max_steps=10", "--devices=2", GPUS="6,2,GPU-x,0,1")
    assert code == 0
    seen = fakes.starts()
    assert len(seen) == 5 and {run["gpus"] for run in seen} == {"6,2", "GPU-x,0"}
    for gpus in ("6,2", "GPU-x,0"):  # never two at once: a run takes at least 0.2 s
        starts = sorted(run["start"] for run in seen if run["gpus"] == gpus)
        assert all(later - earlier >= 0.2 for earlier, later in zip(starts, starts[1:], strict=False))
    assert {tuple(run["cores"]) for run in seen} == {tuple(sorted(os.sched_getaffinity(0)))}


def test_failures_are_listed_and_do_not_stop_the_others(fakes):
    arguments = ("--sweep=seed=3,0,4,1", "--max_steps=2", "--parallel=2", "--learning_rate=0.5")
    code, out, error = fakes.run(*arguments)
    assert code == 3 and error.count("\n") == 1 and "2 of 4 runs failed or diverged" in error
    lines = out.splitlines()
    assert "3/4 seed=4: failed (exit code 1): error: not mended yet" in lines
    assert "1/4 seed=3: diverged (exit code 4): the end: diverged" in lines
    assert "2/4 seed=0: completed, validation accuracy 50.00 %, test accuracy -" in lines
    assert sum(line.endswith(": started") for line in lines) == 4
    assert "4 runs: 1 diverged, 2 completed, 1 failed" in lines
    runs = fakes.runs()
    assert {name: (run["status"], run["exit_code"], run["settings"]) for name, run in runs.items()} == {
        "seed=3": ("diverged", 4, {"seed": 3}), "seed=0": ("completed", 0, {"seed": 0}),
        "seed=4": ("failed", 1, {"seed": 4}), "seed=1": ("completed", 0, {"seed": 1})}
    assert runs["seed=0"]["best_validation_accuracy"] == 0.5 and "best_validation_accuracy" not in runs["seed=4"]
    cores = sorted(os.sched_getaffinity(0))
    for seen in fakes.starts():
        assert seen["group"] == seen["pid"] and seen["threads"] == str(len(cores))  # as if the run was alone
        assert set(seen["cores"]) in (set(cores[: len(cores) // 2]), set(cores[len(cores) // 2 : len(cores) // 2 * 2]))

    before = files_of(fakes.folder)
    (fakes.folder / "mended").touch()
    code, out, _ = fakes.run(*arguments)  # the diverged run is left as it is, and the failed one tried again
    assert code == 3 and len(fakes.starts()) == 5
    changed = {path for path, content in files_of(fakes.folder).items() if before.get(path) != content}
    assert {path.relative_to(fakes.folder).parts[1] for path in changed if path.name != "mended"} == {"seed=4", "sweep.json"}


@pytest.mark.slow
def test_a_sweep_started_again_only_does_what_is_left(fakes):
    def processes():
        return {path.parent.name: len(path.read_text().splitlines()) for path in fakes.folder.glob("all/*/starts.jsonl")}

    assert fakes.run("--sweep=seed=0,1", "--max_steps=2")[0] == 0
    before = {path: content for path, content in files_of(fakes.folder / "all").items() if path.name != "sweep.json"}
    assert fakes.run("--sweep=seed=0,1", "--max_steps=2")[0] == 0
    assert {path: content for path, content in files_of(fakes.folder / "all").items() if path.name != "sweep.json"} == before
    assert fakes.run("--sweep=seed=0:3", "--max_steps=2")[0] == 0  # a longer list
    assert processes() == {"seed=0": 1, "seed=1": 1, "seed=2": 1} and len(fakes.runs()) == 3
    assert fakes.run("--sweep=seed=0:3", "--max_steps=4")[0] == 0  # longer runs
    assert processes() == {"seed=0": 2, "seed=1": 2, "seed=2": 2} and {run["steps"] for run in fakes.runs().values()} == {4}


OTHERS = (signal.SIGINT, signal.SIGUSR1, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in OTHERS)])
def test_a_stopped_or_killed_sweep_goes_on(fakes, number):
    """Nothing is lost: a step is counted once. Killed, its runs end too, and may still be saving when it starts again."""
    arguments = ("--sweep=learning_rate=0.1,0.2;seed=0:2", "--max_steps=12", "--parallel=2")
    sweep = fakes.start(*arguments, STEP_SECONDS="0.6")
    fakes.wait_for(lambda: len(list(fakes.folder.glob("all/*/steps"))) >= 2)
    pids = [seen["pid"] for seen in fakes.starts()]
    sweep.send_signal(number)
    out, error = sweep.communicate(timeout=30)
    if number == signal.SIGKILL:
        fakes.wait_for(lambda: not any(map(alive, pids)), 5)
    else:
        assert sweep.returncode == 75 and not any(map(alive, pids)), error
        statuses = [run["status"] for run in fakes.runs().values()]
        assert statuses.count("preempted") == statuses.count("waiting") == 2
        assert number.name in error and "to go on: " in error.splitlines()[-1]
    assert fakes.run(*arguments)[0] == 0
    assert {(run["status"], run["steps"]) for run in fakes.runs().values()} == {("completed", 12)}
    assert len(fakes.starts()) == 6
    assert not list(fakes.folder.glob("all/.lock")) or number == signal.SIGKILL


@pytest.mark.slow
def test_a_second_signal_ends_everything_at_once(fakes):
    (fakes.folder / "run.py").write_text(FAKE_RUN.replace("if asked:", "if len(asked) > 1:"))
    sweep = fakes.start("--sweep=seed=0,1", "--max_steps=100000", "--parallel=2")
    fakes.wait_for(lambda: len(fakes.starts()) == 2)
    pids = [seen["pid"] for seen in fakes.starts()]
    sweep.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert sweep.poll() is None and all(map(alive, pids))
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=5)
    assert sweep.returncode == 130
    fakes.wait_for(lambda: not any(map(alive, pids)), 5)


@pytest.mark.slow
def test_two_sweeps_in_one_folder_are_refused(fakes):
    first = fakes.start("--sweep=seed=0,1", "--max_steps=100")
    fakes.wait_for(lambda: fakes.starts())
    code, out, error = fakes.run("--sweep=seed=0,1", "--max_steps=100")
    assert (code, out) == (3, "") and error.count("\n") == 1 and f"process {first.pid}" in error
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=30)


@pytest.mark.slow
def test_a_sweep_waits_for_runs_that_are_still_written(fakes):
    """Of a killed sweep, a run may be saving for a while, on an accelerator that another one would get."""
    folder = fakes.folder / "all" / "seed=0"
    folder.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", f"""
import time
from train_lib.records.lock import locked
with locked({str(folder)!r}):
    print("held", flush=True)
    time.sleep(1.5)
print(time.time())
"""], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    code, out, _ = fakes.run("--sweep=seed=1,0", "--max_steps=2")
    assert code == 0 and "waiting up to 120 s for 1 runs" in out and "seed=0" in out
    assert min(seen["start"] for seen in fakes.starts()) > float(holder.communicate(timeout=30)[0])


@pytest.mark.slow
def test_what_a_terminal_shows(fakes):
    """Bars for the sweep and each run, and lines above them for runs that have ended."""
    script = shutil.which("script") or pytest.skip("no script command here")
    inner = [sys.executable, "-c", FAKE_SWEEP, "--mode=sweep", "--workdir=all", "--sweep=seed=0,1,4", "--max_steps=30",
             "--parallel=2"]
    (fakes.folder / "all" / "seed=1").mkdir(parents=True)
    records = [{"kind": "train", "step": 5, "epoch": 0.5, "loss": 1.25},
               {"kind": "validation", "step": 9, "epoch": 1.5, "accuracy": 0.625}]
    text = "".join(json.dumps(record) + "\n" for record in records) + '{"kind": "tra'
    (fakes.folder / "all" / "seed=1" / "metrics.jsonl").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FAKE_RUN": str(fakes.folder / "run.py")}
    inner = f"stty cols 120 rows 40; {shlex.join(inner)}"
    done = subprocess.run([script, "-qec", inner, "/dev/null"], cwd=fakes.folder, env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 3, done
    assert "seed=1: epoch 1.5/24, validation accuracy 62.50 %, train loss 1.2500" in done.stdout
    assert "3/3 seed=4: failed (exit code 1): error: not mended yet" in done.stdout and "| 3/3 [" in done.stdout
    assert ": started" not in done.stdout


def events_of(folder):
    """{tag: value or message} of the event files in a folder, read by TensorBoard itself."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import metadata

    found = {}
    for path in folder.glob("*tfevents*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                assert value.tag not in found
                content, is_start = value.metadata.plugin_data.content, value.tag == metadata.SESSION_START_INFO_TAG
                found[value.tag] = (metadata.parse_session_start_info_plugin_data(content) if is_start
                                    else value.tensor.float_val[0])
    return found


def test_tensorboard_gets_the_settings_and_accuracies_once(tmp_path):
    result = {"status": "completed", "steps": 7, "best_validation_accuracy": 0.75, "test_accuracy": None}
    settings = {"learning_rate": 0.5, "augment": "crop,flip", "nesterov": True, "dropout_rate": None}
    for accuracy in (0.5, 0.25):  # the second is of a run that went on
        hparams.write_hparams(tmp_path / "name", settings, result | {"test_accuracy": accuracy})
    events = events_of((tmp_path / "name" / hparams.EVENTS).parent)
    start = events.pop("_hparams_/session_start_info")
    assert start.group_name == "name" and dict(start.hparams)["learning_rate"].number_value == 0.5
    assert dict(start.hparams)["nesterov"].bool_value is True and dict(start.hparams)["dropout_rate"].string_value == "not given"
    assert events == {"best_validation_accuracy": 0.75, "test_accuracy": 0.25}
