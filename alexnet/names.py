"""The names of the networks and of their options. Imports nothing heavy: a command line is complete at once."""

import difflib
import math
import typing

ALEXNETS = ("alexnet", "alexnet_tower", "alexnet_tower_sequential", "alexnet_mini", "alexnet_mini_sequential")
RESNETS = ("resnet20",)
OWN = ALEXNETS + RESNETS

# The classification networks of keras.applications, Keras 3.15.
APPLICATIONS = (
    *("ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge"),
    *("DenseNet121", "DenseNet169", "DenseNet201"),
    *("EfficientNetB0", "EfficientNetB1", "EfficientNetB2", "EfficientNetB3"),
    *("EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetB7"),
    *("EfficientNetV2B0", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3"),
    *("EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"),
    *("InceptionResNetV2", "InceptionV3"),
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large"),
    *("NASNetLarge", "NASNetMobile"),
    *("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
    *("VGG16", "VGG19"),
    "Xception",
)

ALL = OWN + APPLICATIONS


class Option(typing.NamedTuple):
    """One switch of a network: type and default.

    An int is one of `choices`, if any, else `low` or more; a float lies above 0 and is at most `high`.
    """

    kind: type
    default: bool | int | float
    choices: tuple = ()
    low: int = 1
    high: float = math.inf


_WIDTH = Option(float, 1.0, high=4.0)  # what the filters of every convolution are multiplied by, rounded, at least one
_TOWER = {
    "lrn": Option(bool, False),
    "overlapping_pooling": Option(bool, True),
    "dense_units": Option(int, 1024),
    "width": _WIDTH,
}
_MINI = {
    "lrn": Option(bool, False),
    "overlapping_pooling": Option(bool, False),
    "dense_units": Option(int, 4096),
    "dense7_relu": Option(bool, False),
    "width": _WIDTH,
}
# {network: {option: Option}}. The networks take their defaults from here and have none of their own.
OPTIONS = {
    "alexnet": {
        "lrn": Option(bool, True),
        "towers": Option(int, 2, choices=(1, 2)),
        "overlapping_pooling": Option(bool, True),
        "dense_units": Option(int, 4096),
        "cross_connection": Option(bool, True),
        "paper_init": Option(bool, True),
        "paper_biases": Option(bool, True),
    },
    "alexnet_tower": _TOWER,
    "alexnet_tower_sequential": _TOWER,
    "alexnet_mini": _MINI,
    "alexnet_mini_sequential": _MINI,
    "resnet20": {"projection": Option(bool, False)},
    **{name: {} for name in APPLICATIONS},
}


def check_name(name):
    """Raises ValueError, with the names that come close, where no network has this name."""
    if name in ALL:
        return
    by_lower_case = {known.lower(): known for known in ALL}
    close = [by_lower_case[match] for match in difflib.get_close_matches(str(name).lower(), by_lower_case)]
    every = f"give {', '.join(OWN)} or one of keras.applications"
    remedy = f"did you mean {' or '.join(close)}?" if close else every
    raise ValueError(f"no network is called {name!r}; {remedy}")


def parse_options(name, options):
    """Completes and checks the options of a network.

    Args:
      name: of a network, one of ALL.
      options: a text such as "lrn=false,towers=1", a dict such as {"lrn": False, "towers": 1}, or None.

    Returns:
      {option: value}, bools, ints and floats, of every option that the network has; defaults where none was given.

    Raises:
      ValueError: no such network, option or value; one line that names them and what is allowed.
    """
    check_name(name)
    given = dict(options) if isinstance(options, dict) else _split(options or "")
    known = OPTIONS[name]
    for key in given:
        if not known:
            raise ValueError(f"{name} takes no options, got {key!r}")
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}; it takes {', '.join(known)}")
    defaults = {key: option.default for key, option in known.items()}
    complete = {**defaults, **{key: _check(key, value, known[key]) for key, value in given.items()}}
    if complete.get("towers") == 1 and not complete["cross_connection"]:
        raise ValueError("cross_connection=false needs towers=2; one tower has nothing to cut")
    return complete


def _split(text):
    """{key: text of the value} of a comma list."""
    pairs = {}
    for item in text.split(",") if text.strip() else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"{item!r} is not an option; write a comma list of key=value, such as dense_units=256"
            )
        if key in pairs:
            raise ValueError(f"{key} is given twice, as {pairs[key]} and {value}")
        pairs[key] = value
    return pairs


def _check(key, value, option):
    """The typed value of one option, from its text or from a value of the right type."""
    if option.kind is bool:
        typed = {"true": True, "false": False}.get(str(value).lower())
        allowed, fits = "true or false", typed is not None
    elif option.kind is float:
        typed = _to_float(value)
        allowed = f"a number above 0 and at most {option.high:g}"
        fits = typed is not None and 0 < typed <= option.high
    else:
        typed = _to_int(value)
        allowed = " or ".join(map(str, option.choices)) or f"a whole number, {option.low} or more"
        fits = typed is not None and (typed in option.choices if option.choices else typed >= option.low)
    if not fits:
        raise ValueError(f"{key}={value} cannot be; give {allowed}")
    return typed


def _to_int(value):
    """`value` as an int if it is one, or the text of one; else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else None


def _to_float(value):
    """`value` as a float if it is a number, or the text of one; else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
