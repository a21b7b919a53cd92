"""The grammar of --sweep, and the runs that it stands for. Nothing is created here.

    learning_rate=0.02,0.04;seed=0:3;augment="crop,flip",none

A value with a comma is quoted. Of a number, FIRST:END and FIRST:END:STEP are ranges of whole numbers, without END.
"""

import csv
import dataclasses
import difflib
import hashlib
import itertools
import re

from input_pipeline.common.errors import ExpectedError, SettingError
from input_pipeline.common.settings import value_type
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.records.workdir import open_workdir

OWN_FLAGS = ("mode", "sweep", "parallel", "dry_run", "workdir")  # of the sweep, not of its runs
# Settings that do not change what a run learns, or that decide how the runs share the machine.
NOT_SWEPT = tuple(name for name in config_lib.OF_THIS_PROCESS if name not in ("init_from", "virtual_devices"))
LONGEST_NAME = 150  # characters of a folder's name; file systems allow 255


@dataclasses.dataclass(frozen=True)
class SweptRun:
    """One run of a sweep: its settings {name: value}, the name of its folder, its whole configuration, and its arguments."""

    settings: dict
    folder: str
    config: config_lib.ExperimentConfig
    arguments: tuple


def plan_runs(text, arguments, workdir):
    """Returns a SweptRun for each combination of `text`, the value of --sweep, in its order; the first setting varies slowest.

    `arguments` are those of the command line, and `workdir` is the Workdir of the sweep. Raises SettingError if the text or a
    combination cannot work.
    """
    lists = parse_sweep(text)
    own_arguments = without_own_flags(arguments)
    given = flags_lib.given_flags(own_arguments)
    runs, checked = [], set()
    for values in itertools.product(*lists.values()):
        settings = dict(zip(lists, values, strict=True))
        folder = workdir.path.absolute() / folder_name(settings)
        try:
            config = flags_lib.configure(given | settings | {"workdir": str(folder)})
            if (paths := (config.data.dataset, config.network.init_from)) not in checked:
                open_workdir(config, is_chief=False)  # which checks paths, and creates nothing
                checked.add(paths)
        except ExpectedError as error:
            named = ";".join(f"{name}={flags_lib.flag_text(value)}" for name, value in settings.items())
            raise SettingError("sweep", text, f"with {named}, {error}") from None
        changed = [f"--{name}={flags_lib.flag_text(value)}" for name, value in settings.items()]
        runs.append(SweptRun(settings, folder.name, config, (*own_arguments, *changed, f"--workdir={folder}")))
    return runs


def parse_sweep(text):
    """The settings and values of --sweep, {name: [value]}. Raises SettingError if one does not exist or is there twice."""
    lists, known = {}, {field.name: field for _, field in config_lib.leaves()}
    for part in re.findall(r'(?:"[^"]*"|[^;])+', text):
        name, equals, values = (word.strip() for word in part.partition("="))
        if not (name or equals):  # a semicolon at the end
            continue
        if name not in known or not equals:
            close = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else flags_lib.LIST_FLAGS
            raise SettingError("sweep", text, f"{name!r} is not a setting; {hint}" if equals else
                               f"{name!r} has no values; write name=value,value;name=value, with quotes around it in a shell")
        if name in NOT_SWEPT:
            raise SettingError("sweep", text, f"{name} is the same for all runs; give it as a flag, or leave it out")
        if name in lists:
            raise SettingError("sweep", text, f"{name} is there twice; give all its values in one list")
        lists[name] = _values(known[name], values, text)
    if not lists:
        raise SettingError("sweep", text, "names no setting; give settings and their values, such as learning_rate=0.02,0.04")
    return lists


def _values(field, text, sweep):
    """The values of one setting, read as its flag would read them."""
    try:
        words = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error:
        raise SettingError("sweep", sweep, f"{field.name}={text}: a quote is not closed; write \"a,b\",\"c\"") from None
    values, kind = [], value_type(field)
    for word in map(str.strip, words):
        if kind in (int, float) and (found := re.fullmatch(r"(-?\d+):(-?\d+)(?::([1-9]\d*))?", word, re.ASCII)):
            numbers = range(int(found[1]), int(found[2]), int(found[3] or 1))
            if not numbers:
                raise SettingError("sweep", sweep, f"{field.name}={word} is empty; give a larger end, which is not included")
            values += map(kind, numbers)
            continue
        try:
            values.append(flags_lib.given_flags([f"--{field.name}={word}"])[field.name])
        except ExpectedError as error:
            raise SettingError("sweep", sweep, str(error)) from None
    if not values:
        raise SettingError("sweep", sweep, f"{field.name} has no values; give a comma list")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise SettingError("sweep", sweep, f"{field.name} has the value {flags_lib.flag_text(twice)} twice; give each once")
    return values


def folder_name(settings):
    """The name of the folder of a run with these settings, such as learning_rate=0.02,seed=0; the same in any order.

    What does not fit a file name is replaced. Then, and in a name that is too long, a hash tells the settings apart.
    """
    words = [f"{name}={flags_lib.flag_text(value)}" for name, value in sorted(settings.items())]
    name = ",".join(re.sub(r"[^\w.=+-]+", "-", word, flags=re.ASCII) for word in words)
    if name == ",".join(words) and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}-{digest}"


def without_own_flags(arguments):
    """The arguments of a command line without the flags of the sweep itself."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name in OWN_FLAGS or name == "nodry_run":
            if not equals and name not in ("dry_run", "nodry_run"):
                next(rest, None)
            continue
        kept.append(argument)
    # A flagfile may contain some too.
    has_file = any(argument.lstrip("-").partition("=")[0] == "flagfile" for argument in kept)
    return [*kept, "--mode=train", "--sweep=", "--dry_run=false"] if has_file else kept
