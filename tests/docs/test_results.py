"""docs/results.md: every figure comes from the raw files beside it."""

import json

import make_results
import numpy as np
import pages
import pytest
from helpers import ROOT
from scipy import stats

PAGE = ROOT / "docs" / "results.md"

EXPERIMENTS = make_results.read_experiments()


def test_the_page_is_what_the_raw_files_say():
    assert pages.filled(PAGE, make_results.parts(EXPERIMENTS)) == PAGE.read_text()


def test_the_page_shows_each_picture():
    page = PAGE.read_text()
    for name in make_results.pictures(EXPERIMENTS):
        assert f"](results/{name})" in page
        assert (ROOT / "docs" / "results" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_result_is_that_of_its_records(name):
    """And the test split was looked at once: whoever looks twice chooses."""
    for run in EXPERIMENTS[name].about["runs"]:
        result, records = read(run)
        assert result["status"] in ("completed", "early_stopped")
        validation = {record["step"]: record["accuracy"] for record in records if record["kind"] == "validation"}
        assert len(validation) == sum(record["kind"] == "validation" for record in records)
        if validation:
            assert result["best_validation_accuracy"] == validation[result["best_step"]] == max(validation.values())
        else:  # trained on all training images: the last weights count
            assert result["best_validation_accuracy"] is None and result["best_step"] == result["steps"]
        tests = [record["accuracy"] for record in records if record["kind"] == "test"]
        assert tests == ([] if result["test_accuracy"] is None else [result["test_accuracy"]])


def read(run):
    """(result.json, the records of metrics.jsonl) of a published run."""
    folder = ROOT / "docs" / "results" / run
    return json.loads((folder / "result.json").read_text()), list(map(json.loads, open(folder / "metrics.jsonl")))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_spread_is_that_of_numpy(name):
    results = [read(run)[0] for run in EXPERIMENTS[name].about["runs"]]
    figure = "test_accuracy" if results[0]["best_validation_accuracy"] is None else "best_validation_accuracy"
    values = [result[figure] for result in results]
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    assert EXPERIMENTS[name].spread(figure) == f"{100 * np.mean(values):.2f}{spread}"


def test_the_interval_is_that_of_scipy():
    """With and without response normalization: three pairs of equal seeds."""
    errors = [[1 - read(run)[0]["test_accuracy"] for run in EXPERIMENTS[name].about["runs"]]
              for name in ("lrn_with", "lrn_without")]
    found = stats.ttest_rel(*errors).confidence_interval(0.95)
    sentence = make_results.difference_line(EXPERIMENTS, "lrn_with", "lrn_without")
    assert f"{100 * np.mean(np.subtract(*errors)):+.2f} points" in sentence and "(3 pairs" in sentence
    assert f"95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}**" in sentence


def test_a_page_without_a_marker_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marker")
    with pytest.raises(SystemExit, match="page.md: has 0 pairs of the markers <!-- a -->"):
        pages.filled(page, {"a": "text"})
