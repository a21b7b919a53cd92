import random

import keras
import numpy as np
import pytest

import alexnet
from alexnet import applications
from alexnet.layers import Dropout


@pytest.fixture
def tiny():
    """A small model with all kinds of layers that need adapting in the networks of keras.applications."""
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Rescaling(1 / 255, offset=-1, name="rescaling")(images)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm", momentum=0.9, epsilon=1e-4)(x)
    x = x + keras.layers.Dropout(0.2, noise_shape=(None, 1, 1, 1), name="drop_path")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    return keras.Model(images, keras.layers.Dense(3, name="dense")(x), name="tiny")


@pytest.mark.parametrize(
    ("name", "size", "precision"),
    [
        ("VGG16", 32, "float32"),
        ("ResNet50", 64, "bfloat16"),
        ("MobileNetV3Small", 32, "float16"),
        ("MobileNet", 32, "float64"),
    ],
)
def test_networks_give_logits(name, size, precision):
    model = alexnet.build(name, 7, (size, size, 3), precision=precision)
    reference = getattr(keras.applications, name)(weights=None, classes=7, input_shape=(size, size, 3))
    assert model.count_params() == reference.count_params()
    wide = "float64" if precision == "float64" else "float32"
    # Call it as in training: with the moving statistics of an untrained network, float16 activations vanish.
    logits = model(np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(wide), training=True)
    assert logits.shape == (2, 7) and logits.dtype == wide
    assert np.any(logits < 0), "probabilities, not logits"
    assert {layer.dtype_policy.name for layer in model.layers[1:-1]} == {alexnet.POLICIES[precision]}
    assert keras.config.dtype_policy().name == "float32"


def test_efficientnet_takes_normalized_pixels():
    model = alexnet.build("EfficientNetB0", 10, (32, 32, 3))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    before_conv = keras.Model(model.inputs[0], model.get_layer("stem_conv_pad").input)
    np.testing.assert_allclose(before_conv(x), x, rtol=1e-6)


def test_initial_weights_depend_on_the_seed_alone():
    states = []
    weights = []
    for seed in (1, 1, 2):
        random.seed(99)
        weights.append(alexnet.build("MobileNetV2", 10, (32, 32, 3), seed=seed).get_weights())
        states.append(random.getstate())
    random.seed(99)
    assert all(state == random.getstate() for state in states)
    assert all(map(np.array_equal, weights[0], weights[1]))
    kernels = [(a, b) for a, b in zip(weights[0], weights[2], strict=True) if a.ndim > 1]
    assert len(kernels) > 50 and not any(np.array_equal(a, b) for a, b in kernels)


def test_adapted_networks_keep_their_structure(tiny):
    adapted = applications.adapt(tiny)
    assert [layer.name for layer in adapted.layers] == [layer.name for layer in tiny.layers]
    assert [(w.path, w.shape) for w in adapted.weights] == [(w.path, w.shape) for w in tiny.weights]
    norm, drop_path, drop = (adapted.get_layer(name) for name in ("norm", "drop_path", "drop"))
    assert (norm.synchronized, norm.momentum, norm.epsilon) == (True, 0.9, 1e-4)
    assert isinstance(drop_path, Dropout) and isinstance(drop, Dropout)
    assert (drop_path.rate, drop_path.noise_shape, drop.rate) == (0.2, (None, 1, 1, 1), 0.5)
    assert drop_path.layer_index != drop.layer_index
    assert not tiny.get_layer("norm").synchronized, "the caller's model was changed"


def test_adapted_networks_compute_the_same_but_for_rescaling(tiny):
    adapted = applications.adapt(tiny)
    adapted.set_weights(tiny.get_weights())
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(adapted(pixels / 255 - 1), tiny(pixels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "smallest"), [("ResNet50", 16, "32x32"), ("InceptionV3", 32, "75x75")]
)
def test_images_too_small(name, size, smallest):
    with pytest.raises(ValueError) as caught:
        alexnet.build(name, 10, (size, size, 3), precision="bfloat16")
    message = str(caught.value)
    assert message.startswith(f"{name} cannot take images of {size}x{size}x3: ") and smallest in message
    assert "\n" not in message
    assert keras.config.dtype_policy().name == "float32"


def test_dropout_rate_is_refused():
    with pytest.raises(ValueError, match="dropout_rate 0.5 has no effect on VGG16"):
        alexnet.build("VGG16", 10, (32, 32, 3), dropout_rate=0.5)


def test_options_are_refused():
    with pytest.raises(ValueError, match="VGG16 takes no options, got 'lrn'"):
        alexnet.build("VGG16", 10, (32, 32, 3), options="lrn=true")
