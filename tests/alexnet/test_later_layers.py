"""The layers that came after the paper, against NumPy and Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.later_layers import BatchNormalization, Dirac, Gelu, PatchWhitening


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def wide(values):
    return tf.cast(values, tf.float64).numpy()


def normalized_both_ways(rng, dtype, training, **arguments):
    """(outputs, gradients, moving statistics) of Keras's layer and of ours, for the same values."""
    inputs = tf.constant(rng.normal(2.0, 3.0, (8, 5, 6, 7)), dtype)
    upstream, results = tf.constant(rng.normal(size=inputs.shape), dtype), []
    values = rng.normal(size=(4, 7)) ** 2 + 0.5
    for kind in (keras.layers.BatchNormalization, BatchNormalization):
        layer = kind(dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype, momentum=0.6, epsilon=1e-3, **arguments)
        layer.build(inputs.shape)
        for variable, value in zip([*layer.trainable_weights, layer.moving_mean, layer.moving_variance], values, strict=False):
            variable.assign(value)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
        wanted = [inputs, *(variable.value for variable in layer.trainable_weights)]
        gradients = tape.gradient(outputs, wanted, output_gradients=upstream)
        assert outputs.dtype == inputs.dtype
        results.append([wide(outputs), *map(wide, gradients), wide(layer.moving_mean), wide(layer.moving_variance)])
    return results


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12), ("bfloat16", 0.04)])
@pytest.mark.parametrize("arguments", [{}, {"scale": False}, {"center": False}])
def test_batch_normalization_is_that_of_keras(rng, dtype, tolerance, training, arguments):
    """A variance divided by the count minus 1, as the fused kernel returns it, would show in the moving statistics."""
    for expected, ours in zip(*normalized_both_ways(rng, dtype, training, **arguments), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


def test_a_frozen_batch_normalization_uses_and_keeps_its_moving_statistics(rng):
    layer = BatchNormalization(trainable=False)
    inputs = rng.normal(5.0, 1.0, (4, 3, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(layer(inputs, training=True), inputs / np.sqrt(1 + 1e-3), rtol=1e-5)
    assert layer.moving_mean.numpy().tolist() == [0, 0]


def test_batch_normalization_after_a_dense_layer(rng):
    inputs = rng.normal(size=(64, 5)).astype(np.float32)
    expected = (inputs - inputs.mean(axis=0)) / np.sqrt(inputs.var(axis=0) + 1e-3)
    np.testing.assert_allclose(BatchNormalization()(inputs, training=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 5e-6), ("float64", 1e-14), ("bfloat16", 2**-8), ("float16", 2**-10)])
def test_gelu_and_its_derivative(dtype, tolerance, training):
    """The derivative against differences of the formula in float64, far into both tails."""
    x = tf.cast(np.linspace(-9, 9, 721), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Gelu(dtype={"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}.get(dtype, dtype))(x, training=training)
    exact, h = wide(x), 1e-5

    def formula(x):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    assert y.dtype == x.dtype
    np.testing.assert_allclose(wide(y), formula(exact), rtol=tolerance, atol=tolerance)
    slope = (formula(exact + h) - formula(exact - h)) / (2 * h)
    np.testing.assert_allclose(wide(tape.gradient(y, x)), slope, rtol=max(2 * tolerance, 1e-9), atol=max(tolerance, 1e-9))


def correlated_images(rng, count=400):
    """Smooth images, whose neighbouring pixels and channels are alike."""
    noise = rng.normal(size=(count, 9, 9, 3))
    smooth = noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + noise[:, :-1, :-1]
    return smooth @ np.array([[1.0, 0.5, 0.1], [0.3, 1.0, 0.2], [0.0, 0.4, 1.0]])


def patches_of(images, size):
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    return np.moveaxis(windows, 3, -1).reshape(-1, size * size * images.shape[-1])


@pytest.mark.parametrize("size", [2, 3])
def test_whitening_decorrelates_patches(rng, size):
    """The first half of the outputs has the identity as its covariance; the second half is its negative."""
    images = correlated_images(rng)
    layer = PatchWhitening(size, dtype="float64")
    layer.build(images.shape)
    layer.fit(np.cov(patches_of(images, size), rowvar=False))
    outputs = layer(images).numpy()
    count = size * size * 3
    assert outputs.shape == layer.compute_output_shape(images.shape) == (400, 9 - size, 9 - size, 2 * count)
    values = outputs.reshape(-1, 2 * count)
    np.testing.assert_allclose(values[:, count:], -values[:, :count], atol=1e-12)
    variances = np.linalg.eigvalsh(np.cov(patches_of(images, size), rowvar=False))[::-1]
    np.testing.assert_allclose(np.cov(values[:, :count], rowvar=False), np.diag(variances / (variances + 5e-4)), atol=1e-9)


def test_only_the_bias_of_whitening_is_trained(rng):
    layer = PatchWhitening(2, padding="same")
    outputs = layer(np.ones((1, 4, 4, 3), np.float32))
    assert outputs.shape == (1, 4, 4, 24)
    assert [weight.name for weight in layer.trainable_weights] == ["bias"]
    assert [weight.name for weight in layer.non_trainable_weights] == ["kernel"]
    again = PatchWhitening.from_config(layer.get_config())
    np.testing.assert_array_equal(again(np.ones((1, 4, 4, 3), np.float32)), outputs)


def test_whitening_needs_a_patch():
    with pytest.raises(ValueError, match="smaller than a patch"):
        PatchWhitening(3).compute_output_shape((None, 2, 5, 3))


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 10, 1), (10, 4, 1), (6, 6, 1), (8, 12, 2), (8, 4, 2)])
@pytest.mark.parametrize("size", [3, 5])
def test_dirac_passes_its_input_on(rng, inputs, outputs, groups, size):
    """In each group, as far as there are channels; what is left is that of the other initializer."""
    rest = keras.initializers.HeUniform(3)
    layer = keras.layers.Conv2D(outputs, size, padding="same", groups=groups, kernel_initializer=Dirac(rest, groups))
    images = rng.normal(size=(2, 7, 7, inputs)).astype(np.float32)
    results, per_group = layer(images).numpy(), outputs // groups
    plain = np.array(rest(layer.kernel.shape))
    for channel in range(outputs):
        group, place = divmod(channel, per_group)
        if place < inputs // groups:
            np.testing.assert_allclose(results[..., channel], images[..., group * (inputs // groups) + place], rtol=1e-6)
        else:
            np.testing.assert_array_equal(layer.kernel.numpy()[..., channel], plain[..., channel])


def test_dirac_can_be_saved():
    initializer = keras.initializers.deserialize(keras.initializers.serialize(Dirac(keras.initializers.HeUniform(1), 2)))
    np.testing.assert_array_equal(initializer((3, 3, 4, 12)), Dirac(keras.initializers.HeUniform(1), 2)((3, 3, 4, 12)))
