"""What report.html says of a run's settings: all of them, and the command that gives them again."""

from html import escape

from absl import flags

from input_pipeline.errors import ExpectedError
from train_lib import config as config_lib
from train_lib import flags as flags_lib


def table(values):
    """The settings that are not at their default, and behind a click all of them, as HTML.

    Args:
      values: {setting name: value}, of config.json.
    """
    groups = {}
    for section, field in config_lib.leaves():
        if field.name in values and field.name not in ("mode", "workdir"):
            groups.setdefault(section, []).append((field, values[field.name]))
    if not groups:
        return '<p class="missing">There is no config.json.</p>'
    changed = [(field, value) for fields in groups.values() for field, value in fields if value != field.default]
    every = "".join(f"<h3>{section.capitalize()}</h3>{_rows(fields, with_help=True)}" for section, fields in groups.items())
    return f"<p>What differs from the defaults:</p>{_rows(changed)}<details><summary>All settings</summary>{every}</details>"


def _rows(fields, with_help=False):
    rows = ""
    for field, value in fields:
        shown = "not given" if value is None else flags_lib.flag_text(value) or "empty"
        note = f'<td class="soft">{escape(field.metadata["help"])}</td>' if with_help else ""
        rows += f'<tr><th scope="row">--{field.name}</th><td>{escape(shown)}</td>{note}</tr>'
    return f'<table class="text"><tbody>{rows}</tbody></table>'


def repeat_arguments(values):
    """The fewest arguments that make main.py train with the settings of a config.json; None where no command line gives them.

    They are tried: parsed again, they must give the same values.
    """
    known = {field.name: field.default for _, field in config_lib.leaves()}
    if not values.keys() <= known.keys():
        return None
    wanted = known | values
    try:
        arguments = [f"--preset={wanted['preset']}"]
        if _parsed(arguments)["model"] != wanted["model"]:
            arguments.append(f"--model={wanted['model']}")  # which changes what the preset gives
        given = _parsed(arguments)
        arguments += [f"--{name}={flags_lib.flag_text(value)}" for name, value in wanted.items()
                      if value is not None and value != given[name]]
        return arguments if _parsed(arguments) == wanted else None
    except (ExpectedError, flags.Error):  # a preset or a value of another version
        return None


def _parsed(arguments):
    flag_values = flags.FlagValues()
    flags_lib.define(flag_values)
    return config_lib.to_values(flags_lib.parse(["main.py", *arguments], flag_values))
