"""Configuration, command line and presets: one value, whatever way it came in."""

import dataclasses
import json
import math

import numpy as np
import pytest
from absl import flags as absl_flags

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.common.settings import Settings, describe_range, setting
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.records.workdir import Workdir

PRESETS = tuple(flags_lib.preset_names())


def parse(*arguments):
    """The configuration of a command line, by an absl registry of its own."""
    values = absl_flags.FlagValues()
    flags_lib.define(values)
    return flags_lib.parse(["main.py", *map(str, arguments)], values)


def values_of(*arguments):
    return config_lib.to_values(parse(*arguments))


# Settings.


@dataclasses.dataclass(frozen=True)
class Example(Settings):
    count: int = setting(1, "a count", low=0, high=2**31 - 1)
    share: float = setting(0.5, "a share", above=0.0, below=1.0)
    name: str | None = setting(None, "a name")
    kind: str = setting("a", "a kind", choices=("a", "b"))
    on: bool = setting(False, "a switch")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", -1), ("count", 2**31), ("count", 1.0), ("count", "1"), ("count", True), ("count", None), ("count", math.nan),
        ("share", 0.0), ("share", 0), ("share", 1.0), ("share", math.nan), ("share", math.inf), ("share", -math.inf),
        ("share", "0.5"), ("share", True), ("share", None), ("name", 5), ("name", b"x"), ("kind", "c"), ("kind", ""),
        ("kind", None), ("on", 1), ("on", 0), ("on", "true"), ("on", None),
    ],
)
def test_a_setting_refuses_what_it_cannot_be(name, value):
    with pytest.raises(SettingError) as error:
        Example(**{name: value})
    assert str(error.value).startswith(f"--{name}=") and "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 0), ("count", 2**31 - 1), ("share", 1e-300), ("share", 0.999), ("share", np.float64(0.5)), ("name", None),
     ("name", ""), ("kind", "b"), ("on", True)],
)
def test_a_setting_takes_its_borders(name, value):
    assert getattr(Example(**{name: value}), name) == value


def test_ranges_in_words():
    words = {field.name: describe_range(field) for field in dataclasses.fields(Example)}
    assert words == {
        "count": "at least 0 and at most 2147483647",  # every digit: it is what a user may type
        "share": "above 0 and below 1", "name": "", "kind": "one of a, b", "on": "",
    }


def test_configurations_are_frozen():
    config = config_lib.ExperimentConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.general.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.general = config_lib.GeneralConfig()


# ExperimentConfig and JSON.


@pytest.mark.parametrize("preset", PRESETS)
def test_json_gives_back_the_same_configuration(preset):
    config = parse(f"--preset={preset}", "--learning_rate=0.1", "--weight_decay=1e-05", "--workdir=some/where")
    text = json.dumps(config_lib.to_values(config))
    assert config_lib.from_values(json.loads(text)) == config
    assert json.loads(text)["learning_rate"] == 0.1


def test_no_two_settings_share_a_name():
    """The flat form has one place for each."""
    names = [field.name for _, field in config_lib.leaves()]
    assert len(set(names)) == len(names) and set(config_lib.to_values(config_lib.ExperimentConfig())) == set(names)
    assert set(config_lib.OF_THIS_PROCESS) <= set(names)


def test_defaults_are_those_of_the_dataclasses():
    assert config_lib.from_values({}) == config_lib.ExperimentConfig()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rat": 0.1}, ["--learning_rat=0.1", "not a setting"]),
        ({"epochs": math.nan}, ["--epochs=nan", "finite"]),
        ({"epochs": "10"}, ["--epochs=10", "give a number"]),
        ({"global_batch_size": True}, ["--global_batch_size=True", "give a whole number"]),
        ({"deterministic": 1}, ["--deterministic=1", "give true or false"]),
        ({"seed": 2**31}, ["--seed=2147483648", "at most 2147483647"]),
        ({"optimizer": None}, ["--optimizer="]),
        ({"model": "VGG16", "dropout_rate": 0.5}, ["--dropout_rate=0.5", "VGG16"]),
        ({"schedule": "plateau", "validation_split": ""}, ["--schedule=plateau", "--validation_split"]),
        ({"mode": "evaluate"}, ["--workdir=", "evaluate"]),
        ({"debug": True, "virtual_devices": 2}, ["--virtual_devices=2", "--debug"]),
        ({"global_batch_size": 10, "virtual_devices": 4}, ["--global_batch_size=10", "8 or 12"]),
        ({"checkpoint": "-5"}, ["--checkpoint=-5", "latest"]),
        ({"global_batch_size": 100, "virtual_devices": 2, "accumulate_steps": 4}, ["times 4 accumulate_steps", "96 or 104"]),
        ({"accumulate_steps": 0}, ["--accumulate_steps=0", "at least 1"]),
        ({"ema_decay": 1.0}, ["--ema_decay=1.0", "below 1"]),
        ({"xla": "maybe"}, ["--xla=maybe", "auto, on, off"]),
        *(({"profile_steps": text}, [f"--profile_steps={text}", "START:STOP"]) for text in ("5", "5:", "9:3", "a:b", "-1:4")),
    ],
)
def test_values_that_cannot_work(values, words):
    with pytest.raises(SettingError) as error:
        config_lib.from_values(values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("batch", "replicas", "nearest"), [(10, 4, "8 or 12"), (3, 8, ": 8"), (129, 2, "128 or 130")])
def test_the_nearest_batches_that_divide(batch, replicas, nearest):
    with pytest.raises(SettingError, match=nearest):
        config_lib.check_divisible(batch, replicas)
    config_lib.check_divisible(batch * replicas, replicas)


def test_a_batch_is_shared_by_the_devices_that_are_used():
    config_lib.from_values({"global_batch_size": 10, "virtual_devices": 4, "devices": 2})
    with pytest.raises(SettingError, match="divide by the 3 replicas"):
        config_lib.from_values({"global_batch_size": 10, "virtual_devices": 4, "devices": 3})


def test_an_evaluation_needs_no_parts_and_no_pairs():
    """The --accumulate_steps and mixup of a run say nothing about the batches of its evaluation."""
    values = {"global_batch_size": 25, "accumulate_steps": 4, "augment": "mixup", "workdir": "runs/a"}
    config_lib.from_values(values | {"mode": "evaluate"})
    with pytest.raises(SettingError, match="accumulate_steps"):
        config_lib.from_values(values)
    with pytest.raises(SettingError, match="--global_batch_size=25: must divide by the 2 replicas;"):
        config_lib.from_values(values | {"mode": "evaluate", "virtual_devices": 2})


# The command line.


@pytest.mark.parametrize("preset", PRESETS)
def test_each_line_of_a_preset_takes_effect(preset):
    """Read by hand: a line that is misspelled, or not read at all, would silently train something else."""
    values = values_of(f"--preset={preset}")
    assert values["preset"] == preset
    lines = (flags_lib.PRESETS / f"{preset}.flags").read_text().splitlines()
    named = dict(line.removeprefix("--").split("=", 1) for line in lines if line and not line.startswith("#"))
    assert len(named) >= 10
    for name, text in named.items():
        kind = type(values[name])
        assert values[name] == ({"true": True, "false": False}[text] if kind is bool else kind(text)), name
    defaults = config_lib.to_values(config_lib.ExperimentConfig())
    assert all(values[name] == defaults[name] for name in values.keys() - named.keys() - {"preset"})


def test_quickstart_is_the_default():
    assert {"cifar10", "imagenet", "quickstart", "tutorial"} <= set(PRESETS)
    assert values_of() == values_of("--preset=quickstart")


OTHERS = (
    (),
    ("--seed=7", "--debug", "--global_batch_size=50"),
    ("--nodeterministic", "--weight_decay=0.0005", "--learning_rate=1e-30"),
    ("--model=VGG16",),
    ("--model=alexnet_tower_sequential",),
    ("--model=alexnet_tower", "--dropout_rate=0"),
    ("--model_options=",),
    ("--validation_split=", "--test_split=", "--early_stopping_patience=0", "--schedule=cosine"),
    ("--epochs=0.1", "--max_steps=3"),
    ("--data_dir=/a folder/with blanks, commas=and 'quotes'", "--train_split=train[10%:20%]+train[:5]"),
)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("others", OTHERS)
def test_run_flags_give_the_same_configuration(tmp_path, preset, others):
    """Including the values that stand in no line: under a preset, what is not given again must not come back."""
    config = parse(f"--preset={preset}", "--workdir=runs/a", *others)
    path = tmp_path / "run.flags"
    path.write_text(flags_lib.to_flagfile(config))
    assert "workdir" not in path.read_text()
    again = config_lib.to_values(parse(f"--flagfile={path}"))
    assert again == config_lib.to_values(config) | {"workdir": None}
    assert parse(f"--flagfile={path}", "--workdir=runs/a") == config


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_line_wins_before_and_after_the_preset(preset):
    for name, text, value in (("epochs", "1.5", 1.5), ("dataset", "mnist", "mnist"), ("deterministic", "true", True)):
        for arguments in (
            [f"--preset={preset}", f"--{name}={text}"],
            [f"--{name}={text}", f"--preset={preset}"],
            [f"--{name}", text, "--preset", preset] if name != "deterministic" else ["--deterministic", "--preset", preset],
            [f"-{name}={text}", f"-preset={preset}"],
        ):
            values = values_of(*arguments)
            assert values[name] == value
            assert {**values, name: None} == {**values_of(f"--preset={preset}"), name: None}


def test_the_last_of_two_wins():
    assert values_of("--preset=cifar10", "--preset=tutorial", "--epochs=1", "--epochs=2") == values_of(
        "--preset=tutorial", "--epochs=2")


@pytest.mark.parametrize("model", ["VGG16", "ResNet50", "alexnet", "alexnet_tower"])
@pytest.mark.parametrize("preset", PRESETS)
def test_another_model_drops_what_the_preset_chose_for_its_own(preset, model):
    """--model=VGG16 must work under every preset, not complain of options that the user never gave."""
    values, own = values_of(f"--model={model}", f"--preset={preset}"), values_of(f"--preset={preset}")
    assert values["model"] == model
    if own["model"] == model:
        assert values == own
    else:
        assert values["model_options"] == "" and values["dropout_rate"] is None
        dropped = ("model", "model_options", "dropout_rate")
        assert all(values[name] == own[name] for name in values if name not in dropped)


def test_options_that_the_user_gave_for_another_model_are_checked():
    assert values_of("--model=alexnet_tower", "--model_options=dense_units=8")["model_options"] == "dense_units=8"
    with pytest.raises(SettingError, match="model_options"):
        parse("--model=VGG16", "--model_options=dense_units=8")


def test_the_presets_own_model_keeps_its_options():
    assert values_of(f"--model={values_of()['model']}") == values_of() and "dense_units=256" in values_of()["model_options"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("--learning_rat=0.1", ["learning_rat", "own.flags", "--learning_rate"]),
        ("--no_such_flag_at_all=1", ["no_such_flag_at_all", "own.flags"]),
        ("--epochs=many", ["epochs", "many", "own.flags"]),
        ("--epochs=-3", ["--epochs=-3"]),
        ("--model=alexnett", ["alexnett"]),
    ],
)
def test_a_wrong_line_in_a_preset_is_fatal(tmp_path, monkeypatch, lines, words):
    monkeypatch.setattr(flags_lib, "PRESETS", tmp_path)
    (tmp_path / "own.flags").write_text(f"# A preset.\n\n--dataset=cifar10\n{lines}\n")
    with pytest.raises((SettingError, absl_flags.Error)) as error:
        parse("--preset=own")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_preset_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(flags_lib, "PRESETS", tmp_path)
    (tmp_path / "own.flags").write_text("# A preset.\n\n  --epochs=3  \n--nesterov\n--seed=5\n")
    values = values_of("--preset=own", "--seed=6")
    assert (values["preset"], values["epochs"], values["nesterov"], values["seed"]) == ("own", 3.0, True, 6)
    with pytest.raises(SettingError, match="give one of own"):
        parse("--preset=quickstart")


def test_preset_names_are_not_paths(tmp_path):
    (tmp_path / "own.flags").write_text("--epochs=3\n")
    for name in (tmp_path / "own", "../presets/quickstart", "", "quickstart.flags"):
        with pytest.raises(SettingError, match="no such preset"):
            parse(f"--preset={name}")


# A run's config.json.


@pytest.fixture
def workdir(tmp_path):
    """The folder of a run with values that are neither defaults nor the preset's."""
    config = parse("--preset=cifar10", "--dataset=mnist", "--image_size=48", "--model=VGG19", "--global_batch_size=24",
                   "--seed=3", "--devices=2", "--virtual_devices=2", "--test_split=test[:9]", "--checkpoint=latest",
                   f"--workdir={tmp_path}")
    Workdir(tmp_path).write_config(config)
    return tmp_path


def test_evaluate_takes_the_experiment_from_the_workdir(workdir):
    values, run = values_of("--mode=evaluate", f"--workdir={workdir}"), json.loads((workdir / "config.json").read_text())
    of_this_process = {"mode": "evaluate", "workdir": str(workdir), "devices": 0, "virtual_devices": 1, "checkpoint": "best"}
    assert {name: values[name] for name in of_this_process} == of_this_process
    for name in values.keys() - set(config_lib.OF_THIS_PROCESS):
        assert values[name] == run[name], name


@pytest.mark.parametrize("mode_first", [True, False])
def test_explicit_flags_win_over_the_workdir(workdir, mode_first):
    mode = ("--mode", "evaluate", f"--workdir={workdir}")
    given = ("--image_size=64", "--dataset=shapes", "--preset=tutorial", "--seed=0")
    values = values_of(*(mode + given if mode_first else given + mode))
    assert (values["image_size"], values["dataset"], values["preset"], values["seed"]) == (64, "shapes", "tutorial", 0)
    assert (values["model"], values["global_batch_size"], values["augment"]) == ("VGG19", 24, "crop,flip,cutout")


def test_train_does_not_look_at_the_workdirs_configuration(workdir):
    """What a run is, its command line says; a resume with other values is refused later, not repaired in silence."""
    (workdir / "config.json").write_text("garbage")
    assert values_of(f"--workdir={workdir}") == values_of() | {"workdir": str(workdir)}


def test_a_missing_configuration_leaves_the_flags(tmp_path):
    assert values_of("--mode=evaluate", f"--workdir={tmp_path}")["dataset"] == "shapes"


def test_an_older_configuration_takes_todays_defaults_for_what_it_lacks(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    del stored["label_smoothing"]
    (workdir / "config.json").write_text(json.dumps(stored))
    assert values_of("--mode=evaluate", f"--workdir={workdir}")["label_smoothing"] == 0.0


@pytest.mark.parametrize(
    "text", [b"", b"{", b"5", b"null", b'"text"', b'["epochs"]', b"\xff\xfe", b'{"epochs": "many"}', b'{"epochs": NaN}',
             b'{"no_such": 1}', b'{"seed": true}', b'{"model": "alexnett"}'])
def test_a_broken_configuration_is_one_line_that_names_the_file(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UnusableError) as error:
        parse("--mode=evaluate", f"--workdir={tmp_path}")
    assert str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == 3


# Help.


def help_paragraphs():
    """{flag: what the help text says of it, on one line}."""
    paragraphs, name = {}, None
    for line in flags_lib.help_text().splitlines():
        if line.startswith("  --"):
            name, _, line = line.strip().removeprefix("--").partition(" ")
            paragraphs[name] = []
        if name and line.strip():
            paragraphs[name].append(line.strip())
        else:
            name = None
    return {name: " ".join(lines) for name, lines in paragraphs.items()}


def test_help_says_meaning_range_and_default_of_every_flag():
    paragraphs = help_paragraphs()
    assert set(paragraphs) == {field.name for _, field in config_lib.leaves()}
    for _, field in config_lib.leaves():
        text, meaning = paragraphs[field.name], field.metadata["help"]
        # Without blanks, for a line may end at a hyphen.
        assert text.replace(" ", "").startswith(meaning.replace(" ", ""))
        assert describe_range(field).replace(" ", "") in text.replace(" ", "")
        assert ("; on resume: " in text) and ("not given;" in text or field.default is not None)
    assert paragraphs["seed"].endswith("(at least 0 and at most 2147483647; default 0; on resume: refused)")
    assert paragraphs["epochs"].endswith("(above 0; default 10.0; on resume: reported)")
    assert paragraphs["momentum"].endswith("(at least 0 and below 1; default 0.9; on resume: reported)")
    assert paragraphs["deterministic"].endswith("(default false; on resume: reported)")
    assert paragraphs["split"].endswith("(default empty; on resume: ignored)")
    assert all(f" {name}" in flags_lib.help_text() for name in PRESETS)


def test_help_fits_a_terminal():
    assert max(len(line) for line in flags_lib.help_text().splitlines()) <= 110


@pytest.mark.parametrize("flag", ["--momentum=0.5", "--nesterov=true"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_setting_that_the_optimizer_would_ignore_is_refused(flag, optimizer):
    """Whoever types it believes that it does something."""
    with pytest.raises(SettingError) as error:
        parse(f"--optimizer={optimizer}", flag)
    assert str(error.value).startswith(f"{flag.replace('true', 'True')}: --optimizer={optimizer} has no such setting")


def test_an_optimizer_of_ones_own_leaves_out_what_the_preset_chose_for_its_own():
    config = parse("--preset=cifar10_fast", "--optimizer=adam")
    assert (config.optimization.momentum, config.optimization.nesterov) == (0.9, False)
    assert parse("--preset=cifar10_fast").optimization.nesterov
    assert parse("--mode=report", "--workdir=runs/a", "--optimizer=adam", "--momentum=0.5").optimization.momentum == 0.5
