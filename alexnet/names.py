"""Names of the networks and of their options. Does not import TensorFlow, so that flags are checked without a delay."""

import contextlib
import difflib
import math
import typing

ALEXNETS = ("alexnet", "alexnet_tower", "alexnet_tower_sequential", "alexnet_mini", "alexnet_mini_sequential")
AIRBENCHES = ("airbench",)
RESNETS = ("resnet20",)
OWN = ALEXNETS + AIRBENCHES + RESNETS

# The classification networks of keras.applications, Keras 3.15.
APPLICATIONS = (
    "ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge", "DenseNet121", "DenseNet169",
    "DenseNet201", "EfficientNetB0", "EfficientNetB1", "EfficientNetB2", "EfficientNetB3", "EfficientNetB4", "EfficientNetB5",
    "EfficientNetB6", "EfficientNetB7", "EfficientNetV2B0", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3",
    "EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L", "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2",
    "MobileNetV3Small", "MobileNetV3Large", "NASNetLarge", "NASNetMobile", "ResNet50", "ResNet101", "ResNet152", "ResNet50V2",
    "ResNet101V2", "ResNet152V2", "VGG16", "VGG19", "Xception",
)

ALL = OWN + APPLICATIONS


class Option(typing.NamedTuple):
    """One option of a network: its type and its default.

    A text must be one of `choices`. An int must be one of them, or at least 1 if there are none. A float must be above 0 and at
    most `high`.
    """

    kind: type
    default: bool | int | float | str
    choices: tuple = ()
    high: float = math.inf


_WIDTH = Option(float, 1.0, high=4.0)  # factor on the number of filters of every convolution; the result is rounded, at least 1
# Ingredients that came after the paper; see `alexnet.LayerMaker`. The AlexNets have none of them by default.
_LATER = {
    "norm": Option(str, "none", choices=("none", "batch")),
    "norm_scale": Option(bool, True),
    "activation": Option(str, "relu", choices=("relu", "gelu")),
    "whiten": Option(bool, False),
    "dirac": Option(bool, False),
    "logit_scale": Option(float, 1.0, high=1000.0),
}
_TOWER = {
    "lrn": Option(bool, False),
    "overlapping_pooling": Option(bool, True),
    "dense_units": Option(int, 1024),
    "width": _WIDTH,
    **_LATER,
}
_MINI = {
    "lrn": Option(bool, False),
    "overlapping_pooling": Option(bool, False),
    "dense_units": Option(int, 4096),
    "dense7_relu": Option(bool, False),
    "width": _WIDTH,
    **_LATER,
}
# {network: {option: Option}}. All defaults are here; the functions that build networks have no defaults of their own.
OPTIONS = {
    "alexnet": {
        "lrn": Option(bool, True),
        "towers": Option(int, 2, choices=(1, 2)),
        "overlapping_pooling": Option(bool, True),
        "dense_units": Option(int, 4096),
        "cross_connection": Option(bool, True),
        "paper_init": Option(bool, True),
        "paper_biases": Option(bool, True),
        **_LATER,
    },
    "alexnet_tower": _TOWER,
    "alexnet_tower_sequential": _TOWER,
    "alexnet_mini": _MINI,
    "alexnet_mini_sequential": _MINI,
    "airbench": {
        "filters1": Option(int, 64),
        "filters2": Option(int, 256),
        "filters3": Option(int, 256),
        "lrn": Option(bool, False),
        "norm": Option(str, "batch", choices=("none", "batch")),
        "norm_scale": Option(bool, False),
        "activation": Option(str, "gelu", choices=("relu", "gelu")),
        "whiten": Option(bool, True),
        "dirac": Option(bool, True),
        "logit_scale": Option(float, 1 / 9, high=1000.0),
    },
    "resnet20": {"projection": Option(bool, False)},
    **{name: {} for name in APPLICATIONS},
}


def check_name(name):
    """Raises ValueError if no network has this name. The message suggests similar names."""
    if name in ALL:
        return
    by_lower_case = {known.lower(): known for known in ALL}
    close = [by_lower_case[match] for match in difflib.get_close_matches(str(name).lower(), by_lower_case)]
    remedy = f"did you mean {' or '.join(close)}?" if close else f"give {', '.join(OWN)} or one of keras.applications"
    raise ValueError(f"no network is called {name!r}; {remedy}")


def parse_options(name, options):
    """Checks the options of a network and completes them with their defaults; returns {option: value} for all.

    `options` is a string such as "lrn=false,towers=1", a dict such as {"lrn": False, "towers": 1}, or None. Raises ValueError if
    the network, an option or a value does not exist; the message is one line and lists what is allowed.
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
        raise ValueError("cross_connection=false needs towers=2, because a single tower has no connection to cut")
    if complete.get("norm") == "none" and complete["norm_scale"] != defaults["norm_scale"]:
        raise ValueError(f"norm_scale={given['norm_scale']} needs norm=batch, because without it there is nothing to scale")
    return complete


def _split(text):
    """Splits a comma list into {key: value as text}."""
    pairs = {}
    for item in text.split(",") if text.strip() else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(f"{item!r} is not an option; write a comma list of key=value, such as dense_units=256")
        if key in pairs:
            raise ValueError(f"{key} is given twice: {pairs[key]} and {value}; give it once")
        pairs[key] = value
    return pairs


def _check(key, value, option):
    """The typed value of one option, from a string or from a value that already has the right type."""
    text, typed = str(value).lower(), None
    if option.kind is bool:
        typed, allowed = {"true": True, "false": False}.get(text), "true or false"
    elif option.kind is int:
        number = int(text) if text.isascii() and text.isdecimal() else 0
        typed = number if number >= 1 and number in (option.choices or (number,)) else None
        allowed = " or ".join(map(str, option.choices)) or "a whole number, 1 or more"
    elif option.kind is str:
        typed, allowed = (text if text in option.choices else None), " or ".join(option.choices)
    else:
        allowed = f"a number above 0 and at most {option.high:g}"
        with contextlib.suppress(ValueError):
            typed = float(text) if 0 < float(text) <= option.high else None
    if typed is None:
        raise ValueError(f"{key}={value} is not allowed; give {allowed}")
    return typed
