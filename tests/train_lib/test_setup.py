"""Flags against a checkpoint: what is refused, what takes a new value and says so, what nobody needs to hear of."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline.common.errors import SettingError
from input_pipeline.common.settings import value_type
from input_pipeline.splits.resident import ResidentSplit
from train_lib import config as config_lib
from train_lib.cadence import Patience, ValidationTracker, make_plan
from train_lib.checkpoints.resume import (
    describe_data,
    refuse_other_data,
    refuse_other_experiment,
    repair_pointers,
    report_changes,
)
from train_lib.checkpoints.store import Checkpoint, CheckpointStore
from train_lib.cli import flags as flags_lib
from train_lib.distribution.workers import OneWorker
from train_lib.records.workdir import Workdir
from train_lib.setup import open_run
from train_lib.state import TrainState

# Where a value other than the default does not follow from the type.
OTHER = {"mode": "benchmark", "preset": "tutorial", "dataset": "cifar10", "augment": "flip", "model": "alexnet_tower",
         "model_options": "dense_units=64", "profile_steps": "1:2", "checkpoint": "latest", "test_crops": 10,
         "benchmark_rows": "step", "virtual_devices": 2, "global_batch_size": 64, "rand_augment": "1,5", "triangle": "0,0.5,0"}


def other_value(field):
    """A valid value other than the default."""
    if field.name in OTHER:
        return OTHER[field.name]
    if field.metadata["choices"]:
        return next(choice for choice in field.metadata["choices"] if choice != field.default)
    if value_type(field) is bool:
        return not field.default
    if value_type(field) is str:
        return "other"
    return (field.default or 0) + 1 if value_type(field) is int else (field.default or 1.0) / 4


FLAGS = {field.name: other_value(field) for _, field in config_lib.leaves()}


def checkpoint_of(config, tmp_path, **description):
    folder = tmp_path / "run" / "checkpoints" / "step-00000005"
    about = {"class_names": ["a"], "image_shape": [32, 32, 3], "data": {}, "last_step": 9,
             "progress": TrainState(None, None, None, step=5).progress()}
    return Checkpoint(folder, 5, about | {"config": config_lib.to_values(config)} | description)


# What others rely on. Settings that come later choose for themselves.
REFUSED = {"seed", "dataset", "train_split", "validation_split", "test_split", "image_size", "pixels", "augment", "model",
           "model_options", "dropout_rate", "precision", "optimizer", "global_batch_size"}
IGNORED = {"mode", "preset", "workdir", "debug", "data_dir", "cache_dir", "input", "decode_threads", "max_bad_examples",
           "init_from", "profile_steps", "split", "checkpoint", "inputs", "export_dir", "benchmark_rows"}


def on_resume_by_help():
    """{flag: "refused", "reported" or "ignored"}, as --helpshort states it."""
    parts = re.split(r"^  --(\w+) ", flags_lib.help_text(), flags=re.M)[1:]
    return {flag: re.search(r"on\s+resume:\s+(\w+)\)", text)[1] for flag, text in zip(parts[::2], parts[1::2], strict=True)}


def test_what_others_rely_on_is_refused_or_ignored():
    stated = on_resume_by_help()
    assert stated.keys() == FLAGS.keys()
    assert all(stated[flag] == "refused" for flag in REFUSED) and all(stated[flag] == "ignored" for flag in IGNORED)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_against_a_checkpoint_as_the_help_states(tmp_path, flag):
    """What a flag does to a run that has a checkpoint must be known before it is typed."""
    of_a_sweep = {"mode": "sweep", "sweep": "seed=0:2"} if flag in ("sweep", "dry_run") else {}  # refused where nothing is swept
    before = config_lib.from_values(of_a_sweep)
    after = config_lib.from_values(config_lib.to_values(before) | {flag: FLAGS[flag]})
    checkpoint, lines = checkpoint_of(before, tmp_path), []
    where = on_resume_by_help()[flag]
    if where == "refused":
        with pytest.raises(SettingError) as error:
            refuse_other_experiment(after, checkpoint)
        then = config_lib.to_values(before)[flag]
        assert str(error.value).startswith(f"--{flag}={FLAGS[flag]}: ") and error.value.exit_code == 2
        assert f"was made with {'not given' if then is None else then};" in str(error.value)
        return
    refuse_other_experiment(after, checkpoint)
    report_changes(after, checkpoint, lines.append)
    reported = [f"--{flag}={FLAGS[flag]} from here on; it was {config_lib.to_values(before)[flag]} when step-00000005 was saved"]
    assert lines == (reported if where == "reported" else [])


def data(num_examples=30, classes="abc", size=8, streamed=False):
    """What `describe_data` says of a source and its splits."""
    source = SimpleNamespace(class_names=tuple(classes))
    train, validation = (
        ResidentSplit(np.zeros((count, size, size, 3), np.uint8), np.zeros(count, np.int32)) for count in (num_examples, 5))
    if streamed:
        train = SimpleNamespace(num_examples=num_examples, image_shape=(size, size, 3))
    return describe_data(source, train, validation)


@pytest.mark.parametrize(("now", "words"), [
    ({"num_examples": 31}, ["--train_split=train[:90%]: is now 31 examples", "made with 30 examples"]),
    ({"classes": "abd"}, ["--dataset=shapes: is now the classes a, b, d", "made with the classes a, b, c"]),
    ({"classes": "ab"}, ["--dataset=shapes: is now the classes a, b;"]),
    ({"size": 9}, ["--image_size=0: is now images of 9 x 9", "made with images of 8 x 8"]),
    ({"streamed": True}, ["--input=auto: is now stream", "made with memory; give --input=memory"]),
])
def test_data_that_changed_under_their_name_are_refused(tmp_path, now, words):
    """The order of examples is a function of their number, and what a label means of the classes."""
    config = config_lib.ExperimentConfig()
    checkpoint = checkpoint_of(config, tmp_path, data=data())
    refuse_other_data(config, checkpoint, data())
    refuse_other_data(config, None, data())
    with pytest.raises(SettingError) as error:
        refuse_other_data(config, checkpoint, data(**now))
    assert all(word in str(error.value) for word in words), error.value


# `latest` and `best` after a kill or a fall back.


def open_store(folder, best=None):
    """A store of steps 5 and 7, with `best` as given; and a state at step 7 that knows of its best at `best`."""
    store = CheckpointStore(folder, log=lambda line: None)
    for step in (5, 7):
        store.save(step, {"step": np.int64(step)}, {}, is_best=step == 5)
    tracker = ValidationTracker(best=Patience(0.5, 0), best_step=best)
    return store, SimpleNamespace(step=7, validation=tracker)


def test_pointers_that_a_kill_left_behind_are_put_right(tmp_path):
    store, state = open_store(tmp_path, best=7)
    store._point("latest", "step-00000005")  # as if killed after the rename of step 7's folder
    lines = []
    config = config_lib.from_values({})
    repair_pointers(state, store, make_plan(config, 10_000), config, OneWorker(), lines.append)
    assert store.find("best").step == 7 and (tmp_path / "latest").read_text() == "step-00000007\n" and not lines
    assert state.validation == ValidationTracker(best=Patience(0.5, 0), best_step=7)


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_best_that_cannot_be_named_is_no_best(tmp_path, damage):
    """Otherwise the run would train to its end and then find no checkpoint for the test split."""
    store, state = open_store(tmp_path, best=5)
    path = tmp_path / "step-00000005" / "progress.json"
    path.rename(tmp_path / "aside") if damage == "gone" else path.write_text("{")
    lines = []
    config = config_lib.from_values({})
    repair_pointers(state, store, make_plan(config, 10_000), config, OneWorker(), lines.append)
    assert state.validation.best == Patience() and state.validation.best_step is None
    assert len(lines) == 1 and "step 5" in lines[0]


@pytest.mark.parametrize("flag", ["train_split", "validation_split", "test_split"])
def test_a_split_that_does_not_exist_is_named_before_anything_is_decoded(tmp_path, data_dir, flag):
    """Decoding CIFAR-10 takes 20 s, and training hours."""
    config = config_lib.from_values({"data_dir": str(data_dir), flag: "tests"})
    lines, store = [], CheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(SettingError, match=f"--{flag}=tests: .*no such split"):
        open_run(config, Workdir(tmp_path), None, store, lines.append)
    assert not lines
