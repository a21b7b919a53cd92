"""The sources through main.py, as users start it: class names are kept, bad data ends the run with one line and code 3."""

import json

import pytest
import tensorflow as tf
from source_files import CLASSES, write_any, write_folder

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.cli.failures import explained
from train_lib.distribution.workers import OneWorker

TINY = ("--train_split=train[:80%]", "--validation_split=train[80%:]", "--max_steps=2", "--global_batch_size=8",
        "--model_options=dense_units=8,width=0.1", "--image_size=32", "--log_every_steps=1")


@pytest.mark.parametrize("kind", [pytest.param("npz", marks=pytest.mark.slow), "tfrecord"])
def test_a_run_on_own_files_ends_with_a_test_accuracy(main, tmp_path, kind):
    """A source may open and yet not work with the rest: statistics, classes, the test split at the end."""
    folder = tmp_path / "data"
    folder.mkdir()
    done = main(f"--dataset={write_any(kind, folder)}", f"--workdir={tmp_path / 'run'}", *TINY)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2 and 0 <= result["test_accuracy"] <= 1
    manifest = next((tmp_path / "run" / "checkpoints").glob("step-*/progress.json")).read_text()
    assert json.dumps(CLASSES)[1:-1] in " ".join(manifest.split())
    assert not (tmp_path / "run" / "bad_examples.txt").exists()


def test_bad_examples_are_listed_in_the_workdir_up_to_the_limit(main, tmp_path):
    """A number without names does not help. One bad example too many in the test split must not end in a traceback."""
    write_folder(tmp_path / "data")
    first, second = (tmp_path / "data" / name for name in ("train/dog/004.png", "test/owl/005.png"))
    whole = second.read_bytes()
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:60])
    command = (f"--dataset=folder:{tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}", *TINY, "--max_bad_examples=1")
    done = main(*command)
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(second) in errors[0] and "Traceback" not in done.stderr, done.stderr
    assert "training is complete and saved" in errors[0]
    lines = (tmp_path / "run" / "bad_examples.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{first}: is damaged or cut off")
    second.write_bytes(whole)  # mended: the same command does the rest
    done = main(*command)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2 and 0 <= result["test_accuracy"] <= 1


def test_a_stream_skips_and_lists_bad_examples_up_to_the_limit(main, tmp_path):
    """The error comes from the compiled loop. The examples skipped before it must be listed."""
    write_folder(tmp_path / "data")
    first, second = (tmp_path / "data" / name for name in ("train/dog/004.png", "test/owl/005.png"))
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:60])
    done = main(f"--dataset=folder:{tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}", *TINY, "--max_bad_examples=1",
                "--input=stream", "--train_split=train", "--validation_split=", "--max_steps=4")  # 32 of 30 examples
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(second) in errors[0] and "Traceback" not in done.stderr, done.stderr
    assert "training is complete and saved" in errors[0]
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
    lines = (tmp_path / "run" / "bad_examples.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{first}: is damaged or cut off")


@pytest.mark.parametrize("workers", [None, OneWorker()])
def test_a_stream_that_fails_in_the_loop_ends_with_the_file_at_fault(tmp_path, workers):
    """The loop gets a TensorFlow error that only names nodes of a graph."""
    write_folder(tmp_path)
    bad = tmp_path / "train" / "owl" / "011.png"
    bad.write_bytes(bad.read_bytes()[:60])
    config = config_lib.from_values({"dataset": f"folder:{tmp_path}", "input": "stream", "image_size": 32})
    with pytest.raises(UnusableError) as caught, explained(config, workers):
        raise tf.errors.InvalidArgumentError(None, None, "{{function_node x}} {{node DecodeImage}} Invalid PNG data, size 60")
    assert str(caught.value).startswith(f"{bad}: is damaged or cut off")
