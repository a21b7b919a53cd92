"""An empty value makes a flag "not given" again, whether a preset or a config.json has set it. And the help goes into a pipe."""

import json
import subprocess
import sys

import pytest
from absl import flags as absl_flags
from helpers import ROOT

from input_pipeline.common.errors import SettingError
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.records.workdir import Workdir

OPTIONAL = [field.name for _, field in config_lib.leaves() if field.default is None]
WITHOUT_CACHE_DIR = [name for name in OPTIONAL if name != "cache_dir"]


def parse(*arguments):
    values = absl_flags.FlagValues()
    flags_lib.define(values)
    return flags_lib.parse(["main.py", *map(str, arguments)], values)


def values_of(*arguments):
    return config_lib.to_values(parse(*arguments))


@pytest.fixture
def preset(tmp_path, monkeypatch):
    """A preset that sets every optional setting: {name: its value}."""
    values = {name: {"dropout_rate": 0.25, "crop_padding": 3}.get(name, f"/{name}") for name in OPTIONAL}
    monkeypatch.setattr(flags_lib, "PRESETS", tmp_path)
    lines = [f"--{name}={value}" for name, value in values.items()]
    (tmp_path / "own.flags").write_text("\n".join(["--model=alexnet_mini", "--augment=crop", *lines]))
    return values


def test_there_are_optional_settings():
    assert {"workdir", "dropout_rate", "init_from", "export_dir", "data_dir", "cache_dir"} <= set(OPTIONAL)


@pytest.mark.parametrize("name", WITHOUT_CACHE_DIR)
@pytest.mark.parametrize("form", ["--{}=", "-{}=", "--{} ", "flagfile"])
def test_an_empty_value_undoes_a_preset(preset, tmp_path, name, form):
    """Without it, nothing on the command line could reach the network's own dropout rate under a preset that sets one."""
    if form == "flagfile":
        (tmp_path / "run.flags").write_text(f"--{name}=\n")
        arguments = [f"--flagfile={tmp_path / 'run.flags'}"]
    else:
        arguments = form.format(name).split(" ")
    assert values_of("--preset=own")[name] == preset[name]
    for order in (["--preset=own", *arguments], [*arguments, "--preset=own"]):
        values = values_of(*order)
        assert values[name] is None
        assert {**values, name: 0} == {**values_of("--preset=own"), name: 0}


def test_an_empty_cache_dir_still_means_no_cache(preset):
    assert values_of("--preset=own", "--cache_dir=")["cache_dir"] == ""


def test_the_last_of_two_values_counts():
    assert values_of("--preset=cifar10", "--dropout_rate=", "--dropout_rate=0.3")["dropout_rate"] == 0.3
    assert values_of("--preset=cifar10", "--dropout_rate=0.3", "--dropout_rate=")["dropout_rate"] is None


def test_an_empty_value_undoes_a_stored_configuration(tmp_path):
    stored = parse("--preset=cifar10", "--data_dir=/data", f"--workdir={tmp_path}")
    Workdir(tmp_path).write_config(stored)
    evaluate = ("--mode=evaluate", f"--workdir={tmp_path}")
    assert (values_of(*evaluate)["dropout_rate"], values_of(*evaluate)["data_dir"]) == (0.5, "/data")
    values = values_of(*evaluate, "--dropout_rate=", "--data_dir=")
    assert values == values_of(*evaluate) | {"dropout_rate": None, "data_dir": None}


def test_the_run_keeps_in_mind_that_nothing_is_given(tmp_path):
    """config.json has null, and run.flags must not get the preset's value back."""
    config = parse("--preset=cifar10", "--dropout_rate=", f"--workdir={tmp_path}")
    Workdir(tmp_path).write_config(config)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["dropout_rate"] is None and stored["preset"] == "cifar10"
    assert parse(f"--flagfile={tmp_path / 'run.flags'}", f"--workdir={tmp_path}") == config
    assert parse("--mode=evaluate", f"--workdir={tmp_path}").network == config.network


def test_the_command_that_repeats_a_run_can_undo_a_preset():
    values = values_of("--preset=cifar10", "--dropout_rate=")
    assert flags_lib.repeat_arguments(values) == ["--preset=cifar10", "--dropout_rate="]
    assert flags_lib.repeat_arguments(values_of("--preset=cifar10")) == ["--preset=cifar10"]
    assert flags_lib.repeat_arguments(values | {"preset": "of another version"}) is None


@pytest.mark.parametrize(("argument", "words"), [
    ("--dropout_rate=none", "--dropout_rate=none: give a number, at least 0 and below 1, or nothing, which means not given"),
    ("--dropout_rate= ", "--dropout_rate= : give a number"),
    ("--dropout_rate=1", "--dropout_rate=1.0: give a value that is at least 0 and below 1"),
    ("--dropout_rate=nan", "--dropout_rate=nan: give a finite number"),
    ("--epochs=", "--epochs=: give a number, above 0"),
    ("--seed=", "--seed=: give a whole number"),
    ("--debug=", "--debug=: give true or false"),
    ("--mode=", "--mode=: give a value that is one of train"),
    ("--learning_rat=1", "--learning_rat=1: no such flag; did you mean --learning_rate?"),
])
def test_values_that_cannot_work(argument, words):
    """A setting that always has a value cannot be emptied."""
    with pytest.raises(SettingError) as error:
        parse("--preset=cifar10", argument)
    assert str(error.value).startswith(words)


def test_a_preset_without_a_model_chooses_for_the_default_one(tmp_path, monkeypatch):
    monkeypatch.setattr(flags_lib, "PRESETS", tmp_path)
    (tmp_path / "own.flags").write_text("--model_options=dense_units=8\n--dropout_rate=0.25")
    for arguments in ([], [f"--model={config_lib.ExperimentConfig().network.model}"]):
        values = values_of("--preset=own", *arguments)
        assert (values["model_options"], values["dropout_rate"]) == ("dense_units=8", 0.25)
    values = values_of("--preset=own", "--model=alexnet")
    assert (values["model_options"], values["dropout_rate"]) == ("", None)


def test_a_mode_that_needs_a_workdir_refuses_an_empty_one():
    with pytest.raises(SettingError, match="--workdir=: --mode=evaluate needs the folder of a run"):
        parse("--mode=evaluate", "--workdir=")


def test_the_help_text_explains_it():
    assert '"not given"' in flags_lib.help_text() and "--dropout_rate=\n" in flags_lib.help_text()


def test_a_reader_that_leaves_early_gets_no_traceback():
    """`python main.py --helpshort | head -1`"""
    command = [sys.executable, ROOT / "main.py", "--helpshort"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert child.stderr.read() == b"" and child.wait(60) == 0
