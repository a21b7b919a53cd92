"""The paper's network against NumPy, with each part on and off, and the table of the paper's details in docs/networks.md."""

import ast
import re

import numpy as np
import pytest
from helpers import ROOT

import alexnet
from alexnet import names
from tests.alexnet.test_layers import convolve, normalize
from tests.train_lib.test_config import values_of

PAPER = {"lrn": True, "towers": 2, "overlapping_pooling": True, "cross_connection": True}


def build(size=64, precision="float64", **options):
    return alexnet.build("alexnet", 10, (size, size, 3), options={"dense_units": 8, **options}, precision=precision)


def drawn_weights(model):
    """{layer: (kernel, bias)}, with values so large that every part of the network affects the logits."""
    generator = np.random.default_rng(0)
    layers = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    return {
        name: (generator.normal(0, np.sqrt(2 / np.prod(kernel.shape[:-1])), kernel.shape), generator.normal(size=bias.shape))
        for name, (kernel, bias) in layers.items()
    }


def forward(x, weights, *, lrn, towers, overlapping_pooling, cross_connection):
    """Sections 3.1 to 3.5, by hand: [b, height, width, 3] -> logits."""

    def conv(x, name, stride, padding, groups):
        kernel, bias = weights[name]
        parts = zip(np.split(x, groups, axis=-1), np.split(kernel, groups, axis=-1), strict=True)
        return np.maximum(np.concatenate([convolve(*part, stride, padding) for part in parts], axis=-1) + bias, 0)

    def pool(x):
        size = 3 if overlapping_pooling else 2
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::2, ::2].max(axis=(-2, -1))

    def norm(x):
        return normalize(x, radius=2, bias=2.0, alpha=1e-4, beta=0.75) if lrn else x

    x = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
    x = pool(norm(conv(x, "conv1", 4, 0, 1)))
    x = pool(norm(conv(x, "conv2", 1, 2, towers)))
    x = conv(x, "conv3", 1, 1, 1 if cross_connection else towers)
    x = conv(x, "conv4", 1, 1, towers)
    x = pool(conv(x, "conv5", 1, 1, towers)).reshape(len(x), -1)
    for name in ("dense6", "dense7"):
        x = np.maximum(x @ weights[name][0] + weights[name][1], 0)
    return x @ weights["logits"][0] + weights["logits"][1]


OFF = [{}, {"lrn": False}, {"overlapping_pooling": False}, {"towers": 1}, {"cross_connection": False}]


@pytest.mark.parametrize("off", OFF, ids=lambda off: ",".join(off) or "paper")
def test_the_network_is_that_of_numpy_with_each_part_on_or_off(off):
    """Logits differ if a part is at the wrong place, or if an option does nothing or switches another part."""
    model = build(**off)
    weights = drawn_weights(model)
    for name, values in weights.items():
        model.get_layer(name).set_weights(values)
    images = np.random.default_rng(1).uniform(-60, 60, (1, 64, 64, 3))  # the sum of response normalization then outweighs k
    expected = forward(images, weights, **PAPER | off)
    np.testing.assert_allclose(model(images), expected, rtol=1e-9)
    if off and weights["conv2"][0].shape[2] == 48 and weights["conv3"][0].shape[2] == 256:  # the paper's kernels fit
        assert np.max(np.abs(forward(images, weights, **PAPER) - expected)) > 1e-3 * np.max(np.abs(expected))


def test_conv_3_alone_joins_the_towers():
    """Count by hand: cutting the connection removes half of conv 3's weights. Then the two towers never see each other."""
    paper, cut = build(precision="float32"), build(precision="float32", cross_connection=False)
    assert paper.count_params() - cut.count_params() == 9 * 128 * 384


def test_the_papers_start_can_be_left_out():
    kernels, biases = (build(precision="float32", **{option: False}) for option in ("paper_init", "paper_biases"))
    for layer in (layer for layer in kernels.layers if layer.weights):
        kernel, bias = layer.get_weights()
        limit = np.sqrt(6 / np.prod(kernel.shape[:-1]))
        assert 0.9 * limit < np.abs(kernel).max() <= limit, layer.name
        assert set(bias) == {1.0 if layer.name in ("conv2", "conv4", "conv5", "dense6", "dense7") else 0.0}
        kernel, bias = biases.get_layer(layer.name).get_weights()
        assert not bias.any() and abs(kernel.std() / 0.01 - 1) < 5 / np.sqrt(2 * kernel.size), layer.name


def test_the_preset_has_the_papers_hyperparameters():
    """Sections 4 and 5."""
    config = values_of("--preset=imagenet")
    paper = {
        "model": "alexnet", "optimizer": "sgd", "global_batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 90,
        "learning_rate": 0.01, "schedule": "plateau", "image_size": 224, "augment": "crop,flip,pca_color", "test_crops": 10,
        "nesterov": False, "label_smoothing": 0, "dropout_rate": None, "warmup_epochs": 0,
    }
    assert {name: config[name] for name in paper} == paper
    options = names.parse_options("alexnet", config["model_options"])
    later = {"norm": "none", "activation": "relu", "whiten": False, "dirac": False, "logit_scale": 1.0, "norm_scale": True}
    assert options == {**PAPER, "dense_units": 4096, "paper_init": True, "paper_biases": True, **later}


# The table in docs/networks.md.


def rows():
    """The cells of each row of the table of the paper's details."""
    page = (ROOT / "docs" / "networks.md").read_text()
    table = re.search(r"<!-- paper -->\n(.*?)\n<!-- /paper -->", page, re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def defined(path):
    """Names of the functions, classes and constants in a file, including those inside classes."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0])
def test_what_the_table_names_is_there(cells):
    """A row without a test would be only a claim."""
    _, section, where, tests = cells
    assert re.fullmatch(r"[2-5](\.\d)?", section)
    places = re.findall(r"`([\w/.]+)`(?:: ((?:`\w+`(?:, )?)+))?", where)
    assert places
    for path, members in places:
        assert set(re.findall(r"\w+", members)) <= (defined(path) if members else set()), path
        assert (ROOT / path).is_file()
    named = re.findall(r"`([\w/]+)::(\w+)`", tests)
    assert named and len(named) == tests.count("`") / 2
    for file, test in named:
        assert test.startswith("test_") and test in defined(f"tests/{file}.py"), (file, test)


def test_the_table_has_every_detail():
    words = ("tower", "conv 3", "normalization", "pooling", "dropout", "weights", "biases", "colour", "decay", "plateau",
             "ten", "60,965,224", "crop")
    text = " ".join(cells[0] for cells in rows()).lower()
    assert [word for word in words if word not in text] == []
