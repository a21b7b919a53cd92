import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.layers import GroupedConv2D, LocalResponseNormalization


def normalize(x, radius, bias, alpha, beta):
    """Section 3.3 of the paper, one channel at a time, in float64."""
    x = x.astype(np.float64)
    channels = x.shape[-1]
    out = np.empty_like(x)
    for c in range(channels):
        neighbours = x[..., max(0, c - radius) : min(channels, c + radius + 1)]
        out[..., c] = x[..., c] / (bias + alpha * (neighbours**2).sum(axis=-1)) ** beta
    return out


def convolve(x, kernel, stride, padding):
    """Cross-correlation of [B, H, W, C] with [h, w, C, F]; `padding` pixels of zeros on each side."""
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bijchw,hwcf->bijf", windows[:, ::stride, ::stride], kernel)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Activations must be this large to make the sum matter: with activations of size 1, alpha = 1e-4 would hide mistakes.
SCALE = 100.0


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13), ("mixed_bfloat16", 2**-8)]
)
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_response_normalization_is_the_papers(rng, dtype, tolerance, channels):
    layer = LocalResponseNormalization(dtype=dtype)
    x = tf.cast(SCALE * rng.normal(size=(2, 3, 4, channels)), layer.compute_dtype)
    out = layer(x)
    assert out.dtype == x.dtype and out.shape == x.shape
    expected = normalize(tf.cast(x, tf.float64).numpy(), 2, 2.0, 1e-4, 0.75)
    np.testing.assert_allclose(tf.cast(out, tf.float64), expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_response_normalization_takes_other_constants(rng, dtype):
    x = SCALE * rng.normal(size=(2, 2, 2, 9)).astype(dtype)
    layer = LocalResponseNormalization(depth_radius=1, bias=1.0, alpha=0.01, beta=0.5, dtype=dtype)
    np.testing.assert_allclose(layer(x), normalize(x, 1, 1.0, 0.01, 0.5), rtol=1e-5)


def test_response_normalization_does_not_overflow_in_float16(rng):
    layer = LocalResponseNormalization(dtype="mixed_float16")
    x = tf.constant(
        rng.choice([-400.0, 400.0], size=(1, 2, 2, 8)), tf.float16
    )  # 400**2 is more than float16 holds
    expected = normalize(x.numpy(), 2, 2.0, 1e-4, 0.75)
    np.testing.assert_allclose(layer(x), expected, rtol=2**-10)


def test_gradients_of_response_normalization_agree_in_float32_and_float64(rng):
    values = SCALE * rng.normal(size=(2, 3, 3, 8))
    gradients = {}
    for dtype in ("float32", "float64"):
        x = tf.constant(values, dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(LocalResponseNormalization(dtype=dtype)(x)))
        gradients[dtype] = tape.gradient(loss, x).numpy()
    np.testing.assert_allclose(gradients["float32"], gradients["float64"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "strides", "padding", "zeros"), [(5, 1, "same", 2), (3, 1, "same", 1), (3, 2, "valid", 0)]
)
def test_towers_are_separate_convolutions(rng, size, strides, padding, zeros):
    layer = GroupedConv2D(6, size, strides, padding, groups=2, dtype="float64", bias_initializer="ones")
    x = rng.normal(size=(2, 7, 9, 4))
    out = layer(x).numpy()
    kernel = layer.kernel.numpy()
    assert kernel.shape == (size, size, 2, 6)
    upper = convolve(x[..., :2], kernel[..., :3], strides, zeros)
    lower = convolve(x[..., 2:], kernel[..., 3:], strides, zeros)
    np.testing.assert_allclose(out, np.concatenate([upper, lower], axis=-1) + 1.0, rtol=1e-12, atol=1e-12)


def test_towers_agree_with_the_grouped_convolution_of_keras(rng):
    arguments = {"filters": 8, "kernel_size": 3, "padding": "same", "groups": 2, "activation": "relu"}
    ours, theirs = GroupedConv2D(**arguments), keras.layers.Conv2D(**arguments)
    x = rng.normal(size=(2, 6, 6, 4)).astype("float32")
    ours.build(x.shape)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    assert ours.groups == 2
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_towers_are_plain_convolutions_for_tensorflow():
    # Keras's own grouped layer calls a function compiled by XLA, which is many times slower on CPU.
    layer = GroupedConv2D(4, 3, groups=2)
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec([2, 5, 5, 4])).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("Conv2D") == 2 and not any("Call" in kind for kind in kinds)


def test_one_tower_does_not_see_the_other(rng):
    layer = GroupedConv2D(4, 3, padding="same", groups=2)
    x = rng.normal(size=(1, 5, 5, 4)).astype("float32")
    before = layer(x).numpy()
    x[..., 2:] += 1.0
    after = layer(x).numpy()
    np.testing.assert_array_equal(before[..., :2], after[..., :2])
    assert np.all(before[..., 2:] != after[..., 2:])


@pytest.mark.parametrize(
    "layer", [LocalResponseNormalization(3, 1.0, 0.1, 0.5), GroupedConv2D(4, 3, groups=2, activation="relu")]
)
def test_layers_can_be_rebuilt_from_their_configuration(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
