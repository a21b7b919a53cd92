"""The command line: one flag per setting, presets, and help in groups. Knows absl, not TensorFlow."""

import difflib
import os
import pathlib
import textwrap

from absl import flags

from input_pipeline.common.errors import ExpectedError, SettingError, UnusableError
from input_pipeline.common.settings import describe_range, describe_type, value_type
from input_pipeline.common.small_files import read_file, read_json
from train_lib import config as config_lib

PRESETS = pathlib.Path(__file__).parent / "presets"
HELP_FLAGS = ("--help", "--helpshort", "--helpfull", "-help", "-h", "-?")
LARGEST_FLAGFILE, LONGEST_NAME = 2**16, 64  # bytes, ours have 2,000; characters
_DEFINERS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define(flag_values):
    """Registers one flag per setting in an absl `FlagValues`. Ranges are judged by the settings, not by absl."""
    for _, field in config_lib.leaves():
        _DEFINERS[value_type(field)](field.name, field.default, field.metadata["help"], flag_values=flag_values)


def parse(argv, flag_values):
    """Reads a command line, preset first, so that a flag given by the user wins wherever it stands.

    A mode other than train looks at a run that is there, so what the flags leave open comes from the run's config.json.

    Args:
      argv: program name and arguments.
      flag_values: the absl `FlagValues` that `define` filled.

    Returns:
      A validated ExperimentConfig.

    Raises:
      SettingError: a preset, flag or value that does not exist or cannot work.
      UnusableError: a config.json that cannot be read.
      absl.flags.Error: a value that is not of its flag's type.
    """
    preset, mode, workdir = (_given(argv, flag_values, name) for name in ("preset", "mode", "workdir"))
    name = flag_values["preset"].default if preset is None else preset
    stored = {} if mode in (None, "train") else _stored_values(workdir)
    rest = _parse_into(flag_values, [argv[0], *_preset_arguments(name)], source=f" in {_preset_file(name)}")
    if rest[1:]:
        raise flags.Error(f"{rest[1]!r} in {_preset_file(name)} is not a flag; every line has the form --name=value")
    for key, value in stored.items():
        flag_values[key].value = value
    if _given(argv, flag_values, "model") not in (None, flag_values["model"].value):
        for key in ("model_options", "dropout_rate"):  # the preset chose them for the preset's own network
            flag_values[key].value = flag_values[key].default
    rest = _parse_into(flag_values, argv)
    if rest[1:]:
        raise flags.Error(f"{rest[1]!r} is not a flag; every argument has the form --name=value")
    return config_lib.from_values({field.name: flag_values[field.name].value for _, field in config_lib.leaves()})


def _parse_into(flag_values, argv, source=""):
    try:
        return flag_values(argv)
    except flags.UnrecognizedFlagError as error:
        known = [field.name for _, field in config_lib.leaves()]
        close = difflib.get_close_matches(error.flagname, known, n=2)
        hint = f"did you mean --{' or --'.join(close)}?" if close else "python main.py --helpshort lists the flags"
        raise SettingError(error.flagname, error.flagvalue, f"no such flag{source}; {hint}") from None
    except flags.IllegalFlagValueError as error:
        raise _wrong_type(error, source) from None
    except (flags.Error, ValueError) as error:  # absl raises the latter for --nodebug=false
        raise flags.Error(f"{str(error).strip()}{source}") from None


def _wrong_type(error, source):
    """The SettingError of a value that absl cannot read as its flag's type: absl's own says it in terms of Python."""
    settings = {field.name: field for _, field in config_lib.leaves()}
    name, _, value = str(error).removeprefix("flag --").removesuffix(f": {error.__context__}").partition("=")
    if name not in settings:  # a flag of absl's
        return flags.Error(f"{str(error).strip()}{source}")
    wanted = ", ".join(filter(None, (describe_type(settings[name]), describe_range(settings[name]))))
    return SettingError(name, value, f"give {wanted}{source}")


def _given(argv, flag_values, name):
    """The last value of a text flag on the command line (or in a --flagfile on it), None where it is not given."""
    given = None
    _check_flagfiles(argv[1:])
    try:
        arguments = flag_values.read_flags_from_files(argv[1:], force_gnu=True)
    except flags.Error as error:
        raise flags.Error(" ".join(str(error).split())) from None
    for position, argument in enumerate(arguments):
        key, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and len(key) > LONGEST_NAME:  # absl looks for those that come close by a recursion over it
            raise SettingError(key[:LONGEST_NAME] + "...", value, "no such flag; python main.py --helpshort lists the flags")
        if key == name and argument.startswith("-"):
            given = value if equals else next(iter(arguments[position + 1 :]), "")
    return given


def _check_flagfiles(arguments):
    """Refuses a --flagfile that is no plain text file, too large, or names another, before absl reads it."""
    for position, argument in enumerate(arguments):
        key, equals, path = argument.partition("=")
        if key not in ("--flagfile", "-flagfile"):
            continue
        path = path if equals else next(iter(arguments[position + 1 :]), "")
        try:
            lines = read_file(os.path.expanduser(path), LARGEST_FLAGFILE).decode().splitlines() if path else []
        except (OSError, ValueError) as error:
            raise SettingError("flagfile", path, f"cannot be read ({error}); give the run.flags of a run") from None
        if any(line.lstrip().startswith(("--flagfile", "-flagfile")) for line in lines):
            raise SettingError("flagfile", path, "names another flagfile; give both on the command line")


def _stored_values(workdir):
    """What a run's config.json, or where it is gone the newest checkpoint, says of the experiment; {} where there is none."""
    folder = pathlib.Path(os.path.expanduser(workdir or ""))
    try:
        checkpoints = sorted(folder.glob("checkpoints/step-*/progress.json"), reverse=True)
        files = [folder / "config.json", *checkpoints] if workdir else []
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


def _preset_file(name):
    return PRESETS / f"{name}.flags"


def preset_names():
    """All presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.flags"))


def _preset_arguments(name):
    if name not in preset_names():
        raise SettingError("preset", name, f"no such preset; give one of {', '.join(preset_names())}")
    lines = _preset_file(name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def to_flagfile(config):
    """The text of a flagfile that repeats this run: every setting that has a value, but for the workdir."""
    values = config_lib.to_values(config)
    lines = [f"--{name}={flag_text(value)}" for name, value in values.items() if value is not None and name != "workdir"]
    return "\n".join(lines) + "\n"


def flag_text(value):
    """A value as it is written behind a flag."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def repeat_arguments(values):
    """The fewest arguments that make main.py train with the settings of a config.json; None where no command line gives them.

    They are tried: parsed again, they must give the same values.
    """
    known = {field.name: field.default for _, field in config_lib.leaves()}
    if not values or not values.keys() <= known.keys():
        return None
    wanted = known | values
    try:
        arguments = [f"--preset={wanted['preset']}"]
        if _parsed(arguments)["model"] != wanted["model"]:
            arguments.append(f"--model={wanted['model']}")  # which changes what the preset gives
        given = _parsed(arguments)
        arguments += [f"--{name}={flag_text(value)}" for name, value in wanted.items() if value not in (None, given[name])]
        return arguments if _parsed(arguments) == wanted else None
    except (ExpectedError, flags.Error):  # a preset or a value of another version
        return None


def _parsed(arguments):
    flag_values = flags.FlagValues()
    define(flag_values)
    return config_lib.to_values(parse(["main.py", *arguments], flag_values))


def help_text():
    """The flags in groups, each with its default, range and meaning."""
    lines = ["Trains AlexNet, and what you swap in for it, with a hand-written TensorFlow loop.", ""]
    lines += ["  python main.py                       trains on the embedded data set, no download", ""]
    lines += [f"Presets (--preset): {', '.join(preset_names())}", ""]
    fields = list(config_lib.leaves())
    for section, kind in config_lib.sections():
        lines += [kind.__doc__.splitlines()[0], ""]
        for field in (field for name, field in fields if name == section):
            limits = describe_range(field)
            default = "not given" if field.default is None else f"default {flag_text(field.default) or 'empty'}"
            text = f"{field.metadata['help']} ({limits + '; ' if limits else ''}{default})"
            lines += textwrap.wrap(text, 110, initial_indent=f"  --{field.name:<26}", subsequent_indent=" " * 30)
        lines.append("")
    return "\n".join(lines)
