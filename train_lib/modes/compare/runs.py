"""The runs that --inputs names, and of their files what a comparison needs."""

import dataclasses
import glob
import hashlib
import os
import pathlib

import numpy as np

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import is_of
from train_lib import config as config_lib
from train_lib.cli.flags import flag_text
from train_lib.cli.inputs import entries, printable
from train_lib.records.code import DIFF, ENVIRONMENT, in_words
from train_lib.records.json_lines import METRICS, METRICS_RECORD, NUMBER, JsonLines
from train_lib.records.lock import has_heartbeat
from train_lib.records.run_files import STATUS, read_object

# Settings that say nothing about the experiment. Other initial weights are another experiment.
IGNORED = {*config_lib.OF_THIS_PROCESS, "preset", "data_dir", "cache_dir", "seed"} - {"init_from"}
FIGURES = ("test_accuracy", "best_validation_accuracy", "images_per_second", "seconds")  # of result.json
OF_THE_DATA = ("dataset", "train_split", "validation_split", "test_split", "test_crops")  # settings
BEHIND = " holds"  # ends the name of what is behind a setting
FINISHED = ("completed", "early_stopped")
LARGEST = 1e30  # of a figure; a chart cannot have much larger ones
MOST_RECORDS = 300  # of a kind, for a line in a chart; the rest is not even parsed
OUTPUTS = ("comparison.csv", "benchmark.json")  # of modes that make a folder of their own below runs/


@dataclasses.dataclass(frozen=True)
class Run:
    """What a comparison needs of one run.

    `settings` are {name: text} of the code and of the settings without the seed, `data` {name: text} of what must be equal in
    comparable runs. `figures` are {name: value or None}, all None unless the run `is_finished`: it trained for as long as it was
    meant to. `validation` and `training` are accuracy and loss over the epochs: (epochs, values), two float64 arrays.
    """

    name: str
    seed: int
    settings: dict
    data: dict
    status: str
    is_finished: bool
    step: int
    figures: dict
    validation: tuple
    training: tuple


def find_folders(inputs):
    """Returns (the folders of the runs that --inputs names, each once; one line about each entry without a run).

    An entry is the folder of a run, a folder that contains such folders, for example a sweep, or a glob of both.
    """
    folders, left_out = {}, []
    for entry in entries(inputs):
        path = os.path.expanduser(entry if os.path.lexists(entry) else entry.strip())
        if not path:
            continue
        is_glob = not os.path.lexists(path)
        matches = [found for found in sorted(glob.glob(path, recursive=True)) if os.path.isdir(found)] if is_glob else [path]
        runs = {match: _runs_in(pathlib.Path(match)) for match in matches}
        for folder in (folder for found in runs.values() for folder in found):
            folders.setdefault(os.path.realpath(folder), folder)
        if is_glob and not any(runs.values()):
            left_out.append(f"{printable(path)}: no such folder, or no match holds a run; left out")
        elif "**" not in path:  # that matches all the folders inside of runs, too
            left_out += [f"{printable(match)}: holds no run with a record; left out" for match, found in runs.items()
                         if not found and not any(os.path.exists(os.path.join(match, name)) for name in OUTPUTS)]
    return list(folders.values()), left_out


def _runs_in(folder):
    if os.path.lexists(folder / METRICS):
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{METRICS}"))


def read_run(folder, values=None):
    """Reads a run. `values` stand for its config.json. Raises UnusableError if a file of it is not what a run writes."""
    values = _read_settings(folder / "config.json") if values is None else values
    result, about = read_object(folder / "result.json"), read_object(folder / ENVIRONMENT)
    status = result.get("status", "running" if has_heartbeat(folder) else "running or killed")
    if (result and status not in list(STATUS)) or not all(_is_number(result.get(name)) for name in FIGURES):
        raise UnusableError(f"{folder / 'result.json'}: is not what a run writes; remove it")
    is_finished, lines = status in FINISHED, JsonLines(folder / METRICS, METRICS_RECORD)
    records = lines.read_some(MOST_RECORDS, whole=None if is_finished else "validation")  # its best so far is among them
    if not records:
        raise UnusableError(f"{folder}: holds no run with a record")
    validation, training = (_curve(records, *names, lines.path) for names in (("validation", "accuracy"), ("train", "loss")))
    return Run(
        name=printable(str(folder)), seed=values["seed"], data=_describe_data(folder, values, about),
        settings={name: _text(value) for name, value in values.items() if name not in IGNORED} | {"code": _code(folder, about)},
        status=status.replace("_", " "), is_finished=is_finished, step=max(record["step"] for record in records),
        figures={name: result.get(name) if is_finished else None for name in FIGURES},
        validation=validation, training=training)


def _read_settings(path):
    """{name: value} of a config.json. A setting that did not exist when it was written has its default."""
    values = read_object(path, ("seed",))
    if not (is_of(values.get("seed"), int) and all(isinstance(v, str | int | float | None) for v in values.values())):
        raise UnusableError(f"{path}: is not the configuration of a run, so its settings are unknown")
    return {field.name: field.default for _, field in config_lib.leaves()} | values


def _text(value):
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # 2.0 is the same as 2
    return printable(flag_text(value)) or "-"


def _is_number(value):
    return value is None or is_of(value, NUMBER) and abs(value) < LARGEST


def _curve(records, kind, name, path):
    chosen = sorted((r["epoch"], r.get(name)) for r in records if r["kind"] == kind and r.get(name) is not None)
    if not all(_is_number(value) for _, value in chosen):
        raise UnusableError(f"{path}: a record holds no number as its {name}; remove the line")
    return tuple(np.array(chosen, float).reshape(-1, 2).T)


def _describe_data(folder, values, about):
    """{what: text}: the flags about the data, and what the data behind these flags were, as far as the run knows."""
    described = {name: str(values.get(name, "")) for name in OF_THE_DATA}
    shape = about.get("image_shape")
    size = " x ".join(map(str, shape[:2])) if isinstance(shape, list) else ""
    data = {}
    for path in sorted((folder / "checkpoints").glob("step-*/progress.json"))[-1:]:
        data = read_object(path).get("data", {})
    behind = {f"{name}{BEHIND}": str(data.get(name, "")) for name in ("dataset", "train_split", "validation_split")}
    return {name: printable(text) for name, text in (described | {"image_size": size} | behind).items()}


def _code(folder, about):
    if "commit" not in about:
        return "unknown"
    try:
        diff = f" ({hashlib.sha256((folder / DIFF).read_bytes()).hexdigest()[:6]})"
    except OSError:
        diff = ""
    return printable(in_words(about)) + diff
