"""Each mode through main.py, as a user runs it, and the files that it writes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from train_lib.checkpoints.store import verify

SMALL = (
    "--model=alexnet_mini", "--model_options=dense_units=32", "--train_split=train[:300]", "--validation_split=train[300:350]",
    "--test_split=test[:70]", "--global_batch_size=32", "--log_every_steps=4", "--steps_per_loop=3", "--learning_rate=0.005",
)


def records(workdir, kind=None):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in lines if kind in (None, record["kind"])]


def weights_of(workdir, pointer="latest"):
    name = (workdir / "checkpoints" / pointer).read_text().strip()
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name / "ckpt"))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}


def assert_same_tensors(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        np.testing.assert_array_equal(tensor, right[name], err_msg=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A run of two epochs, through main.py in a new process: from another folder, in a terminal that knows only ASCII, with a
    relative workdir whose name needs quotes."""
    from helpers import run_main

    folder, name = tmp_path_factory.mktemp("finished"), "it's a $run, très bon"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run_main(f"--workdir={name}", f"--data_dir={data_dir}", "--epochs=2", *SMALL, cwd=folder, env=ascii_only)
    assert done.returncode == 0, done.stderr
    return folder / name, done


def run_printed(done, label, folder):
    """Runs a command that a run has printed, in another folder."""
    command = next(line.removeprefix(label) for line in done.stdout.splitlines() if line.startswith(label))
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=300)


def test_train_writes_the_documented_files(finished):
    workdir, done = finished
    result = json.loads((workdir / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["steps"] == 19  # 2 * 300 / 32, rounded up
    assert result["epochs"] == 19 * 32 / 300
    assert 0 <= result["test_accuracy"] <= 1 and result["seconds"] > 0 and result["images_per_second"] > 0
    assert [record["step"] for record in records(workdir, "train")] == [4, 8, 12, 16, 19]
    assert [record["step"] for record in records(workdir, "validation")] == [10, 19]
    assert [record["step"] for record in records(workdir, "test")] == [result["best_step"]]
    best = max(records(workdir, "validation"), key=lambda record: record["accuracy"])
    assert result["best_step"] == best["step"] and result["best_validation_accuracy"] == best["accuracy"]
    assert (workdir / "checkpoints" / "latest").read_text().strip() == "step-00000019"
    for folder in (workdir / "checkpoints").glob("step-*"):
        assert verify(folder).step == int(folder.name[-8:])
    assert weights_of(workdir)["model/conv1/kernel"].shape == (5, 5, 3, 24)
    assert json.loads((workdir / "config.json").read_text())["model_options"] == "dense_units=32"
    assert len((workdir / "timing.jsonl").read_text().splitlines()) == 5


def test_train_prints_the_results_and_the_next_commands(finished):
    workdir, done = finished
    assert "conv1" in done.stdout and "1,824" in done.stdout  # the parameter table
    assert done.stdout.count("epoch ") == 2
    escaped = os.fsencode(workdir).decode("ascii", "surrogateescape").encode("ascii", "backslashreplace").decode()
    assert f"run              {escaped}" in done.stdout
    assert f"{sys.executable} -m tensorboard.main" in done.stdout
    assert "\r" not in done.stderr and "Traceback" not in done.stderr


def test_tensorboard_contains_each_step_once(finished):
    workdir, _ = finished
    expected_tags = {"train": {"loss", "accuracy", "learning_rate", "images_per_second"}, "validation": {"loss", "accuracy"}}
    for kind, tags in expected_tags.items():
        scalars = {}
        for path in (workdir / "tensorboard" / kind).iterdir():
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    scalars.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
        assert tags <= set(scalars)
        expected = [(record["step"], pytest.approx(record["loss"], rel=1e-6)) for record in records(workdir, kind)]
        assert scalars["loss"] == expected


def test_a_finished_run_started_again_changes_nothing(finished, main, data_dir):
    workdir, _ = finished
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in workdir.rglob("*") if path.is_file()}
    again = main(f"--workdir={workdir}", f"--data_dir={data_dir}", "--epochs=2", *SMALL)
    assert again.returncode == 0 and "finished at step 19" in again.stdout
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in workdir.rglob("*") if path.is_file()}


def test_evaluate_agrees_with_training_and_keras(finished, tmp_path, data_dir):
    """evaluation.json is compared with the run's own test record and with NumPy on the checkpoint's logits."""
    import alexnet
    from input_pipeline import sources
    from input_pipeline.config import DataConfig
    from input_pipeline.splits import resident

    workdir, _ = finished
    done = run_printed(finished[1], "next", tmp_path)  # --mode=evaluate; the rest comes from the run's config.json
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "evaluation.json").read_text())
    test_record = records(workdir, "test")[0]
    assert report["examples"] == 70 and report["accuracy"] == test_record["accuracy"] and report["loss"] == test_record["loss"]

    source = sources.open_source(DataConfig(data_dir=str(data_dir)))
    split = resident.load(source, "test[:70]", 70, (32, 32))
    tensors = weights_of(workdir, "best")
    model = alexnet.build("alexnet_mini", 10, (32, 32, 3), options="dense_units=32")
    model.set_weights([tensors[f"model/{weight.path}"] for weight in model.weights])
    logits = model.predict((split.images - tensors["pixels/offset"]) * tensors["pixels/scale"], verbose=0).astype(np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert report["accuracy"] == np.mean(logits.argmax(axis=1) == split.labels)
    top_5 = np.argsort(-logits, axis=1)[:, :5]
    assert report["top_5_accuracy"] == np.mean([label in row for label, row in zip(split.labels, top_5, strict=True)])
    np.testing.assert_allclose(report["loss"], -np.log(probabilities[np.arange(70), split.labels]).mean(), rtol=1e-4)
    confusion = np.array(report["confusion_matrix"])
    assert confusion.sum() == 70 and confusion.trace() / 70 == report["accuracy"]
    assert (confusion.sum(axis=1) == np.bincount(split.labels, minlength=10)).all()
    assert set(report["accuracy_per_class"]) == set(source.class_names)
    assert (workdir / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    for name in source.class_names:
        assert name in done.stdout


def test_run_flags_repeat_the_run(finished, main, tmp_path):
    workdir, _ = finished
    again = main(f"--flagfile={workdir / 'run.flags'}", f"--workdir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert records(workdir) == records(tmp_path / "again")
    assert_same_tensors(weights_of(workdir), weights_of(tmp_path / "again"))


@pytest.mark.slow
def test_a_run_in_two_parts_equals_a_run_in_one(finished, main, tmp_path, data_dir):
    """Stopped by --max_steps in the middle of a record and resumed from the checkpoint: the same records and weights."""
    workdir, _ = finished
    parts = tmp_path / "parts"
    common = (f"--workdir={parts}", f"--data_dir={data_dir}", "--epochs=2", "--checkpoint_every_steps=6", *SMALL)
    assert main(*common, "--max_steps=12").returncode == 0
    (parts / "checkpoints" / "step-00000012" / "manifest.json").write_text("{")  # so it resumes from step 10
    resumed = main(*common)
    assert resumed.returncode == 0, resumed.stderr
    assert "damaged checkpoint passed over" in resumed.stdout and "resuming at step 10" in resumed.stdout
    whole = [record for record in records(workdir) if record["kind"] != "test"]
    assert [record for record in records(parts) if record["kind"] != "test"] == whole
    assert_same_tensors(weights_of(workdir), weights_of(parts))


def test_init_from_takes_the_best_weights(finished, main, tmp_path, data_dir):
    workdir, _ = finished
    started = main(
        f"--workdir={tmp_path / 'next'}", f"--data_dir={data_dir}", *SMALL, f"--init_from={workdir}", "--max_steps=1",
        "--learning_rate=1e-30")
    assert started.returncode == 0, started.stderr
    best, now = weights_of(workdir, "best"), weights_of(tmp_path / "next")
    for name in best:
        if name.startswith("model/"):
            np.testing.assert_array_equal(best[name], now[name])


def test_divergence_ends_with_code_4_and_finite_weights(main, tmp_path, data_dir):
    done = main(f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", *SMALL, "--learning_rate=1e30")
    assert done.returncode == 4
    assert "not finite at step" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"
    assert all(np.isfinite(tensor).all() for tensor in weights_of(tmp_path / "run").values())


@pytest.mark.slow
def test_early_stopping_keeps_the_best(main, tmp_path, data_dir):
    """With a learning rate too small to change the accuracy, the first evaluation stays the best and patience runs out."""
    workdir = tmp_path / "run"
    done = main(
        f"--workdir={workdir}", f"--data_dir={data_dir}", *SMALL, "--epochs=9", "--learning_rate=1e-12", "--keep_checkpoints=1",
        "--early_stopping_patience=2", "--early_stopping_monitor=validation_accuracy")
    assert done.returncode == 0, done.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["best_step"], result["steps"]) == ("early_stopped", 10, 29)
    assert sorted(path.name for path in (workdir / "checkpoints").glob("step-*")) == ["step-00000010", "step-00000029"]
    assert (workdir / "checkpoints" / "best").read_text().strip() == "step-00000010"
    assert (workdir / "checkpoints" / "latest").read_text().strip() == "step-00000029"
    assert main(f"--flagfile={workdir / 'run.flags'}", f"--workdir={workdir}").returncode == 0
    assert json.loads((workdir / "result.json").read_text()) == result
