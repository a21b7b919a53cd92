"""The command line: one flag per setting, presets, and help in groups. Uses absl, does not import TensorFlow."""

import dataclasses
import difflib
import functools
import os
import pathlib
import textwrap

from absl import flags

from input_pipeline.common.errors import ExpectedError, SettingError, UnusableError
from input_pipeline.common.settings import describe_range, describe_type, value_type
from input_pipeline.common.small_files import read_file, read_json
from input_pipeline.config import OF_AUGMENTATIONS, parse_augmentations
from train_lib import config as config_lib

PRESETS = pathlib.Path(__file__).parent / "presets"
HELP_FLAGS = ("--help", "--helpshort", "--helpfull", "-help", "-h", "-?")
LARGEST_FLAGFILE = 2**16  # bytes; ours have 2,000
EMPTY_IS_A_VALUE = ("cache_dir",)  # optional settings whose empty text does not mean "not given"; see their help
# {flag: the flags of a preset that were chosen for its value}. With another value, they go back to their defaults.
CHOSEN_TOGETHER = {"model": ("model_options", "dropout_rate"), "optimizer": ("momentum", "nesterov"), "schedule": ("triangle",)}
ON_RESUME = {"refuse": "refused", "tell": "reported", "ignore": "ignored"}
LIST_FLAGS = "--helpshort lists the flags"
_DEFINERS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


class _OrNotGiven(flags.ArgumentParser):
    """Reads an empty value as None, so that a flag can undo what a preset or a config.json sets."""

    def __init__(self, kind):
        self._parser = {int: flags.IntegerParser, float: flags.FloatParser, str: flags.ArgumentParser}[kind]()

    def parse(self, argument):
        return None if argument == "" else self._parser.parse(argument)


def _can_be_empty(field):
    return field.default is None and field.name not in EMPTY_IS_A_VALUE


def define(flag_values):
    """Registers one flag per setting in an absl `FlagValues`, and returns it. The settings check the ranges, not absl."""
    for _, field in config_lib.leaves():
        kind, about = value_type(field), (field.name, field.default, field.metadata["help"])
        if _can_be_empty(field):
            flags.DEFINE(_OrNotGiven(kind), *about, flag_values=flag_values)
        else:
            _DEFINERS[kind](*about, flag_values=flag_values)
    return flag_values


def parse(argv, flag_values):
    """Turns a command line, program name included, into an ExperimentConfig. `flag_values` comes from `define`.

    Raises absl.flags.Error if an argument is not a flag, and what `configure` raises.
    """
    return configure(given_flags(argv[1:], flag_values))


def configure(given):
    """Makes an ExperimentConfig from the flags that are given, {name: value}.

    They win over the preset. A mode other than train and sweep works on an existing run, so there the run's config.json wins over
    the preset too. Raises SettingError if a preset does not exist or a value cannot work, UnusableError if the config.json cannot
    be read.
    """
    defaults = _defaults() | given
    values = dict(_preset_values(defaults["preset"]))
    if defaults["mode"] not in ("train", "sweep"):
        values |= _stored_values(defaults["workdir"])
    for name, companions in CHOSEN_TOGETHER.items():
        chosen = values.get(name, _defaults()[name])
        if given.get(name, chosen) != chosen:
            values = {other: value for other, value in values.items() if other not in companions}
    for augmentation, companions in OF_AUGMENTATIONS.items():
        if "augment" in given and augmentation not in parse_augmentations(given["augment"]):
            values = {other: value for other, value in values.items() if other not in companions}
    config = config_lib.from_values(values | given)
    if config.general.mode in config_lib.TRAINING:
        config_lib.refuse_ignored_settings(config)
    return config


def given_flags(arguments, flag_values=None, place=""):
    """Returns {name: value} of our flags that the arguments contain; `place` names their file in errors."""
    flag_values = define(flags.FlagValues()) if flag_values is None else flag_values
    arguments = _expand_flagfiles(arguments)
    settings = {field.name: field for _, field in config_lib.leaves()}
    try:
        rest = flag_values(["main.py", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, settings, n=2)
        hint = f"did you mean --{' or --'.join(close)}?" if close else LIST_FLAGS
        raise SettingError(error.flagname, error.flagvalue.partition("=")[2], f"no such flag{place}; {hint}") from None
    except RecursionError:  # absl looks for similar names by a recursion over the letters
        raise flags.Error(f"no such flag{place}: one that has a very long name; {LIST_FLAGS}") from None
    except (flags.Error, ValueError) as error:  # absl raises ValueError for --nodebug=false
        name, _, value = str(error).removeprefix("flag --").removesuffix(f": {error.__context__}").partition("=")
        if isinstance(error, flags.IllegalFlagValueError) and name in settings:  # absl describes it in terms of Python
            wanted = ", ".join(filter(None, (describe_type(settings[name]), describe_range(settings[name]))))
            remedy = f"give {wanted}{', or nothing, which means not given' if _can_be_empty(settings[name]) else ''}{place}"
            raise SettingError(name, value, remedy) from None
        raise flags.Error(f"{' '.join(str(error).split())}{place}") from None
    if rest:
        raise flags.Error(f"{rest[0]!r}{place} is not a flag; write --name=value")
    return {name: flag_values[name].value for name in settings if flag_values[name].present}


def _expand_flagfiles(arguments):
    """Replaces each --flagfile by the flags in it. Not left to absl, which would decode them as the locale says.

    Raises SettingError if it is not a regular text file, is too large, or names another one.
    """
    expanded, rest = [], iter(arguments)
    for argument in rest:
        key, equals, path = argument.partition("=")
        if key not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        path = path if equals else next(rest, "")
        try:
            content = read_file(os.path.expanduser(path), LARGEST_FLAGFILE).decode(errors="surrogateescape")
        except (OSError, ValueError) as error:
            raise SettingError("flagfile", path, f"cannot be read ({error}); give the run.flags of a run") from None
        lines = [line.strip() for line in content.split("\n")]
        if any(line.startswith(("--flagfile", "-flagfile")) for line in lines):
            raise SettingError("flagfile", path, "names another flagfile; give both on the command line")
        expanded += [line for line in lines if line and not line.startswith(("#", "//"))]
    return expanded


def _stored_values(workdir):
    """The experiment as a run's config.json describes it, or without that its newest checkpoint; {} if there is neither."""
    if not workdir:
        return {}
    folder = pathlib.Path(os.path.expanduser(workdir))
    try:
        files = [folder / "config.json", *sorted(folder.glob("checkpoints/step-*/progress.json"), reverse=True)]
    except OSError as error:
        raise UnusableError(f"--workdir={workdir[:100]}: cannot be read ({error.strerror}); give another") from None
    path = next((path for path in files if os.path.exists(path)), None)
    if path is None:
        return {}
    try:
        content = read_json(path)
        content = content if path == files[0] else content["config"]
        stored = config_lib.to_values(config_lib.from_values(dict(content.items())))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SettingError) as error:
        remedy = "repair it, remove it and give the flags, or give another --workdir"
        raise UnusableError(f"{path}: is not the configuration of a run ({error}); {remedy}") from None
    return {name: value for name, value in stored.items() if name not in config_lib.OF_THIS_PROCESS}


def preset_names():
    """All presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.flags"))


def _preset_values(name):
    """{name: value} of the flags in a preset."""
    if name not in preset_names():
        raise SettingError("preset", name, f"no such preset; give one of {', '.join(preset_names())}")
    return _read_preset(PRESETS / f"{name}.flags")


@functools.cache  # a sweep asks for each of its runs
def _read_preset(path):
    return given_flags([f"--flagfile={path}"], place=f" in {path}")


def to_flagfile(config):
    """The text of a flagfile that repeats this run: every setting except the workdir, and a mode that is not the default."""
    left_out = {name: _defaults()[name] for name in ("mode", "sweep", "parallel", "dry_run")}
    return "".join(f"--{name}={flag_text(value)}\n" for name, value in config_lib.to_values(config).items()
                   if name != "workdir" and value != left_out.get(name, ...)
                   and (value is not None or name not in EMPTY_IS_A_VALUE))


def flag_text(value):
    """A value as it is written behind a flag; empty for None, which is "not given"."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def repeat_arguments(values):
    """The fewest arguments that make main.py train with the settings of a config.json.

    Returns None if there are none, for example because a preset or a value belongs to another version. The arguments are tried:
    they are parsed again, and must produce the same values.
    """
    if not values or not values.keys() <= _defaults().keys():
        return None
    wanted = _defaults() | values
    try:
        arguments = [f"--preset={wanted['preset']}"]
        if _parsed(arguments)["model"] != wanted["model"]:
            arguments.append(f"--model={wanted['model']}")  # first, because it drops values of the preset
        given = _parsed(arguments)
        arguments += [f"--{name}={flag_text(value)}" for name, value in wanted.items() if value != given[name]]
        return arguments if _parsed(arguments) == wanted else None
    except (ExpectedError, flags.Error):
        return None


def _defaults():
    return {field.name: field.default for _, field in config_lib.leaves()}


def _parsed(arguments):
    return config_lib.to_values(parse(["main.py", *arguments], define(flags.FlagValues())))


def help_text():
    """The flags in groups, each with its meaning, range and default."""
    lines = ["Trains AlexNet, and what you swap in for it, with a hand-written TensorFlow loop.", ""]
    lines += ["  python main.py                       trains on the embedded data set, no download", ""]
    lines += [f"Presets (--preset): {', '.join(preset_names())}", ""]
    chosen = " ".join(f"--{name}={flag_text(value)}" for name, value in _preset_values("quickstart").items())
    lines += textwrap.wrap(f"Without --preset, quickstart replaces these defaults: {chosen}", 110, break_on_hyphens=False)
    lines += ["", "A flag on the command line wins over the preset, and over the config.json of a run in --workdir.",
              'Where the default is "not given", an empty value undoes what these set: --preset=cifar10 --dropout_rate=',
              "(but --cache_dir= means: no cache).", "",
              'If a run resumes with another value, a flag is "refused" (exit code 2), "reported" (a line names both',
              'values, and the new one counts) or "ignored" (it is about the process, not about the experiment).', ""]
    for _, kind in config_lib.sections():
        lines += [kind.__doc__.splitlines()[0], ""]
        for field in dataclasses.fields(kind):
            limits = describe_range(field)
            default = "not given" if field.default is None else f"default {flag_text(field.default) or 'empty'}"
            on_resume = ON_RESUME[field.metadata["on_resume"]]
            text = f"{field.metadata['help']} ({limits + '; ' if limits else ''}{default}; on resume: {on_resume})"
            lines += textwrap.wrap(text, 110, initial_indent=f"  --{field.name:<26}", subsequent_indent=" " * 30)
        lines.append("")
    return "\n".join(lines)
