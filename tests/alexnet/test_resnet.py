"""resnet20 against NumPy. A template: its first part works for any network here. Copy it and change the constants."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from drivers import Driver, make_config, random_split

import alexnet
from alexnet import names, resnet
from tests.alexnet.test_layers import convolve

NAME, IMAGE_SHAPE, OPTIONS = "resnet20", (32, 32, 3), {}
# Trainable parameters with 10 classes, by hand.
CONVOLUTIONS = 9 * (3 * 16 + 6 * 16 * 16 + (16 + 5 * 32) * 32 + (32 + 5 * 64) * 64)
PARAMETERS = CONVOLUTIONS + 2 * (7 * 16 + 6 * 32 + 6 * 64) + (64 + 1) * 10


def build(options=None, image_shape=IMAGE_SHAPE, **arguments):
    return alexnet.build(NAME, 10, image_shape, options=OPTIONS if options is None else options, **arguments)


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# Of any network.


@pytest.fixture(scope="module")
def model():
    return build()


def test_parameters_by_hand(model):
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == PARAMETERS == 269_722


def test_logits_and_precision(model):
    """The network returns logits, computes in the given precision, and its last layer in float32 or float64."""
    out = model(images(4, *IMAGE_SHAPE))
    assert out.shape == (4, 10) and out.dtype == "float32" and np.any(out < 0)
    for precision, compute in (("bfloat16", "bfloat16"), ("float64", "float64")):
        other = build(precision=precision)
        assert {layer.compute_dtype for layer in other.layers[1:-1]} == {compute}
        wide = "float64" if precision == "float64" else "float32"
        assert other.layers[-1].compute_dtype == wide and {weight.dtype for weight in other.weights} == {wide}
        assert other(tf.cast(images(2, *IMAGE_SHAPE), wide)).dtype == wide


def test_initial_weights_depend_on_the_seed_alone(model):
    state = np.random.get_state()[1].tolist()
    again, other = build(), build(seed=1)
    assert np.random.get_state()[1].tolist() == state
    kernels = [index for index, weight in enumerate(model.weights) if weight.ndim > 1]
    one, same, another = (network.get_weights() for network in (model, again, other))
    assert all(map(np.array_equal, one, same)) and not any(np.array_equal(one[i], another[i]) for i in kernels)
    assert len({tuple(np.sign(one[i].ravel()[:40])) for i in kernels}) == len(kernels), "two layers draw the same numbers"


def test_it_is_saved_and_comes_back(model, tmp_path):
    model.save(tmp_path / "model.keras")
    x = images(2, *IMAGE_SHAPE)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


def test_dropout_rate_reaches_it():
    assert [build(dropout_rate=rate).get_layer("dropout").rate for rate in (None, 0.25)] == [0.0, 0.25]


def test_its_name_and_options_are_known_without_tensorflow():
    assert NAME in names.OWN and NAME in names.OPTIONS
    with pytest.raises(ValueError, match="no option 'lrn'"):
        build("lrn=true")


@pytest.mark.parametrize("blocks_per_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_two_replicas_train_as_one(monkeypatch, blocks_per_size):
    """Fails if replicas use only their own statistics or equal dropout masks, or if a layer keeps a state of its own.

    The whole network is slow: the time that TensorFlow takes to trace a reduction over logical CPU devices grows with the graph.
    """
    monkeypatch.setattr(resnet, "BLOCKS_PER_SIZE", blocks_per_size)
    config = make_config(
        model=NAME, model_options="", precision="float64", dropout_rate=0.5, global_batch_size=8, steps_per_loop=3)
    one, two = (Driver(config, random_split(16), replicas) for replicas in (1, 2))
    losses, theirs = (driver.run(3)[2]["loss"] for driver in (one, two))
    assert len(np.unique(losses)) == 3
    np.testing.assert_allclose(theirs, losses, rtol=1e-9)
    for mine, other in zip(one.state.model.variables, two.state.model.variables, strict=True):
        np.testing.assert_allclose(other.numpy(), mine.numpy(), rtol=1e-9, atol=1e-12, err_msg=mine.path)


# Of this one.


def forward(x, weights, projection):
    """The forward pass at test time by hand (He et al., section 4.2 and figure 3), with weights found by their names."""

    def conv(x, name, stride=1):
        kernel = weights[f"{name}/kernel"]
        gamma, beta, mean, variance = (
            weights[f"{name}_norm/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance"))
        return gamma * (convolve(x, kernel, stride, kernel.shape[0] // 2) - mean) / np.sqrt(variance + 1e-5) + beta

    x = np.maximum(conv(x, "conv"), 0)
    for maps in (16, 32, 64):
        for number in (1, 2, 3):
            name, stride = f"maps{maps}_block{number}", 2 if number == 1 and maps > 16 else 1
            shortcut = x[:, ::stride, ::stride]
            if stride == 2:
                zeros = np.zeros_like(shortcut)
                shortcut = conv(x, f"{name}_shortcut", 2) if projection else np.concatenate([shortcut, zeros], axis=-1)
            x = np.maximum(conv(np.maximum(conv(x, f"{name}_conv1", stride), 0), f"{name}_conv2") + shortcut, 0)
    return x.mean(axis=(1, 2)) @ weights["logits/kernel"] + weights["logits/bias"]


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("size", [8, 7])
def test_the_network_is_that_of_numpy(projection, size):
    """Logits differ if a shortcut is half a pixel off, an activation is missing, or the statistics are wrong."""
    model = build({"projection": projection}, (size, size, 3), precision="float64")
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.ndim == 1:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    weights = {weight.path: weight.numpy() for weight in model.weights}
    x = generator.normal(size=(2, size, size, 3))
    np.testing.assert_allclose(model(x), forward(x, weights, projection), rtol=1e-9)


def test_projections_cost_what_they_have():
    """Counts option B by hand: two 1x1 convolutions and their normalization."""
    model = build({"projection": True})
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == PARAMETERS + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_initial_weights_are_normal_by_the_inputs_of_a_unit(model):
    for weight in model.trainable_weights:
        if weight.ndim > 1:
            kernel = weight.numpy()
            assert abs(kernel.std() / np.sqrt(2 / np.prod(kernel.shape[:-1])) - 1) < 5 / np.sqrt(2 * kernel.size), weight.path
