"""The airbench network against NumPy, and the same ingredients in the AlexNets."""

import numpy as np
import pytest

import alexnet
from alexnet import names


def convolve(x, kernel, padding):
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bijchw,hwcf->bijf", windows, kernel)


def pooled(x):
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return x[:, :height, :width].reshape(len(x), height // 2, 2, width // 2, 2, -1).max(axis=(2, 4))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normalized(x):
    return (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-12)


def test_the_network_is_that_of_numpy():
    """Forward in training: another order of pool, norm and activation, or a bias too many, would give other logits."""
    model = alexnet.build("airbench", 10, (32, 32, 3), options="filters1=5,filters2=6,filters3=7", precision="float64", seed=4)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    weights = {weight.path: weight.numpy() for weight in model.weights}
    images = rng.normal(size=(3, 32, 32, 3))
    x = gelu(convolve(images, weights["whiten/kernel"], 0) + weights["whiten/bias"])
    for number in range(1, 7):
        x = convolve(x, weights[f"conv{number}/kernel"], 1)
        x = pooled(x) if number % 2 else x
        x = gelu(normalized(x) + weights[f"conv{number}_norm/beta"])
    expected = x.max(axis=(1, 2)) @ weights["logits/kernel"] / 9
    np.testing.assert_allclose(model(images, training=True), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("options", "trainable"), [("", 1971352), ("filters1=128,filters2=384,filters3=384", 4604440)])
def test_parameters_by_hand(options, trainable):
    """Six convolutions without bias, six biases of normalization, the bias of the whitening layer, a dense layer without bias."""
    model = alexnet.build("airbench", 10, (32, 32, 3), options=options)
    sizes = [int(size) for size in (options or "=64,=256,=256").replace(",", "=").split("=")[1::2]] if options else [64, 256, 256]
    channels, expected = 24, 24
    for size in (size for size in sizes for _ in range(2)):
        expected += channels * size * 9 + size
        channels = size
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == expected + 10 * channels == trainable
    frozen = [weight for weight in model.non_trainable_weights if "whiten" in weight.path]
    assert [tuple(weight.shape) for weight in frozen] == [(2, 2, 3, 24)]


def test_convolutions_begin_as_the_identity_and_the_rest_like_pytorchs():
    kernel = alexnet.build("airbench", 10, (32, 32, 3), seed=1).get_layer("conv1").kernel.numpy()  # 24 -> 64
    np.testing.assert_array_equal(kernel[1, 1, :, :24], np.eye(24))
    assert np.abs(kernel[..., :24]).sum() == 24
    bound, rest = 1 / np.sqrt(9 * 24), kernel[..., 24:]
    assert 0.99 * bound < np.abs(rest).max() <= bound and abs(rest.std() * np.sqrt(3) / bound - 1) < 0.02


ALL_INGREDIENTS = "norm=batch,norm_scale=false,activation=gelu,whiten=true,dirac=true,logit_scale=0.25"


@pytest.mark.parametrize("name", ["alexnet_tower", "alexnet_mini_sequential", "alexnet"])
def test_the_alexnets_take_the_same_ingredients(name):
    side = 64 if name == "alexnet" else 32
    plain = alexnet.build(name, 10, (side, side, 3), options="dense_units=8")
    model = alexnet.build(name, 10, (side, side, 3), options=f"dense_units=8,{ALL_INGREDIENTS}")
    layers = {layer.name: layer for layer in model.layers}
    for number in range(1, 6):
        assert layers[f"conv{number}"].use_bias is False and layers[f"conv{number}_norm"].scale is False
        assert plain.get_layer(f"conv{number}").use_bias
        start = plain.get_layer(f"conv{number}").bias.numpy()[0]  # 1 in some layers of the paper's network
        assert layers[f"conv{number}_norm"].beta.numpy()[0] == start
    images = np.random.default_rng(0).normal(size=(4, side, side, 3)).astype(np.float32)
    assert model(images, training=True).shape == plain(images).shape == (4, 10)
    np.testing.assert_allclose(model(images), 0.25 * np.array(model_until(model, "logits")(images)), rtol=1e-6)
    assert not any(layer.name.endswith("_relu") or "activation" in getattr(layer, "_flags", ()) for layer in model.layers)


def model_until(model, name):
    import keras

    return keras.Model(model.inputs, model.get_layer(name).output)


def test_whitening_moves_no_shape_of_the_alexnets():
    for name in names.ALEXNETS[1:]:
        plain = alexnet.build(name, 10, (32, 32, 3), options="dense_units=8")
        white = alexnet.build(name, 10, (32, 32, 3), options="dense_units=8,whiten=true")
        for layer in plain.layers:
            if hasattr(layer, "output") and layer.name != "images":
                assert white.get_layer(layer.name).output.shape == layer.output.shape
