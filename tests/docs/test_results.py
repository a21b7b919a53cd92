"""docs/results.md: every figure comes from the raw files beside it."""

import math

import make_results
import numpy as np
import pages
import pytest
from helpers import ROOT

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
    experiment = EXPERIMENTS[name]
    for result, records in zip(experiment.results, experiment.metrics, strict=True):
        assert result["status"] in ("completed", "early_stopped")
        validation = {record["step"]: record["accuracy"] for record in records if record["kind"] == "validation"}
        assert len(validation) == sum(record["kind"] == "validation" for record in records)
        assert result["best_validation_accuracy"] == validation[result["best_step"]] == max(validation.values())
        tests = [record["accuracy"] for record in records if record["kind"] == "test"]
        assert tests == ([] if result["test_accuracy"] is None else [result["test_accuracy"]])


def test_spread_and_interval_by_hand():
    """Three pairs: mean and n - 1 by NumPy; 4.303 is Student's t at 97.5 % with two degrees of freedom."""
    with_it, without_it = [0.20, 0.23, 0.19], [0.21, 0.21, 0.23]
    assert make_results.spread(with_it, 100) == f"{100 * np.mean(with_it):.2f} ± {100 * np.std(with_it, ddof=1):.2f}"
    assert make_results.spread([0.5], 100) == "50.00"
    mean, half = make_results.difference(with_it, without_it)
    differences = np.subtract(with_it, without_it)
    assert mean == pytest.approx(differences.mean())
    assert half == pytest.approx(4.303 * differences.std(ddof=1) / math.sqrt(3))


def test_a_page_without_a_marker_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marker")
    with pytest.raises(SystemExit, match="page.md: has 0 pairs of the markers <!-- a -->"):
        pages.filled(page, {"a": "text"})
