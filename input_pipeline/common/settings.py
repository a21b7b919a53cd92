"""Settings: fields of frozen dataclasses that carry their own help, range and choices.

A setting is declared once. The command line, the help text, the validation and the JSON form all read that declaration.
"""

import dataclasses
import math
import types
import typing

from input_pipeline.common.errors import SettingError, is_plain

# What an int64 holds; JSON and the command line take whole numbers that no float can hold.
LARGEST = 2**63 - 1


ON_RESUME = ("refuse", "tell", "ignore")


def setting(default, help, *, low=None, above=None, high=None, below=None, choices=None, on_resume="tell"):  # noqa: A002
    """Declares one field of a configuration.

    Args:
      default: the value when none is given.
      help: the text that `--helpshort` shows.
      low, high: inclusive bounds, or None.
      above, below: exclusive bounds, or None.
      choices: the only values that are allowed, or None.
      on_resume: what happens if a run that has a checkpoint is started with another value. "refuse": exit with code 2.
        "tell": go on with the new value and print a line. "ignore": go on with the new value.
    """
    assert on_resume in ON_RESUME, on_resume
    bounds = {"low": low, "above": above, "high": high, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, "on_resume": on_resume, **bounds})


def value_type(field):
    """The plain type of a field: `float` for `float | None`, too."""
    alternatives = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    return next(kind for kind in alternatives if kind is not types.NoneType)


def describe_type(field):
    """What a value of a field is, in words, for errors."""
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[value_type(field)]


def describe_range(field):
    """The range of a field in words, for the help text and for errors; empty where anything goes."""
    limits = field.metadata
    if limits["choices"]:
        return "one of " + ", ".join(limits["choices"])
    words = [
        f"{words} {limits[bound]:.12g}"
        for bound, words in (("low", "at least"), ("above", "above"), ("high", "at most"), ("below", "below"))
        if limits[bound] is not None
    ]
    return " and ".join(words)


class Settings:
    """Base of the configuration dataclasses: every field is judged when the object is made.

    Raises:
      SettingError: a value has the wrong type, is not finite or lies outside its range.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Settings) or (value is None and field.default is None):
                continue
            self._check(field, value)

    @staticmethod
    def _check(field, value):
        kind, limits = value_type(field), field.metadata
        right_type = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not right_type or (isinstance(value, bool) and kind is not bool):
            raise SettingError(field.name, value, f"give {describe_type(field)}")
        if kind is str and not all(map(is_plain, value)):
            raise SettingError(field.name, value, "give a text without control characters")
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(field.name, value, f"give a finite number, {describe_range(field)}".rstrip(", "))
        if isinstance(value, int) and abs(value) > LARGEST:
            raise SettingError(field.name, value, f"give a number of at most {LARGEST}")
        inside = (
            (limits["low"] is None or value >= limits["low"])
            and (limits["above"] is None or value > limits["above"])
            and (limits["high"] is None or value <= limits["high"])
            and (limits["below"] is None or value < limits["below"])
            and (limits["choices"] is None or value in limits["choices"])
        )
        if not inside:
            raise SettingError(field.name, value, f"give a value that is {describe_range(field)}")
