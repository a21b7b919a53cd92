"""The mode `compare`: its figures against SciPy and by hand, its groups and labels, and what it makes of damaged folders."""

import csv
import json
import math
import os
import time

import numpy as np
import pytest
from scipy import stats

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.modes.compare import page, rows, runs
from train_lib.records.workdir import Workdir

from .test_report import HOSTILE, assert_self_contained, width_in_a_browser

COMPLETED = {"status": "completed", "steps": 20, "epochs": 2.0, "best_step": 20, "best_validation_accuracy": 0.75,
             "test_accuracy": 0.5, "seconds": 100.0, "images_per_second": 1000.0}


def write_run(folder, result=None, validation=(0.5, 0.75), about=None, data=None, **settings):
    """Writes by hand what a run leaves. `result` is merged into COMPLETED; {} stands for a run without a result."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_lib.to_values(config_lib.from_values(settings)) | {"workdir": None}))
    records = [{"kind": "train", "step": step, "epoch": step / 10, "loss": 3 - step / 10, "accuracy": 0.1} for step in (5, 15)]
    records += [{"kind": "validation", "step": 10 * n, "epoch": float(n), "loss": 1.0, "accuracy": accuracy}
                for n, accuracy in enumerate(validation, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if result != {}:
        (folder / "result.json").write_text(json.dumps(COMPLETED | (result or {})))
    (folder / "environment.json").write_text(json.dumps({"image_shape": [32, 32, 3]} | (about or {})))
    if data:
        (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000020" / "progress.json").write_text(json.dumps({"data": data}))
    return folder


def write_seeds(folder, accuracies, **settings):
    for seed, accuracy in enumerate(accuracies):
        result = {"test_accuracy": accuracy, "best_validation_accuracy": accuracy + 0.25}
        write_run(folder / str(seed), result, seed=seed, **settings)


def read_rows(*folders):
    """{numbers of the folders' names: Row} and the Groups of all runs in these folders."""
    groups = rows.compare([runs.read_run(path) for folder in folders for path in runs.find_folders(str(folder))[0]])
    return [row for group in groups for row in group.rows], groups


def compared(folder, inputs, capsys=None):
    """The exit code, stdout, stderr, the lines of comparison.csv as dicts, and comparison.html as text."""
    config = config_lib.from_values({"mode": "compare", "inputs": str(inputs), "workdir": str(folder)})
    code = page.make_comparison(config, Workdir(folder))
    said = capsys.readouterr() if capsys else ("", "")
    lines = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    return code, *said, lines, (folder / "comparison.html").read_text()


# Figures.


@pytest.mark.parametrize("values", [[0.2, 0.23, 0.19], [1.0, 3.0], list(np.linspace(-1, 2, 40) ** 3)])
def test_the_interval_of_a_mean_is_that_of_scipy(values):
    found = rows.summarize(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.n, found.mean) == (len(values), pytest.approx(np.mean(values)))
    assert found.sd == pytest.approx(np.std(values, ddof=1)) and (found.low, found.high) == pytest.approx(expected)


def test_the_interval_of_two_values_by_hand():
    """Student's t with one degree of freedom is 12.706: mean 2, standard deviation the root of 2, divided by the root of 2."""
    found = rows.summarize([1.0, 3.0])
    assert (found.sd, found.low, found.high) == pytest.approx((math.sqrt(2), 2 - 12.7062, 2 + 12.7062), rel=1e-5)


def test_one_value_claims_no_spread():
    assert rows.summarize([0.5]) == rows.Summary(1, 0.5, None, None, None) and rows.summarize([]) is None


def test_runs_that_differ_by_their_seed_are_one_row(tmp_path, capsys):
    write_seeds(tmp_path / "slow", [0.10, 0.14, 0.18], learning_rate=0.02)
    write_seeds(tmp_path / "fast", [0.20, 0.22, 0.30], learning_rate=0.04)
    code, out, err, lines, text = compared(tmp_path / "out", f"{tmp_path}/slow,{tmp_path}/fast", capsys)
    assert (code, err) == (0, "") and [line["setting_learning_rate"] for line in lines] == ["0.04", "0.02"]
    assert {name for name in lines[0] if name.startswith("setting_")} == {"setting_learning_rate"}  # nothing else differs
    best, other = lines
    assert (best["n"], best["seeds"], best["runs"]) == ("3", "0 1 2", "3")
    low, high = stats.t.interval(0.95, 2, 0.24, stats.sem([0.20, 0.22, 0.30]))
    for name, expected in {"mean": 0.24, "sd": np.std([0.20, 0.22, 0.30], ddof=1), "low": low, "high": high}.items():
        assert float(best[f"test_accuracy_{name}"]) == pytest.approx(expected)
    paired = stats.ttest_rel([0.10, 0.14, 0.18], [0.20, 0.22, 0.30])
    interval = paired.confidence_interval(0.95)
    assert float(other["test_accuracy_minus_best_mean"]) == pytest.approx(-0.10) and best["test_accuracy_minus_best_mean"] == ""
    assert float(other["test_accuracy_minus_best_low"]) == pytest.approx(interval.low)
    assert float(other["test_accuracy_minus_best_high"]) == pytest.approx(interval.high)
    assert float(best["best_validation_accuracy_minus_first_mean"]) == pytest.approx(0.10)
    assert f"24.00 ± 5.29 {100 * low:.2f} to {100 * high:.2f} 49.00 ± 5.29" in " ".join(out.split())
    assert f"-10.00 ({100 * interval.low:+.2f} to {100 * interval.high:+.2f}), lower" in out
    assert_self_contained(text)


def test_an_interval_with_zero_may_be_chance(tmp_path, capsys):
    """The row is the best by validation accuracy, which here is the test accuracy and a constant; the differences are +-."""
    write_seeds(tmp_path / "a", [0.50, 0.52, 0.60], momentum=0.5)
    write_seeds(tmp_path / "b", [0.51, 0.50, 0.55], momentum=0.8)
    _, out, _, lines, text = compared(tmp_path / "out", f"{tmp_path}/*", capsys)
    assert "may be chance" in out and "may be chance" in text and "one in twenty misses" in text
    low, high = (float(lines[1][f"test_accuracy_minus_best_{side}"]) for side in ("low", "high"))
    assert low < 0 < high


def test_a_difference_is_paired_over_the_seeds_that_both_have(tmp_path):
    write_seeds(tmp_path / "a", [0.10, 0.20, 0.40, 0.80], momentum=0.5)
    write_seeds(tmp_path / "b", [0.11, 0.22], momentum=0.8)
    write_seeds(tmp_path / "c", [0.11], momentum=0.7)
    by_momentum = {row.cells["momentum"]: row for row in read_rows(tmp_path / "a", tmp_path / "b", tmp_path / "c")[0]}
    found = rows.difference(by_momentum["0.8"], by_momentum["0.5"], "test_accuracy")
    assert (found.n, found.mean) == (2, pytest.approx(0.015))
    assert rows.difference(by_momentum["0.7"], by_momentum["0.5"], "test_accuracy") is None  # one pair has no spread


def test_one_seed_given_twice_counts_once(tmp_path, capsys):
    """The same folder twice is one run; another run with the same seed is no independent one."""
    for name, accuracy in (("a", 0.2), ("b", 0.4)):
        write_run(tmp_path / name, {"test_accuracy": accuracy}, seed=1)
    write_run(tmp_path / "c", {"test_accuracy": 0.5}, seed=2)
    _, out, _, (line,), _ = compared(tmp_path / "out", f"{tmp_path}/a,{tmp_path}/[abc],{tmp_path}/a/", capsys)
    assert out.startswith("3 runs: 3 completed") and (line["n"], line["runs"]) == ("2", "3")
    assert float(line["test_accuracy_mean"]) == pytest.approx(0.4)


def test_one_run_has_no_spread(tmp_path, capsys):
    write_run(tmp_path / "a")
    code, out, _, (line,), text = compared(tmp_path / "out", tmp_path / "a", capsys)
    assert code == 0 and (line["test_accuracy_mean"], line["test_accuracy_sd"], line["test_accuracy_low"]) == ("0.5", "", "")
    assert "±" not in out and " to " not in out and "There is none" in text


# Columns.


def test_settings_of_the_process_are_no_columns_and_older_runs_have_defaults(tmp_path):
    write_run(tmp_path / "a", seed=0, data_dir="here", preset="cifar10", ema_decay=0.0)
    write_run(tmp_path / "b", seed=1, export_dir="there", checkpoint="latest")
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    del values["ema_decay"], values["label_smoothing"]
    (tmp_path / "b" / "config.json").write_text(json.dumps(values))
    write_run(tmp_path / "c", seed=0, init_from="runs/other")
    found, _ = read_rows(tmp_path)
    assert sorted((row.cells["init_from"], row.seeds) for row in found) == [("-", [0, 1]), ("runs/other", [0])]
    assert {name for row in found for name in row.cells} == {"init_from"}


def test_other_code_is_another_row(tmp_path):
    commit = {"commit": "0123456789abcdef", "modified": False, "version": "0.1.0"}
    for seed, about in enumerate([{}, commit, commit | {"modified": True}]):
        write_run(tmp_path / str(seed), seed=seed, about=about)
    assert {row.cells["code"] for row in read_rows(tmp_path)[0]} == {
        "unknown", "commit 0123456789", "commit 0123456789, modified"}


# Labels.


@pytest.mark.parametrize("other", [
    {"dataset": "cifar10"}, {"test_split": "test[:50%]"}, {"train_split": "train[:50%]"}, {"test_crops": 10},
    {"about": {"image_shape": [64, 64, 3]}}, {"data": {"dataset": "the classes cat, dog", "train_split": "100 examples"}}])
def test_other_data_are_not_compared(tmp_path, capsys, other):
    data = {"dataset": "the classes a, b", "train_split": "100 examples"}
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", seed=seed, data=data)
        write_run(tmp_path / f"b{seed}", {"test_accuracy": 0.75 + seed / 8}, seed=seed, **({"data": data} | other))
    write_run(tmp_path / "begun", {}, seed=2)  # has no checkpoint that would tell its data: it goes by its flags
    _, out, _, lines, text = compared(tmp_path / "out", f"{tmp_path}/*", capsys)
    assert [line["group"] for line in lines] == ["1", "2"] and not any(line["test_accuracy_minus_best_n"] for line in lines)
    assert sum(int(line["runs"]) for line in lines) == 5
    assert out.count("not comparable with the other rows, because the data differ") == 2 and "against row" not in out
    assert "Not comparable with the other rows, because the data differ" in text


def test_unfinished_runs_are_labelled_and_do_not_count(tmp_path, capsys):
    write_seeds(tmp_path / "sweep", [0.5, 0.25])
    for seed, result in enumerate([{}, {}, {"status": "preempted"}, {"status": "diverged", "best_validation_accuracy": None}], 2):
        write_run(tmp_path / "sweep" / str(seed), result, seed=seed)
    (tmp_path / "sweep" / "2" / ".lock").touch()  # a running process renews it
    (tmp_path / "sweep" / "3" / ".lock").touch()
    os.utime(tmp_path / "sweep" / "3" / ".lock", (time.time() - 100,) * 2)
    write_run(tmp_path / "alone", {}, learning_rate=0.5)
    code, out, _, lines, text = compared(tmp_path / "out", f"{tmp_path}/sweep,{tmp_path}/alone", capsys)
    row, alone = lines
    assert code == 0 and (row["n"], float(row["test_accuracy_mean"])) == ("2", 0.375)
    assert row["status"] == "2 completed, 1 running, 1 running or killed, 1 preempted, 1 diverged"
    assert alone["n"] == "0" and not any(alone[f"{name}_mean"] for name in page.FIGURES)
    assert out.count("1 running or killed") == 2 and "75.00 so far" in text
    assert out.splitlines()[-4].split()[1:6] == ["0.5", "0", "-", "-", "-"]


def test_a_column_of_dashes_for_what_no_run_measured(tmp_path, capsys):
    for seed in range(2):
        result = {"test_accuracy": None, "images_per_second": None}
        write_run(tmp_path / str(seed), result, seed=seed, test_split="")
        write_run(tmp_path / f"b{seed}", result | {"best_validation_accuracy": 0.5}, seed=seed, test_split="", epochs=3.0)
    _, out, _, lines, _ = compared(tmp_path / "out", f"{tmp_path}/*", capsys)
    assert lines[0]["test_accuracy_n"] == lines[0]["images_per_second_mean"] == ""
    assert "best validation accuracy, %, against row 1" in out and "-25.00 (-25.00 to -25.00), lower" in out


# Folders that cannot be compared.


DAMAGED = {
    "no json": ("config.json", "{"), "no object": ("result.json", "[1]"), "wrong type": ("result.json", '{"status": []}'),
    "text": ("result.json", '{"status": "completed", "test_accuracy": "x"}'), "not a number": ("result.json", '{"seconds": NaN}'),
    "lists": ("config.json", '{"seed": 0, "learning_rate": [1]}'), "no settings": ("config.json", None),
    "no record": ("metrics.jsonl", "no record\n"), "empty": ("metrics.jsonl", ""), "bytes": ("metrics.jsonl", "\0\n\0"),
    "surrogates": ("config.json", '{"seed": 0, "test_split": "\\ud800"}'),
    "a text": ("metrics.jsonl", '{"kind": "validation", "step": 1, "epoch": 1.0, "accuracy": "x"}\n'),
    "environment": ("environment.json", '{"image_shape": 3, "commit": [], "modified": "\x00"'),
}


def test_damaged_folders_are_named_and_left_out(tmp_path, capsys):
    write_run(tmp_path / "good")
    for name, (file, content) in DAMAGED.items():
        folder = write_run(tmp_path / name)
        (folder / file).unlink() if content is None else (folder / file).write_text(content)
    (tmp_path / "a fifo").mkdir()
    os.mkfifo(tmp_path / "a fifo" / "metrics.jsonl")
    (tmp_path / "no run").mkdir()
    code, out, err, lines, text = compared(tmp_path / "out", f"{tmp_path}/*,{tmp_path}/absent,{tmp_path}/none-*", capsys)
    assert code == 3 and len(lines) == 1 and out.startswith("1 run: 1 completed")
    named = err.splitlines()
    assert len(named) == len(DAMAGED) + 4 and all(line.endswith("left out") for line in named)
    for name in (*DAMAGED, "a fifo", "no run", "absent", "none-*"):
        assert sum(f"{tmp_path}/{name}" in line for line in named) == 1, name
    assert text.count('<li class="label">') == len(named)


def test_nothing_left_writes_nothing(tmp_path):
    (tmp_path / "no run").mkdir()
    with pytest.raises(UnusableError, match="nothing is left to compare; .*no match holds a run") as error:
        compared(tmp_path / "out", f"{tmp_path}/*,{tmp_path}/absent")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_globs_find_runs_at_any_depth_and_pass_over_what_is_between(tmp_path, capsys):
    write_seeds(tmp_path / "runs" / "deep" / "sweep", [0.1, 0.2], data={"dataset": "x"})
    compared(tmp_path / "runs" / "compared", tmp_path / "runs" / "deep" / "sweep")
    code, out, err, _, _ = compared(tmp_path / "runs" / "compared", f"{tmp_path}/runs/**", capsys)
    assert code == 0 and not err and "2 runs: 2 completed" in out
    assert len(runs.find_folders(f"{tmp_path}/runs/deep/*")[0]) == 2


def test_hostile_names_stay_text(tmp_path, capsys):
    """Of folders, which may contain any bytes, and in files."""
    name = os.fsdecode(b"r\xe9\n<script>,;") + "x" * 200
    for seed in range(2):
        write_run(tmp_path / name / str(seed), seed=seed, dataset=f"folder:{HOSTILE}{'y' * 5000}", model_options="lrn=true")
        write_run(tmp_path / "b" / str(seed), seed=seed, init_from=os.fsdecode(b"\xff") + HOSTILE, dataset=f"folder:{HOSTILE}")
        write_run(tmp_path / "c" / str(seed), seed=seed, dataset=f"folder:{HOSTILE}")
    code, out, _, lines, text = compared(tmp_path / "out", f"{tmp_path}/*", capsys)
    assert code == 0 and len(lines) == 3 and "<script" not in text and len(max(out.splitlines(), key=len)) < 600
    found = assert_self_contained(text)
    assert "<script>" in found.text["results"] and "r\\udce9\\n<script>" in found.text["runs"].replace("\\xe9", "\\udce9")


# The page.


def test_the_page_is_complete_and_limited(tmp_path):
    """Thirty rows, of which the best ten have a line; the sections, and a legend of different styles."""
    for index in range(30):
        write_seeds(tmp_path / "sweep" / "x", [], learning_rate=1.0)
        for seed in range(2):
            write_run(tmp_path / "sweep" / f"{index}-{seed}", {"best_validation_accuracy": index / 100 + seed / 1000},
                      validation=(0.1, index / 100), seed=seed, learning_rate=0.001 * (index + 1))
    _, _, _, lines, text = compared(tmp_path / "out", tmp_path / "sweep")
    found = assert_self_contained(text)
    assert [line["setting_learning_rate"] for line in lines[:2]] == ["0.03", "0.029"] and len(lines) == 30
    assert [section["id"] for section in found.all("section")] == ["results", "differences", "curves", "runs", "notes"]
    assert "The best 10 of 30 rows are drawn" in text and text.count('class="swatch"') == 20
    charts = [svg["aria-label"] for svg in found.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 2 and "row 1 ends at 29, row 2 ends at 28" in charts[0]
    assert len({page.charts.line_style(index) for index in range(21)}) == 21


def test_a_curve_is_the_mean_of_the_seeds_with_the_range_as_its_band(tmp_path):
    for seed, validation in enumerate([(0.2, 0.4, 0.6), (0.4, 0.8)]):
        write_run(tmp_path / str(seed), validation=validation, seed=seed)
    write_run(tmp_path / "2", {}, validation=(0.0, 0.0, 0.0), seed=2)  # has not finished
    (row,), _ = read_rows(tmp_path)
    epochs, mean, low, high = row.curve("validation")
    assert [list(epochs), list(low), list(high)] == [[1, 2], [0.2, 0.4], [0.4, 0.8]] and mean == pytest.approx([0.3, 0.6])


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_an_error(tmp_path, width):
    for seed in range(2):
        write_run(tmp_path / "runs" / f"a{seed}", seed=seed, model_options="lrn=true,width=0.5,dense_units=128")
        write_run(tmp_path / "runs" / f"b{seed}", seed=seed, init_from="x" * 500)
        write_run(tmp_path / "runs" / f"c{seed}", seed=seed, dataset=f"folder:{HOSTILE}{'y' * 500}")
    *_, text = compared(tmp_path / "out", tmp_path / "runs")
    assert width_in_a_browser(text, tmp_path, width) == width


# Through main.py.


def test_main_compares_a_sweep(tmp_path, main):
    write_seeds(tmp_path / "sweep", [0.5, 0.25])
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    done = main("--mode=compare", f"--inputs={tmp_path}/sweep,{tmp_path}/absent", cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.returncode == 3 and done.stdout.startswith("2 runs: 2 completed") and folder.name.startswith("compare-2")
    assert done.stderr == f"{tmp_path}/absent: no such folder, or no match holds a run; left out\n"
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.csv", "comparison.html"]


def test_main_needs_inputs(tmp_path, main):
    done = main("--mode=compare", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --inputs=: --mode=compare needs")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_hundred_runs_of_ten_thousand_records_take_less_than_five_seconds(tmp_path, main):
    for index in range(100):
        folder = write_run(tmp_path / "sweep" / f"{index:03}", seed=index % 3, learning_rate=0.001 * (1 + index // 3))
        with open(folder / "metrics.jsonl", "w") as file:
            for step in range(1, 10001):
                kind = "train" if step % 20 else "validation"
                record = {"kind": kind, "step": step, "epoch": step / 97, "loss": 2.301234567890123,
                          "accuracy": math.sqrt(step) / 101, "gradient_norm": 5.2006574678421025, "learning_rate": 0.0027348599}
                file.write(json.dumps(record) + "\n")
    start = time.monotonic()
    done = main("--mode=compare", f"--inputs={tmp_path}/sweep", f"--workdir={tmp_path}/out")
    seconds = time.monotonic() - start
    assert done.returncode == 0 and seconds < 5, seconds
