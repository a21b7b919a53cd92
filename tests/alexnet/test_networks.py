import keras
import numpy as np
import pytest

import alexnet
from alexnet import alexnet as alexnet_networks
from alexnet.layers import GroupedConv2D

TOWER_SHAPES = {
    "conv1": (32, 32, 48), "pool1": (16, 16, 48), "conv2": (16, 16, 128), "pool2": (8, 8, 128),
    "conv3": (8, 8, 192), "conv4": (8, 8, 192), "conv5": (8, 8, 128), "pool5": (4, 4, 128),
    "flatten": (2048,), "dense6": (1024,), "dropout6": (1024,),
    "dense7": (1024,), "dropout7": (1024,), "logits": (10,),
}  # fmt: skip
MINI_SHAPES = {
    "conv1": (32, 32, 24), "pool1": (16, 16, 24), "conv2": (16, 16, 64), "pool2": (8, 8, 64),
    "conv3": (8, 8, 128), "conv4": (8, 8, 64), "pool4": (4, 4, 64), "conv5": (4, 4, 64), "pool5": (2, 2, 64),
    "flatten": (256,), "dense6": (4096,),
    "dropout6": (4096,), "dense7": (4096,), "dropout7": (4096,), "logits": (10,),
}  # fmt: skip
# Section 3.5 of the paper, kernels and biases by hand: (height * width * maps seen + 1) * filters.
PAPER_LAYERS = {
    "pad1": ((227, 227, 3), 0),
    "conv1": ((55, 55, 96), (11 * 11 * 3 + 1) * 96),
    "norm1": ((55, 55, 96), 0),
    "pool1": ((27, 27, 96), 0),
    "conv2": ((27, 27, 256), (5 * 5 * 48 + 1) * 256),
    "norm2": ((27, 27, 256), 0),
    "pool2": ((13, 13, 256), 0),
    "conv3": ((13, 13, 384), (3 * 3 * 256 + 1) * 384),
    "conv4": ((13, 13, 384), (3 * 3 * 192 + 1) * 384),
    "conv5": ((13, 13, 256), (3 * 3 * 192 + 1) * 256),
    "pool5": ((6, 6, 256), 0),
    "flatten": ((9216,), 0),
    "dense6": ((4096,), (9216 + 1) * 4096),
    "dropout6": ((4096,), 0),
    "dense7": ((4096,), (4096 + 1) * 4096),
    "dropout7": ((4096,), 0),
    "logits": ((1000,), (4096 + 1) * 1000),
}
SMALL = ("alexnet_tower", "alexnet_tower_sequential", "alexnet_mini", "alexnet_mini_sequential")


def build(name="alexnet_tower", options="dense_units=16", image_shape=(32, 32, 3), **arguments):
    return alexnet.build(name, 10, image_shape, options=options, **arguments)


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def layers_but_input(model):
    return [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]


@pytest.fixture(scope="module")
def paper():
    return alexnet.build("alexnet", 1000, (224, 224, 3), seed=1)


def test_paper_shapes_and_parameters(paper):
    actual = {layer.name: (layer.output.shape[1:], layer.count_params()) for layer in layers_but_input(paper)}
    assert actual == PAPER_LAYERS
    assert list(actual) == list(PAPER_LAYERS)
    assert paper.count_params() == 60_965_224
    assert paper(images(2, 224, 224, 3)).shape == (2, 1000)


def test_paper_initial_weights(paper):
    for layer in paper.layers:
        if not layer.weights:
            continue
        kernel, bias = layer.get_weights()
        expected_bias = 1.0 if layer.name in ("conv2", "conv4", "conv5", "dense6", "dense7") else 0.0
        np.testing.assert_array_equal(bias, expected_bias, err_msg=layer.name)
        # Five standard errors of the mean and of the standard deviation.
        assert abs(kernel.mean()) < 5 * 0.01 / np.sqrt(kernel.size), layer.name
        assert abs(kernel.std() / 0.01 - 1) < 5 / np.sqrt(2 * kernel.size), layer.name


def test_paper_has_two_towers_and_dropout_of_one_half(paper):
    groups = {layer.name: layer.groups for layer in paper.layers if isinstance(layer, keras.layers.Conv2D)}
    assert groups == {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "conv5": 2}
    assert all(isinstance(paper.get_layer(name), GroupedConv2D) for name in ("conv2", "conv4", "conv5"))
    assert [paper.get_layer(name).rate for name in ("dropout6", "dropout7")] == [0.5, 0.5]
    assert len({paper.get_layer(name).layer_index for name in ("dropout6", "dropout7")}) == 2


def test_one_tower_sees_all_maps():
    dense = (9216 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 10
    convolutions = (11 * 11 * 3 + 1) * 96 + (25 * 96 + 1) * 256 + (9 * 256 + 1) * 384
    convolutions += (9 * 384 + 1) * 384 + (9 * 384 + 1) * 256
    model = build("alexnet", "towers=1,dense_units=8", (224, 224, 3))
    assert model.count_params() == convolutions + dense


@pytest.mark.parametrize(
    ("name", "shapes", "parameters"),
    [("alexnet_tower", TOWER_SHAPES, 3_991_754), ("alexnet_mini", MINI_SHAPES, 18_075_242)],
)
@pytest.mark.parametrize("form", ["", "_sequential"])
def test_small_shapes_and_parameters(name, form, shapes, parameters):
    model = build(name + form, options=None)
    assert {layer.name: layer.output.shape[1:] for layer in layers_but_input(model)} == shapes
    assert [layer.name for layer in layers_but_input(model)] == list(shapes)
    assert model.count_params() == parameters
    assert isinstance(model, keras.Sequential) == bool(form)


@pytest.mark.parametrize("name", ["alexnet_tower", "alexnet_mini"])
def test_sequential_and_functional_forms_agree(name):
    functional, sequential = build(name, seed=1), build(name + "_sequential", seed=2)
    x = images(3, 32, 32, 3)
    assert np.any(functional(x) != sequential(x))
    sequential.set_weights(functional.get_weights())
    np.testing.assert_array_equal(functional(x), sequential(x))
    # The names of layers, not only their order, stay the same when more models are built in this process.
    assert [w.path for w in functional.weights] == [w.path for w in build(name, seed=3).weights]


def test_mini_is_the_listing_of_the_tutorial():
    layers = keras.layers
    listing = keras.Sequential([keras.Input((32, 32, 3))])
    for filters, size, pool in [(24, 5, True), (64, 3, True), (128, 3, False), (64, 3, True), (64, 3, True)]:
        listing.add(layers.Conv2D(filters, size, padding="same", activation="relu"))
        if pool:
            listing.add(layers.MaxPooling2D(2))
    for layer in (layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(64), layers.Dense(10)):
        listing.add(layer)
    model = build("alexnet_mini", "dense_units=64")
    listing.set_weights(model.get_weights())
    x = images(3, 32, 32, 3)
    np.testing.assert_allclose(model(x, training=True), listing(x, training=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet_tower", "alexnet_mini"])
def test_small_initial_weights_are_he_uniform(name):
    for layer in build(name, "dense_units=64").layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            limit = np.sqrt(6 / np.prod(kernel.shape[:-1]))
            assert np.abs(kernel).max() <= limit and np.all(bias == 0)
            assert abs(kernel.std() * np.sqrt(3) / limit - 1) < 5 / np.sqrt(kernel.size), layer.name


def test_options_change_what_they_name():
    kinds = [type(layer).__name__ for layer in build("alexnet_tower", "lrn=true,dense_units=16").layers]
    assert kinds.count("LocalResponseNormalization") == 2
    assert [layer.name for layer in build("alexnet_tower").layers if "norm" in layer.name] == []
    for overlapping, size in (("true", (3, 3)), ("false", (2, 2))):
        for name, shape in (
            ("alexnet", (6, 6, 256)),
            ("alexnet_tower", (4, 4, 128)),
            ("alexnet_mini", (2, 2, 64)),
        ):
            image_shape = (224, 224, 3) if name == "alexnet" else (32, 32, 3)
            model = build(name, f"dense_units=4,overlapping_pooling={overlapping}", image_shape)
            pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
            assert {layer.pool_size for layer in pools} == {size} and {layer.strides for layer in pools} == {
                (2, 2)
            }
            assert pools[-1].output.shape[1:] == shape
    for relu in (False, True):
        dense7 = build("alexnet_mini", {"dense_units": 16, "dense7_relu": relu}).get_layer("dense7")
        assert (dense7.activation is keras.activations.relu) == relu


def filters_of(model):
    return [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def test_width_multiplies_the_filters_of_every_convolution():
    """A convolution that ignores the width, or rounds to 0 filters, would still train."""
    assert filters_of(build("alexnet_mini", "width=0.1")) == [2, 6, 13, 6, 6]
    assert filters_of(build("alexnet_tower", "width=0.5")) == [24, 64, 96, 96, 64]
    assert filters_of(build("alexnet_mini_sequential", "width=2,dense_units=4")) == [48, 128, 256, 128, 128]
    assert filters_of(build("alexnet_tower", "width=0.001,dense_units=4")) == [1, 1, 1, 1, 1]


def test_the_small_network_of_the_benchmark_takes_a_hundredth_of_the_work():
    """Counts the docstring's figures by hand. The benchmark relies on this network being small."""
    convolutions = [(32, 25 * 3, 2), (16, 9 * 2, 6), (8, 9 * 6, 13), (8, 9 * 13, 6), (4, 9 * 6, 6)]
    dense = [(24, 256), (256, 256), (256, 10)]
    parameters = sum((seen + 1) * filters for _, seen, filters in convolutions) + sum((n + 1) * m for n, m in dense)
    multiply_adds = sum(size**2 * seen * filters for size, seen, filters in convolutions) + sum(n * m for n, m in dense)
    assert build("alexnet_mini", "width=0.1,dense_units=256").count_params() == parameters == 76_781
    assert multiply_adds == 350_528
    documented = alexnet_networks.alexnet_mini.__doc__
    assert f"{parameters:,}" in documented and f"{multiply_adds:,}" in documented


@pytest.mark.parametrize("name", SMALL)
def test_dropout_rate_reaches_both_dense_layers(name):
    own = 0.5 if "tower" in name else 0.0
    for given, expected in ((None, own), (0.0, 0.0), (0.25, 0.25)):
        model = build(name, dropout_rate=given)
        assert [model.get_layer(layer).rate for layer in ("dropout6", "dropout7")] == [expected, expected]
