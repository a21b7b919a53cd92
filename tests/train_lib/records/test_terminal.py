"""What a run prints and records: lines, bars, TensorBoard, seconds. Every clock is passed in."""

import json
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from train_lib.distribution.workers import OneWorker
from train_lib.records.run_log import RunLog, Stopwatch, totals_of
from train_lib.records.terminal import SECONDS_BETWEEN_LINES, ProgressBar, evaluation_line, number, parameter_table, percent, say
from train_lib.records.workdir import Workdir

VALUES = {"loss": 1.23456, "accuracy": 0.5, "learning_rate": 0.01}


class Clock:
    """A clock that only moves when a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


# Lines and bars.


def test_numbers_in_words():
    assert (number(1.23456), number(None), number(0)) == ("1.2346", "-", "0.0000")
    assert (percent(0.98765), percent(None), percent(0), percent(1)) == ("98.77 %", "-", "0.00 %", "100.00 %")


def test_the_line_of_an_evaluation():
    train, validation = {"loss": 0.5, "accuracy": 0.75}, {"loss": 0.25, "accuracy": 0.875}
    start = "epoch 2/24, step 250"
    assert evaluation_line(2.0, 24.0, 250, None, None, True) == start
    assert evaluation_line(2.0, 24.0, 250, train, None, True) == f"{start} | train loss 0.5000, accuracy 75.00 %"
    whole = f"{start} | train loss 0.5000, accuracy 75.00 % | validation loss 0.2500, accuracy 87.50 %"
    assert evaluation_line(2.0, 24.0, 250, train, validation, False) == whole
    assert evaluation_line(2.0, 24.0, 250, train, validation, True) == f"{whole} (best)"
    skipped = {"loss": None, "accuracy": None, "skipped_steps": 3}
    assert evaluation_line(0.5, 24.0, 1, skipped, None, False) == "epoch 0.5/24, step 1 | train loss -, accuracy -"


def run_at(step, values=VALUES):
    """The part of a Run that a progress bar looks at."""
    state = SimpleNamespace(step=step, record_values=lambda: values)
    return SimpleNamespace(state=state, plan=SimpleNamespace(last_step=100), workers=OneWorker())


def report(images_per_second):
    return SimpleNamespace(learning_rates=[0.01], images_per_second=images_per_second)


def test_a_file_gets_a_line_every_15_seconds_and_no_control_characters(capsys):
    """The log of a night must be readable: without a bar, without carriage returns, without a line per step."""
    clock = Clock()
    terminal = ProgressBar(run_at(0), clock, is_terminal=False)
    shown = []
    for step in range(1, 61):
        clock.now += 1.0
        terminal.after_steps(run_at(step), report(1234.5))
        if capsys.readouterr().out:
            shown.append(step)
    assert shown == [15, 30, 45, 60] and SECONDS_BETWEEN_LINES == 15.0
    clock.now += 15
    terminal.after_steps(run_at(75), report(1234.5))
    say("something happened")
    terminal.on_stop(None)
    done = capsys.readouterr()
    assert done.out == "step 75/100: loss 1.2346, accuracy 50.00 %, lr 0.01, 1,234 images/s\nsomething happened\n"
    assert done.err == ""


def test_a_terminal_gets_a_bar_with_the_same_figures(capsys):
    clock = Clock()
    terminal = ProgressBar(run_at(40), clock, is_terminal=True)
    terminal.after_steps(run_at(60, {"loss": None, "accuracy": None}), report(10.0))
    terminal._bar.refresh()
    say("something happened")
    terminal.after_steps(run_at(100), report(10.0))
    terminal.on_stop(None)
    done = capsys.readouterr()
    assert done.out == "something happened\n"  # a pipe gets whole lines, not pieces of a bar
    assert "60/100" in done.err and "loss -, accuracy -" in done.err and "100/100" in done.err


def test_by_default_stderr_decides_about_the_bar(capsys):
    terminal = ProgressBar(run_at(0), Clock())  # under pytest stderr is a file
    say("plain")
    terminal.on_stop(None)
    assert capsys.readouterr() == ("plain\n", "")


def test_the_parameter_table():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv1"),
            keras.layers.ReLU(name="relu1"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(1000, name="dense1"),
        ],
        name="network",
    )
    assert parameter_table(model).splitlines() == [
        "layer    output     parameters",
        "conv1    6 x 6 x 4         112",  # 3 * 3 * 3 * 4 + 4
        "flatten  144",
        "dense1   1000          145,000",  # 144 * 1000 + 1000
        "network                145,112",
    ]


# Seconds.


def test_a_stopwatch_leaves_the_first_call_out_of_the_throughput():
    """The first call compiles, so its images/s say nothing about the run."""
    clock = Clock()
    watch = Stopwatch(clock)
    watch.add_training(8.0, 64, 6.0)
    assert watch.images_per_second == 8.0  # there is nothing else to show yet
    watch.add_training(2.0, 640, 0.5)
    watch.add_training(3.0, 960, 0.75)
    clock.now += 15.0
    assert watch.images_per_second == 320.0
    lap = {"seconds": 15.0, "train_seconds": 5.0, "images": 1600, "images_per_second": 320.0, "data_wait_share": 0.25}
    assert watch.lap() == lap


def test_each_lap_starts_at_zero():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 4.0
    watch.add_training(4.0, 40)
    untrained = {"train_seconds": 0.0, "images": 0, "data_wait_share": None}
    assert watch.lap() == {"seconds": 4.0, "images_per_second": 10.0, **untrained}
    assert watch.images_per_second == 10.0  # until there is a newer one
    clock.now += 2.0
    watch.add_training(2.0, 100)
    assert watch.lap() == {"seconds": 2.0, "train_seconds": 2.0, "images": 100, "images_per_second": 50.0, "data_wait_share": 0.0}
    clock.now += 1.0
    assert watch.lap() == {"seconds": 1.0, "images_per_second": 50.0, **untrained}


def test_totals_of_a_run_are_weighted_by_time():
    records = [
        {"seconds": 10.0, "train_seconds": 1.0, "images": 100, "images_per_second": 100.0},
        {"seconds": 5.0, "train_seconds": 3.0, "images": 900, "images_per_second": 300.0},
    ]
    assert totals_of(records) == {"seconds": 15.0, "images_per_second": 250.0}
    only_first_call = [{"seconds": 7.0, "train_seconds": 0.0, "images": 0, "images_per_second": 12.0}]
    assert totals_of(only_first_call) == {"seconds": 7.0, "images_per_second": 12.0}
    assert totals_of([]) == {"seconds": 0, "images_per_second": None}


# Records.

SECONDS = {"seconds": 2.0, "train_seconds": 1.0, "images": 64, "images_per_second": 64.0}


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


def write_run(workdir, steps=(4, 8, 12), resumed_at=0):
    log = RunLog(workdir, resumed_at)
    for step in steps:
        log.add_metrics("train", step, step / 10, {"loss": 1 / step, "accuracy": 0.5, "learning_rate": 0.01})
        log.add_metrics("validation", step, step / 10, {"loss": 2 / step, "accuracy": 0.25, "top_5_accuracy": 0.75})
        log.add_timing(step, SECONDS)
    log.flush()
    return log


def lines(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir.path / name).read_text().splitlines()]


def scalars(workdir, kind):
    """{tag: [(step, value)]} of all event files of a kind, as TensorBoard reads them."""
    found = {}
    for path in (workdir.path / "tensorboard" / kind).iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return found


def test_records_of_a_run(workdir):
    log = write_run(workdir)
    log.add_metrics("test", 12, 1.2, {"loss": 0.5, "accuracy": 0.5})
    log.flush()
    assert lines(workdir)[0] == {"kind": "train", "step": 4, "epoch": 0.4, "loss": 0.25, "accuracy": 0.5, "learning_rate": 0.01}
    assert [record["kind"] for record in lines(workdir)] == ["train", "validation"] * 3 + ["test"]
    assert lines(workdir, "timing.jsonl") == [{"step": step, **SECONDS} for step in (4, 8, 12)]
    assert not any("seconds" in name or "images" in name for record in lines(workdir) for name in record)
    train, validation = scalars(workdir, "train"), scalars(workdir, "validation")
    assert train["loss"] == [(step, pytest.approx(1 / step, rel=1e-6)) for step in (4, 8, 12)]
    assert train["images_per_second"] == [(4, 64.0), (8, 64.0), (12, 64.0)]
    assert validation["top_5_accuracy"] == [(4, 0.75), (8, 0.75), (12, 0.75)]


@pytest.mark.parametrize("resumed_at", [0, 4, 5, 8, 12])
def test_a_resumed_run_has_each_step_once(workdir, resumed_at):
    """Killed after step 12 and resumed at an earlier checkpoint: the steps are repeated, but their records are there once."""
    write_run(workdir).add_metrics("test", 12, 1.2, {"loss": 0.5, "accuracy": 0.5})
    rest = [step for step in (4, 8, 12) if step > resumed_at]
    write_run(workdir, rest, resumed_at)
    for kind in ("train", "validation"):
        assert [record["step"] for record in lines(workdir) if record["kind"] == kind] == [4, 8, 12]
        assert [step for step, _ in scalars(workdir, kind)["loss"]] == [4, 8, 12]
    assert [record["step"] for record in lines(workdir, "timing.jsonl")] == [4, 8, 12]
    assert "test" not in [record["kind"] for record in lines(workdir)]  # the run went on after it


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_a_resumed_run_cleans_a_half_written_line(workdir, name):
    write_run(workdir, (4, 8))
    with open(workdir.path / name, "a") as file:
        file.write('{"kind": "tr')
    write_run(workdir, (12,), resumed_at=8)
    assert [record["step"] for record in lines(workdir, "timing.jsonl")] == [4, 8, 12]
    assert [record["step"] for record in lines(workdir)] == [4, 4, 8, 8, 12, 12]


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("garbage", ["\x00\x00", "no record", '{"step": 5}', '{"kind": "train"}', "[1, 2]"])
def test_a_resumed_run_refuses_garbage_in_one_line(workdir, name, garbage):
    write_run(workdir, (4, 8))
    path = workdir.path / name
    path.write_text(f"{garbage}\n{path.read_text()}")
    with pytest.raises(UnusableError, match=f"{name}: line 1 is not a record") as error:
        RunLog(workdir, 8)
    assert "\n" not in str(error.value)


def test_values_that_are_missing_or_not_finite(workdir):
    """A record in which every step was skipped has no loss. It must stop neither the run nor a later resume."""
    log = RunLog(workdir, 0)
    log.add_metrics("train", 1, 0.1, {"loss": None, "accuracy": None, "skipped_steps": 1})
    log.add_metrics("validation", 1, 0.1, {"loss": float("nan"), "accuracy": 0.0})
    log.flush()
    RunLog(workdir, 1).flush()
    assert [record["loss"] for record in lines(workdir)] == [None, None]
    assert scalars(workdir, "validation")["accuracy"] == [(1, 0.0)]
