"""docs/ladder.md: one change per rung, equal arithmetic, and every figure from the raw files."""

import json

import make_ladder
import numpy as np
import pages
import pytest
import scaling
from absl import flags
from helpers import ROOT
from scipy import stats

from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib

TRIALS = sorted((ROOT / "docs" / "results" / "ladder_trials").glob("*/seed-*"))
PAGE = ROOT / "docs" / "ladder.md"
LADDER = make_ladder.read_ladder()
ENTRIES = [entry for entries in LADDER.values() for entry in entries]
MEASURED = [entry for entry in ENTRIES if entry.runs]
BUDGET = 0.1417e15  # operations


def config_of(entry):
    """The configuration of a row's command; raises if the command would be refused."""
    return flags_lib.parse(entry.command.split()[1:], flags_lib.define(flags.FlagValues()))


def operations(config):
    network = scaling.count(config.network.model, 32, 10, config.network.model_options)
    return scaling.OPERATIONS_OF_A_STEP * network.multiply_adds * config.schedule.epochs * make_ladder.IMAGES


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_row_costs_the_same_arithmetic(entry):
    assert operations(config_of(entry)) == pytest.approx(BUDGET * entry.about.get("times", 1), rel=0.02)


def test_the_top_is_the_preset():
    """Every other setting would be a change that no rung shows."""
    ours = config_lib.to_values(config_of(LADDER["rungs"][-1]))
    preset = config_lib.to_values(flags_lib.parse(["main.py", "--preset=cifar10_94"], flags_lib.define(flags.FlagValues())))
    for values in (ours, preset):
        values["preset"] = values["eval_every_epochs"] = values["keep_checkpoints"] = None
    assert ours == preset


def test_the_page_is_what_the_raw_files_say():
    assert pages.filled(PAGE, make_ladder.parts(LADDER)) == PAGE.read_text()


@pytest.mark.parametrize("entry", MEASURED, ids=lambda entry: entry.name)
def test_each_run_is_that_of_its_command_and_saw_the_test_split_once(entry):
    assert len(entry.runs) >= 3
    for run in entry.runs:
        folder = entry.folder / f"seed-{run.seed}"
        result = json.loads((folder / "result.json").read_text())
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        values = json.loads((folder / "config.json").read_text())
        expected = config_lib.to_values(config_of(entry)) | {"seed": run.seed}
        free = {"preset", "eval_every_epochs", "keep_checkpoints", "data_dir", "cache_dir", *config_lib.OF_THIS_PROCESS}
        asked = values.keys() - free
        assert {name: values[name] for name in asked} == {name: expected[name] for name in asked}
        assert result["status"] == "completed"
        assert [record["accuracy"] for record in records if record["kind"] == "test"] == [result["test_accuracy"]]


@pytest.mark.parametrize("folder", TRIALS, ids=lambda path: path.parent.name)
def test_no_trial_saw_the_test_split(folder):
    values = json.loads((folder / "config.json").read_text())
    splits = {values[name] for name in ("train_split", "validation_split", "test_split")}
    assert splits == {"train[:45000]", "", "train[45000:]"}


def test_the_best_rates_were_chosen():
    for rung in LADDER["rungs"]:
        tried = {}
        for folder in TRIALS:
            if folder.parent.name.startswith(f"{rung.name}-"):
                values, result = (json.loads((folder / name).read_text()) for name in ("config.json", "result.json"))
                tried[values["learning_rate"]] = result["test_accuracy"]
        assert not tried or rung.flags["learning_rate"] == max(tried, key=tried.get), rung.name


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.gain], ids=lambda entry: entry.name)
def test_differences_are_those_of_scipy(entry):
    ours, base = (row.values("test_accuracy") for row in (entry, entry.base))
    common = sorted(ours.keys() & base.keys())
    values = [[row[seed] for seed in common] for row in (ours, base)]
    found = stats.ttest_rel(*values).confidence_interval(0.95)
    difference = 100 * np.mean(np.subtract(*values))
    assert f"| {difference:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f}) |" in PAGE.read_text()
