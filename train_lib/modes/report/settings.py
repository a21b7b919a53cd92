"""The settings of a run as tables of report.html."""

from html import escape

from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib


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
