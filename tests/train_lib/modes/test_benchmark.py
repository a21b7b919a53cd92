"""The benchmark: through main.py with very short rounds, and its arithmetic by hand. No test checks the speed."""

import io
import json
import os
import statistics
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

from input_pipeline.common.errors import SettingError
from input_pipeline.splits.resident import ResidentSplit
from train_lib import config as config_lib
from train_lib import steps
from train_lib.cli import environment
from train_lib.distribution.strategy import distribute
from train_lib.modes.benchmark import fit as benchmark_fit
from train_lib.modes.benchmark import measure as benchmark_lib
from train_lib.modes.benchmark import rows
from train_lib.modes.benchmark import verdict as report
from train_lib.modes.benchmark.measure import Bench
from train_lib.modes.benchmark.rows import RowFailed, StepRow
from train_lib.setup import Run
from train_lib.state import create_state, pixel_scaling

# main.py itself, with very short rounds.
MAIN = """
import runpy, sys
from train_lib.modes.benchmark import verdict as benchmark_report
benchmark_report.SECONDS_PER_ROW = 0.02
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path({main!r}, run_name="__main__")
"""
SMALL = (
    "--mode=benchmark", "--model=alexnet_mini", "--model_options=width=0.1,dense_units=16", "--train_split=train[:200]",
    "--global_batch_size=16", "--steps_per_loop=2", "--log_every_steps=4",
)


def run_benchmark(*arguments, cwd=None):
    command = [sys.executable, "-c", MAIN.format(main=str(ROOT / "main.py")), *SMALL, *map(str, arguments)]
    environ = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environ)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, data_dir):
    """All rows, the child process included: (benchmark.json, CompletedProcess, workdir)."""
    workdir = tmp_path_factory.mktemp("benchmark") / "run"
    done = run_benchmark(f"--workdir={workdir}", f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "benchmark.json").read_text()), done, workdir


def test_every_row_is_measured_in_every_round(measured):
    """If a row were dropped silently, or measured over other steps than the rest, its ratios would mean nothing."""
    result, done, _ = measured
    useless = {"one_device", *rows.OF_A_STREAM}
    assert [row["name"] for row in result["rows"]] == [name for name in config_lib.BENCHMARK_ROWS if name not in useless]
    assert result["notes"] == []
    for row in result["rows"]:
        speeds = row["images_per_second_by_round"]
        assert 3 <= len(speeds) == row["rounds"] <= 5
        assert (row["low"], row["high"]) == (min(speeds), max(speeds)) and row["low"] > 0
        assert row["images_per_second"] == statistics.median(speeds)
        assert row["name"] in done.stdout
    assert result["environment"]["steps_per_round"] % 2 == 0 and result["environment"]["steps_per_round"] > 0


def test_ratios_are_medians_of_the_rounds_own_ratios(measured):
    """A ratio of medians would compare a quiet round of one row with a noisy round of another."""
    result, _, _ = measured
    speeds = {row["name"]: np.array(row["images_per_second_by_round"]) for row in result["rows"]}
    assert list(result["ratios"]) == [
        "input/canonical", "input/tutorial", "input/numpy_gather", "input/step", "loop/step", "loop/loop_constant",
        "loop/model_fit", "loop/model_fit_default"]
    for name, ratio in result["ratios"].items():
        above, below = name.split("/")
        assert ratio == pytest.approx(np.median(speeds[above] / speeds[below]))


def test_the_loop_is_traced_once_and_its_bookkeeping_is_accounted_for(measured):
    """A loop that compiles again for every shorter call is slow in a way that no average shows."""
    result, _, _ = measured
    assert result["traces"] == 1
    book = result["bookkeeping"]
    # 200 images in batches of 16: a checkpoint every 12.5 steps, rounded up.
    assert book["parts"]["checkpoint"]["every_steps"] == pytest.approx(12.5, rel=0.01)
    assert [book["parts"][part]["every_steps"] for part in ("record", "display")] == [4, 2]
    for part in book["parts"].values():
        assert 0 < part["share"] == pytest.approx(part["seconds"] / part["every_steps"] / book["seconds_per_step"])
    assert book["share"] == pytest.approx(sum(part["share"] for part in book["parts"].values()))


def test_files_and_output(measured):
    """The loop trains in a temporary folder. Its checkpoints must not stay where those of a run would be."""
    result, done, workdir = measured
    assert sorted(path.name for path in workdir.iterdir()) == ["benchmark.json", "benchmark.png"]
    assert result["verdict"] in ("input-bound", "compute-bound", "loop-bound") and result["verdict"] in done.stdout
    assert "--" in result["advice"] and len(result["model_fit_default_stall_seconds"]) == result["rows"][0]["rounds"]
    assert "Traceback" not in done.stderr and "round 1/" in done.stdout
    expected = {
        "tensorflow": tf.__version__, "devices": "CPU:0", "precision": "float32", "xla": "auto", "model": "alexnet_mini",
        "global_batch_size": 16, "steps_per_loop": 2,
    }
    assert expected.items() <= result["environment"].items()
    assert {"keras", "python", "cpu", "cores", "onednn", "parameters"} <= result["environment"].keys()


@pytest.mark.slow
def test_several_devices_and_a_folder_of_its_own(tmp_path, data_dir):
    """Without --workdir, the folder must not look like that of a run. MirroredStrategy has one constant batch per replica."""
    done = run_benchmark("--virtual_devices=2", "--benchmark_rows=loop, step,one_device", f"--data_dir={data_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "runs").glob("benchmark-shapes-alexnet_mini-*/benchmark.json")
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["rows"]] == ["step", "one_device", "loop"]
    assert list(result["ratios"]) == ["step/one_device", "loop/step"]
    assert result["traces"] == 1 and result["environment"]["replicas"] == 2
    assert result["verdict"] in ("compute-bound", "loop-bound")


def test_rows_by_name():
    assert config_lib.parse_rows("") == tuple(config_lib.BENCHMARK_ROWS) == tuple(benchmark_lib.CLASSES)
    assert config_lib.parse_rows("loop, step") == ("step", "loop")
    assert all(set(ratio) <= set(config_lib.BENCHMARK_ROWS) for ratio in report.RATIOS)


def config_of(**values):
    return config_lib.from_values({"model": "alexnet_mini", **values})


def split_of(num_examples, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num_examples, 32, 32, 3), np.uint8)
    return ResidentSplit(images, generator.integers(0, 10, num_examples, np.int32))


def bench_of(**values):
    """A Bench on random images, without data set and folder: enough for rows that do not use the Trainer."""
    config, split = config_of(model_options="width=0.1,dense_units=16", global_batch_size=16, **values), split_of(100)
    state = types.SimpleNamespace(pixels=pixel_scaling("standardized", split))
    source = types.SimpleNamespace(class_names=tuple("abcdefghij"))
    return Bench(Run(config, None, tf.distribute.get_strategy(), source, split, None, state, plan=None, store=None))


def test_a_skipped_step_is_not_measured():
    """A skipped update takes less time than a real one."""
    row = StepRow(bench_of(precision="float16"))  # skips its first steps until the loss scale is low enough
    assert row.warm_up() > 0 and row.measure(2) > 0 and row._finite
    with pytest.raises(SettingError, match=r"--learning_rate=1e\+30"):
        StepRow(bench_of(learning_rate=1e30)).warm_up()


@pytest.mark.parametrize(
    "values", [{"momentum": 0.9, "label_smoothing": 0.1, "clip_global_norm": 0.5},
               pytest.param({"optimizer": "adam", "learning_rate": 0.001}, marks=pytest.mark.slow)])
def test_model_fit_trains_what_the_loop_trains(values):
    """With other pixels, batches or settings, model.fit would not be a fair comparison."""
    common = {"model": "alexnet_mini", "model_options": "width=0.5,dense_units=16", "global_batch_size": 16, "steps_per_loop": 4}
    config = config_lib.from_values({"augment": "crop,flip", **common, **values})
    split, strategy = split_of(100), tf.distribute.get_strategy()
    pixels = pixel_scaling("standardized", split)
    state = create_state(config, strategy, 10, split.image_shape, pixels)
    iterator = distribute(strategy, lambda shard: split.training_batches(0, 0, 16, config.data.augmentations, shard))
    for step in range(4):
        steps.train_step(strategy, state, config, next(iterator), tf.constant(step, tf.int64), config.optimization.learning_rate)
    model = benchmark_fit.make_fit_model(config, strategy, 10, split.image_shape, pixels, steps_per_execution=4)
    data = split.training_batches(0, 0, 16, config.data.augmentations).map(lambda batch: (batch["image"], batch["label"]))
    model.fit(data, epochs=1, steps_per_epoch=4, verbose=0, shuffle=False)
    for ours, theirs in zip(state.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)
    assert int(model.optimizer.iterations) == 4


def test_an_unknown_optimizer_is_not_compared_with_another_one():
    """A rule that somebody adds to `optimizers.py` must not be compared with AdamW silently."""
    with pytest.raises(RowFailed, match="--optimizer=no_such_rule"):
        benchmark_fit.make_fit_optimizer(types.SimpleNamespace(optimizer="no_such_rule"))
    [choices] = [field.metadata["choices"] for _, field in config_lib.leaves() if field.name == "optimizer"]
    assert {"sgd", "adam", "adamw"} <= set(benchmark_fit.KERAS_OPTIMIZERS) <= set(choices)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_compared_optimizer_has_the_same_settings(name):
    """Adam with --weight_decay stays Adam; Keras decays its weights too."""
    config = config_of(optimizer=name, weight_decay=0.01, clip_global_norm=0.5, ema_decay=0.9, learning_rate=0.25)
    found = benchmark_fit.make_fit_optimizer(config.optimization)
    assert type(found) is {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name]
    assert (found.weight_decay, found.global_clipnorm, found.use_ema, found.ema_momentum) == (0.01, 0.5, True, 0.9)
    assert float(found.learning_rate) == 0.25
    benchmark_fit.make_fit_optimizer(config_of(optimizer=name, weight_decay=0.0).optimization)


# The child process.


@pytest.mark.parametrize(
    ("module", "words"),
    [("train_lib.cli.environment", ["code 0", "it printed no error"]), ("train_lib.no_such", ["code 1", "no_such"])])
def test_a_child_that_ends_is_one_clear_line(monkeypatch, module, words):
    """Otherwise the parent would wait forever for an answer."""
    monkeypatch.setattr(benchmark_fit, "CHILD", module)
    row = benchmark_fit.DefaultFitRow(bench_of())
    try:
        with pytest.raises(RowFailed) as caught:
            row.warm_up()
    finally:
        row.close()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_child_that_is_killed_is_one_clear_line():
    """The kernel does this when memory runs out. What the child printed last is then not the reason."""
    row = benchmark_fit.DefaultFitRow(bench_of())
    row._child.kill()
    try:
        with pytest.raises(RowFailed, match="its process ended by signal 9"):
            row.measure(2)
    finally:
        row.close()


def test_the_child_answers_an_error_and_continues():
    """The user must see an error of the child as a line, not as a broken pipe."""
    answers = io.StringIO()
    benchmark_fit.serve(['{"epochs": -1}\n', '{"nonsense": 1}\n'], answers)
    first, second = (json.loads(line)["error"] for line in answers.getvalue().splitlines())
    assert "--epochs=-1" in first and "--nonsense=1" in second


def test_the_child_gets_the_users_environment(monkeypatch):
    """The child must run with TensorFlow's defaults, except for what the user has set."""
    monkeypatch.setattr(environment, "_set_here", set())
    monkeypatch.setenv("GIVEN", "mine")
    monkeypatch.delenv("NOT_GIVEN", raising=False)
    for name in ("GIVEN", "NOT_GIVEN"):
        environment.set_default(name, "ours")
    assert (os.environ["GIVEN"], os.environ["NOT_GIVEN"]) == ("mine", "ours")
    assert environment.of_the_user()["GIVEN"] == "mine" and "NOT_GIVEN" not in environment.of_the_user()
    monkeypatch.delenv("NOT_GIVEN")


# Figures by hand.


def test_the_length_of_a_round():
    """All rows take the same steps, in a whole number of loop calls, in about two minutes for a network of any speed."""
    assert report.choose_length([0.01, 0.01, 0.03], 20) == (160, 5)  # 2.5 s / (0.05 s / 3) = 150 steps
    assert report.choose_length([0.3] * 4, 20) == (20, 4)  # 24 s a round
    assert report.choose_length([10.0] * 4, 20) == (20, 3)
    assert report.choose_length([1e-5], 1)[0] == 250_000


def book_of(**shares):
    return {"parts": {part: {"share": shares.get(part, 0.0)} for part in ("checkpoint", "record", "display")}}


@pytest.mark.parametrize(
    ("speeds", "book", "values", "verdict", "words"),
    [
        ((1000, 1000, 950), book_of(), {"augment": "crop"}, "input-bound", ["--augment=none", "1.00"]),
        ((1099, 1000, 950), book_of(), {"input": "stream"}, "input-bound", ["--input=memory"]),
        ((9000, 1000, 950), book_of(), {}, "compute-bound", ["0.95", "width=0.5"]),
        ((9000, 1000, 950), book_of(), {"model": "VGG16"}, "compute-bound", ["--model=alexnet_mini"]),
        ((9000, 1000, 800), book_of(), {}, "loop-bound", ["0.80", "--steps_per_loop=100"]),
        ((9000, 1000, 800), book_of(), {"log_every_steps": 10}, "loop-bound", ["--log_every_steps=100 --steps_per_loop=100"]),
        ((9000, 1000, 800), book_of(checkpoint=0.2), {}, "loop-bound", ["checkpoint_every_steps"]),
        ((9000, 1000, 800), book_of(record=0.2), {}, "loop-bound", ["--log_every_steps=100"]),
        ((None, 1000, 800), book_of(), {}, "loop-bound", []),
        ((9000, None, 800), book_of(), {}, None, ["step", "loop"]),
    ],
)
def test_the_verdict_and_what_to_try(speeds, book, values, verdict, words):
    """A wrong verdict would send the user to the wrong flag."""
    rounds = {name: [speed, speed] for name, speed in zip(("input", "step", "loop"), speeds, strict=True) if speed}
    actual, advice = report.decide(rounds, book, config_of(**values), on_gpu=False)
    assert actual == verdict and all(word in advice for word in words), advice


def test_a_gpu_gets_other_advice():
    advice = report.decide({"step": [1000.0], "loop": [990.0]}, book_of(), config_of(), on_gpu=True)[1]
    assert "--precision=bfloat16" in advice
