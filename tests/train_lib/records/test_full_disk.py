"""If the disk is full, read-only or gone while a run trains, old files stay whole and the run goes on."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.checkpoints.store import CheckpointStore, verify
from train_lib.cli.environment import Unfailing
from train_lib.records.json_lines import JsonLines
from train_lib.records.pictures import Pictures
from train_lib.records.workdir import Workdir, open_workdir
from train_lib.setup import open_run
from train_lib.train import Trainer

VALUES = {
    "model": "alexnet_mini", "model_options": "width=0.1,dense_units=32", "train_split": "train[:240]", "test_split": "",
    "validation_split": "train[300:330]", "global_batch_size": 24, "steps_per_loop": 4, "log_every_steps": 2, "epochs": 2,
    "checkpoint_every_steps": 4, "learning_rate": 0.005, "keep_checkpoints": 0,
}


@contextlib.contextmanager
def largest_file(size):
    """Inside, no file of this process can grow above `size` bytes. As on a full disk, a part may be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, mounted for this test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def all_but(folder, size):
    """Inside, the file system of `folder` has `size` free bytes, rounded down to pages."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    pages = free.f_bavail - size // free.f_bsize
    ballast.write_bytes(bytes(pages * free.f_bsize))
    try:
        yield
    finally:
        ballast.unlink()


def make_trainer(folder, data_dir, **values):
    config = config_lib.from_values(VALUES | {"data_dir": str(data_dir), "workdir": str(folder)} | values)
    workdir = open_workdir(config)
    store = CheckpointStore(workdir.checkpoints, config.cadence.keep_checkpoints)
    run = open_run(config, workdir, store.newest(), store, log=lambda line: None)
    workdir.remove_result()
    return Trainer(run)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def scalars(folder, kind):
    """[(step, value)] of the loss in all event files of a kind."""
    found = []
    for path in sorted((folder / "tensorboard" / kind).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found += [(event.step, float(tf.make_ndarray(v.tensor))) for v in event.summary.value if v.tag == "loss"]
    return found


def losses(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines if line["kind"] == kind]


def broken_between(trainer, first, last, break_it):
    """Puts a context manager around the turns that begin at steps from `first` up to `last`."""
    turn, stack = trainer.turn, contextlib.ExitStack()

    def turn_then(batches):
        if trainer.state.step >= last:
            stack.close()
        elif trainer.state.step >= first and not stack._exit_callbacks:
            stack.enter_context(break_it())
        turn(batches)

    trainer.turn = turn_then
    return stack


@contextlib.contextmanager
def moved_away(folder):
    folder.rename(folder.with_name("elsewhere"))
    try:
        yield
    finally:
        assert not folder.exists()  # below an empty mount point, a new folder would hide the old one
        folder.with_name("elsewhere").rename(folder)


@contextlib.contextmanager
def read_only(disk, trainer):
    trainer.log._close_events()  # no file system with a file open for writing can be remounted
    pictures = next(hook for hook in trainer.hooks if isinstance(hook, Pictures))
    pictures._writer.close()
    pictures._writer = None
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert make_trainer(folder, data_dir).train() == 0
    return folder


def assert_repaired(folder, undisturbed, out):
    """Checks the workdir of a run whose disk was broken from step 6 to step 14."""
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    steps = [json.loads(line)["step"] for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 21, 2))
    for kind in ("train", "validation"):
        assert scalars(folder, kind) == losses(folder, kind)
    store = CheckpointStore(folder / "checkpoints")
    assert store.steps() == [4, 16, 20]  # 8, 10 and 12 failed, and a line was printed for each
    assert not [path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".old")]
    ours, theirs = store.newest().tensors(), CheckpointStore(undisturbed / "checkpoints").newest().tensors()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    lines = out.splitlines()
    for step in (8, 10, 12):
        assert sum(f"no checkpoint at step {step} (" in line and "going on" in line for line in lines) == 1, out
    return lines


BREAKS = {
    "full": lambda folder: largest_file(0),
    "gone": moved_away,
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_run_goes_on_without_its_disk_and_catches_up(tmp_path, data_dir, undisturbed, capsys, how):
    """Every record and every event is there once and in order, what was saved before stays, and the next save works."""
    folder = tmp_path / "run"
    trainer = make_trainer(folder, data_dir)
    with broken_between(trainer, 6, 14, lambda: BREAKS[how](folder)):
        assert trainer.train() == 0
    lines = assert_repaired(folder, undisturbed, capsys.readouterr().out)
    assert sum("metrics.jsonl: cannot be written" in line for line in lines) == 1, lines  # one line, not one per record


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_same_on_a_real_file_system(small_disk, data_dir, undisturbed, capsys, how):
    def break_it(trainer):
        return all_but(small_disk, 0) if how == "full" else read_only(small_disk, trainer)

    folder = small_disk / "run"
    trainer = make_trainer(folder, data_dir)
    with broken_between(trainer, 6, 14, lambda: break_it(trainer)):
        assert trainer.train() == 0
    assert_repaired(folder, undisturbed, capsys.readouterr().out)


@pytest.mark.slow
def test_disk_full_at_20_positions_of_a_save(small_disk, data_dir, capsys):
    """From no room at all to one page less than the checkpoint needs. Old checkpoints stay, and no part of a new one."""
    folder = small_disk / "run"
    trainer = make_trainer(folder, data_dir, max_steps=8)
    assert trainer.train() == 0
    store, before = trainer.run.store, contents(folder / "checkpoints")
    size = sum(len(content) for name, content in before.items() if name.parts[0] == "step-00000008")
    trainer.state.step, trainer.find_status, failures = 9, lambda: None, 0
    for position in range(20):
        with all_but(small_disk, position * size // 20):
            trainer.save(True)
            failures += f"no checkpoint at step 9 ({store.folder}" in capsys.readouterr().out or 1
            assert contents(folder / "checkpoints") == before
    assert failures == 20
    assert [verify(store.folder / f"step-{step:08d}").step for step in store.steps()] == [4, 8]
    trainer.save(True)
    assert store.newest().step == store.find("best").step == 9


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_file_that_cannot_grow_leaves_the_old_checkpoints(tmp_path, share):
    """The same with a limit on the size of files, which any user can set: ulimit -f."""
    store = CheckpointStore(tmp_path)
    tensors = {"model/kernel": np.random.default_rng(0).normal(size=10_000)}
    store.save(5, tensors, {}, is_best=True)
    before = contents(tmp_path)
    with largest_file(int(80_000 * share)), pytest.raises((OSError, tf.errors.OpError)):
        store.save(6, tensors, {}, is_best=True)
    assert contents(tmp_path) == before
    store.save(6, tensors, {}, is_best=True)
    assert store.newest().step == 6


def test_a_last_save_that_fails_is_exit_code_3(tmp_path, data_dir, capsys):  # capsys keeps the output in memory
    """A run that could not save its last state must not look finished."""
    trainer = make_trainer(tmp_path / "run", data_dir, max_steps=6)
    with broken_between(trainer, 4, 99, lambda: largest_file(0)), pytest.raises(UnusableError) as error:
        trainer.train()
    assert error.value.exit_code == 3 and "the last checkpoint cannot be saved" in str(error.value)
    assert not (tmp_path / "run" / "result.json").exists()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").newest().step == 4


def test_a_record_is_written_whole_or_not_at_all(tmp_path):
    """Half a line would spoil the next one, and a line that is written again after a failure would count twice."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 0})
    size = lines.path.stat().st_size
    for room in range(3 * size):
        before = lines.read()
        with largest_file(lines.path.stat().st_size + room):
            for step in (1, 2):
                with contextlib.suppress(UnusableError):
                    lines.append({"step": step})
                assert lines.path.read_bytes().endswith(b"\n")
                assert lines.read()[: len(before)] == before
        lines.append({"step": 3})
        assert lines.read() == [*before, {"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("name", ["config.json", "run.flags", "result.json"])
def test_small_files_are_replaced_or_left_alone(tmp_path, name):
    workdir = Workdir(tmp_path)
    workdir.write_json("result.json", {"status": "completed"})
    workdir.write_config(config_lib.ExperimentConfig())
    before = contents(tmp_path)
    write = {"result.json": lambda: workdir.write_json("result.json", {})}.get(
        name, lambda: workdir.write_config(config_lib.from_values({"seed": 5})))
    with largest_file(0), pytest.raises(UnusableError, match=r"(config|result).json: cannot be written \(File too large\)"):
        write()
    assert contents(tmp_path) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_output_that_cannot_be_written_is_no_error():
    """For any print, in our code or in a library."""
    full = open("/dev/full", "w")  # noqa: SIM115, closing it fails
    try:
        stream = Unfailing(full)
        print("a" * 20_000, file=stream, flush=True)
        print("b", file=stream, flush=True)
        assert not stream.isatty() and stream.fileno() == full.fileno()
    finally:
        with contextlib.suppress(OSError):
            full.close()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_output_into_a_full_disk_does_not_end_a_run(tmp_path, data_dir):
    """`python main.py > log`, with the log on the same full disk."""
    flags = [f"--{name}={value}" for name, value in VALUES.items()]
    command = [sys.executable, str(ROOT / "main.py"), f"--workdir={tmp_path}", f"--data_dir={data_dir}", *flags, "--max_steps=4"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "completed"


def test_a_failed_first_save_leaves_no_folder(tmp_path):
    store = CheckpointStore(tmp_path)
    with largest_file(0), pytest.raises((OSError, tf.errors.OpError)):
        store.save(1, {"a": np.ones(9)}, {}, is_best=True)
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)
