import inspect

import keras
import pytest

from alexnet import names


def test_applications_are_those_of_keras():
    constructors = {name for name, value in vars(keras.applications).items() if inspect.isfunction(value)}
    assert set(names.APPLICATIONS) == constructors
    assert len(names.ALL) == len(set(names.ALL)) == len(names.OWN) + len(names.APPLICATIONS)


def test_every_network_has_an_options_table():
    assert set(names.OPTIONS) == set(names.ALL)


@pytest.mark.parametrize("name", names.ALL)
def test_known_names_pass(name):
    names.check_name(name)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("alexnet_towr", "alexnet_tower"),
        ("resnet50", "ResNet50"),
        ("vgg-16", "VGG16"),
        ("something else entirely", "alexnet_mini"),
    ],
)
def test_unknown_name_says_what_comes_close(wrong, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        names.check_name(wrong)
    assert repr(wrong) in str(caught.value) and "\n" not in str(caught.value)


LATER = {"norm": "none", "norm_scale": True, "activation": "relu", "whiten": False, "dirac": False, "logit_scale": 1.0}


def test_options_of_the_paper_are_the_default():
    paper = {"lrn": True, "towers": 2, "overlapping_pooling": True, "dense_units": 4096, "cross_connection": True,
             "paper_init": True, "paper_biases": True, **LATER}
    assert names.parse_options("alexnet", "") == names.parse_options("alexnet", None) == paper


def test_text_becomes_typed_values():
    options = names.parse_options("alexnet", "lrn=false, towers=1,overlapping_pooling=False ,dense_units=256")
    others = {"cross_connection": True, "paper_init": True, "paper_biases": True, **LATER}
    assert options == {"lrn": False, "towers": 1, "overlapping_pooling": False, "dense_units": 256} | others
    assert [type(value) for value in options.values()][:7] == [bool, int, bool, int, bool, bool, bool]
    text = "norm=Batch,norm_scale=false,activation=gelu,whiten=true,dirac=true,logit_scale=0.5"
    later = names.parse_options("alexnet_tower", text)
    assert {name: later[name] for name in LATER} == {
        "norm": "batch", "norm_scale": False, "activation": "gelu", "whiten": True, "dirac": True, "logit_scale": 0.5}


def test_dict_and_text_agree():
    given = {"lrn": True, "dense_units": 8}
    assert names.parse_options("alexnet_mini", given) == names.parse_options(
        "alexnet_mini", "lrn=true,dense_units=8"
    )


@pytest.mark.parametrize(("given", "expected"), [("0.1", 0.1), ("4", 4.0), ("2.5e-1", 0.25), (2, 2.0), (0.5, 0.5)])
def test_width_is_a_float_however_it_is_written(given, expected):
    """If an int stayed an int, `config.json` and the command line would disagree on the options of the same run."""
    options = names.parse_options("alexnet_mini", {"width": given})
    assert options["width"] == expected and type(options["width"]) is float
    assert names.parse_options("alexnet_mini", f"width={given}") == options


def test_what_was_parsed_can_be_parsed_again():
    for name in names.ALL:
        options = names.parse_options(name, None)
        assert names.parse_options(name, options) == options


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("alexnet", "lnr=true", ["lnr", "lrn, towers, overlapping_pooling, dense_units"]),
        ("alexnet_tower", "towers=2", ["alexnet_tower", "towers", "dense_units"]),
        ("alexnet", "towers=1,cross_connection=false", ["cross_connection=false", "towers=2"]),
        ("alexnet", "lrn=1", ["lrn=1", "true or false"]),
        ("alexnet_mini", "norm=layer", ["norm=layer", "none or batch"]),
        ("alexnet_tower", "norm_scale=false", ["norm_scale=false", "norm=batch"]),
        ("airbench", "activation=", ["activation", "key=value"]),
        ("airbench", "width=2", ["airbench", "width", "filters1"]),
        ("alexnet", {"lrn": 0}, ["lrn=0", "true or false"]),
        ("alexnet", "towers=3", ["towers=3", "1 or 2"]),
        ("alexnet", {"towers": True}, ["towers=True", "1 or 2"]),
        ("alexnet", "dense_units=0", ["dense_units=0", "1 or more"]),
        ("alexnet", "dense_units=-4", ["dense_units=-4", "1 or more"]),
        ("alexnet", "dense_units=4.5", ["dense_units=4.5", "whole number"]),
        ("alexnet", {"dense_units": 4.5}, ["dense_units=4.5", "whole number"]),
        ("alexnet", "dense_units", ["dense_units", "key=value"]),
        ("alexnet_mini", "width=0", ["width=0", "above 0 and at most 4"]),
        ("alexnet_mini", "width=4.01", ["width=4.01", "at most 4"]),
        ("alexnet_mini", "width=nan", ["width=nan", "a number"]),
        ("alexnet_tower", "width=wide", ["width=wide", "a number"]),
        ("alexnet_tower", {"width": True}, ["width=True", "a number"]),
        ("alexnet_tower", {"width": None}, ["width=None", "a number"]),
        ("alexnet", "width=0.5", ["alexnet", "width"]),
        ("alexnet", "lrn=", ["lrn=", "key=value"]),
        ("alexnet", "lrn=true,,towers=1", ["key=value"]),
        ("alexnet", "lrn=true,lrn=false", ["lrn", "twice"]),
        ("VGG16", "lrn=true", ["VGG16", "no options", "lrn"]),
        ("alxnet", "lrn=true", ["alxnet", "alexnet"]),
    ],
)
def test_wrong_options_are_named_in_one_line(name, options, words):
    with pytest.raises(ValueError) as caught:
        names.parse_options(name, options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
