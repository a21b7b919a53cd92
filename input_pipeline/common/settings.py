"""Settings: fields of frozen dataclasses that carry their own help, range and choices.

A setting is declared once. The command line, the help text, the validation and the JSON form all read that declaration.
"""

import dataclasses
import math
import operator
import typing

from input_pipeline.common.errors import SettingError, is_plain

LARGEST = 2**63 - 1  # of an int64; JSON and the command line accept larger whole numbers, which no float can represent
ON_RESUME = ("refuse", "tell", "ignore")
_BOUNDS = {"low": (operator.ge, "at least"), "above": (operator.gt, "above"), "high": (operator.le, "at most"),
           "below": (operator.lt, "below")}


def setting(default, help, *, low=None, above=None, high=None, below=None, choices=None, on_resume="tell"):  # noqa: A002
    """Declares one field of a configuration. `low` and `high` are inclusive bounds, `above` and `below` exclusive ones.

    `on_resume` says what happens if a run that has a checkpoint is started with another value. "refuse": exit with code 2;
    "tell": go on with the new value and print a line; "ignore": go on with the new value.
    """
    assert on_resume in ON_RESUME, on_resume
    bounds = {"low": low, "above": above, "high": high, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, "on_resume": on_resume, **bounds})


def value_type(field):
    """The type of a field without None: `float` for `float | None`."""
    return (typing.get_args(field.type) or (field.type,))[0]


def describe_type(field):
    """The type of a field in words, for errors."""
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[value_type(field)]


def describe_range(field):
    """The range of a field in words, for the help text and for errors; empty if all values are allowed."""
    limits = field.metadata
    if limits["choices"]:
        return "one of " + ", ".join(limits["choices"])
    return " and ".join(f"{words} {limits[bound]:.12g}" for bound, (_, words) in _BOUNDS.items() if limits[bound] is not None)


class Settings:
    """The base of the configuration dataclasses. A value of the wrong type, or out of its range, raises SettingError."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Settings) and not (value is None and field.default is None):
                _check(field, value)


def _check(field, value):
    kind, limits = value_type(field), field.metadata
    right_type = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not right_type or (isinstance(value, bool) and kind is not bool):
        raise SettingError(field.name, value, f"give {describe_type(field)}")
    if kind is str and not all(is_plain(c) or "\udc80" <= c <= "\udcff" for c in value):  # the latter: bytes that are not UTF-8
        raise SettingError(field.name, value, "give a text without control characters")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(field.name, value, f"give a finite number, {describe_range(field)}".rstrip(", "))
    if isinstance(value, int) and abs(value) > LARGEST:
        raise SettingError(field.name, value, f"give a number of at most {LARGEST}")
    inside = all(limits[bound] is None or compare(value, limits[bound]) for bound, (compare, _) in _BOUNDS.items())
    if not inside or not (limits["choices"] is None or value in limits["choices"]):
        raise SettingError(field.name, value, f"give a value that is {describe_range(field)}")
