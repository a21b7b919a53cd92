import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import alexnet

SMALL = ("alexnet_tower", "alexnet_tower_sequential", "alexnet_mini", "alexnet_mini_sequential")


def build(name="alexnet_tower", options="dense_units=16", image_shape=(32, 32, 3), **arguments):
    return alexnet.build(name, 10, image_shape, options=options, **arguments)


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def layers_but_input(model):
    return [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]


@pytest.mark.parametrize("name", ["alexnet", *SMALL])
def test_initial_weights_depend_on_the_seed_alone(name):
    shape = (64, 64, 3) if name == "alexnet" else (32, 32, 3)
    before = random.getstate(), np.random.get_state()[1].tolist(), keras.config.dtype_policy().name
    first, again, other = (build(name, image_shape=shape, seed=seed).get_weights() for seed in (3, 3, 4))
    assert (random.getstate(), np.random.get_state()[1].tolist(), keras.config.dtype_policy().name) == before
    assert all(map(np.array_equal, first, again))
    kernels = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1]
    assert len(kernels) == 8 and not any(np.array_equal(a, b) for a, b in kernels)
    starts = {tuple(np.sign(kernel.ravel()[:40])) for kernel, _ in kernels}
    assert len(starts) == 8, "two layers draw the same numbers"


FOREIGN = {"floatx": "float64", "epsilon": 0.1, "image_data_format": "channels_first", "dtype_policy": "mixed_bfloat16"}


def keras_settings():
    values = {name: getattr(keras.config, name)() for name in FOREIGN}
    return values | {"dtype_policy": values["dtype_policy"].name}


@pytest.fixture
def foreign_settings():
    """Keras with the settings of somebody else's keras.json or notebook."""
    before = keras_settings()
    for name, value in FOREIGN.items():
        getattr(keras.config, f"set_{name}")(value)
    yield
    for name, value in before.items():
        getattr(keras.config, f"set_{name}")(value)


BUILDS = [("alexnet", "dense_units=4", 64), ("alexnet_mini_sequential", "dense_units=4,lrn=true", 16), ("resnet20", None, 8),
          pytest.param("MobileNetV2", None, 32, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "options", "size"), BUILDS)
def test_keras_settings_of_others_change_nothing_and_stay(name, options, size, request):
    expected = build(name, options, (size, size, 3))
    request.getfixturevalue("foreign_settings")
    model = build(name, options, (size, size, 3))
    assert keras_settings() == FOREIGN
    assert [layer.dtype_policy.name for layer in model.layers] == [layer.dtype_policy.name for layer in expected.layers]
    for found, wanted in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted, strict=True)
    x = tf.constant(images(2, size, size, 3))
    np.testing.assert_array_equal(model(x), expected(x), strict=True)


def test_settings_of_others_come_back_after_an_error(foreign_settings):
    with pytest.raises(ValueError, match="at least 16x16"):
        build("alexnet_mini", image_shape=(4, 4, 3))
    assert keras_settings() == FOREIGN


@pytest.mark.parametrize(
    ("precision", "compute", "weights", "logits"),
    [
        ("float32", "float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "float32", "float32"),
        ("float16", "float16", "float32", "float32"),
        ("float64", "float64", "float64", "float64"),
    ],
)
@pytest.mark.parametrize("name", ["alexnet", "alexnet_tower", "alexnet_mini_sequential"])
def test_precision_reaches_every_layer(name, precision, compute, weights, logits):
    size = 64 if name == "alexnet" else 32
    model = build(name, "dense_units=16,lrn=true", (size, size, 3), precision=precision)
    computing = layers_but_input(model)
    assert {layer.compute_dtype for layer in computing[:-1]} == {compute}
    assert computing[-1].compute_dtype == logits
    assert {weight.dtype for weight in model.weights} == {weights}
    out = model(tf.cast(images(2, size, size, 3), weights))
    assert out.dtype == logits and np.all(np.isfinite(out))


def test_float64_does_not_pass_through_float32():
    x = images(2, 32, 32, 3).astype("float64")
    model = build(precision="float64")
    assert np.any(model(x) != model(x * (1 + 1e-12)))


@pytest.mark.parametrize(
    ("name", "options", "smallest"),
    [
        ("alexnet", "dense_units=4", 64),
        ("alexnet", "dense_units=4,overlapping_pooling=false", 36),
        ("alexnet_tower", "dense_units=4", 1),
        ("alexnet_tower", "dense_units=4,overlapping_pooling=false", 8),
        ("alexnet_mini", "dense_units=4", 16),
        ("alexnet_mini_sequential", "dense_units=4", 16),
    ],
)
def test_smallest_image(name, options, smallest):
    model = build(name, options, (smallest, smallest, 1))
    assert model(images(2, smallest, smallest, 1)).shape == (2, 10)
    if smallest == 1:
        return
    with pytest.raises(ValueError) as caught:
        build(name, options, (smallest - 1, 500, 3))
    message = (
        f"{name} cannot take images of {smallest - 1}x500: it needs at least {smallest}x{smallest} pixels"
    )
    assert str(caught.value) == message


def test_the_search_for_the_smallest_image_ends(monkeypatch):
    def fail(self, input_shape):
        raise ValueError("no size would do\nfor this layer")

    monkeypatch.setattr(keras.layers.MaxPooling2D, "compute_output_shape", fail)
    with pytest.raises(ValueError, match="^alexnet_tower cannot take images of 32x32: no size would do$"):
        build()


def test_another_backend_is_named(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="^Keras runs on jax; set the environment variable KERAS_BACKEND=tensorflow"):
        build()


@pytest.mark.parametrize("shape", [(40, 56, 1), (17, 33, 4)])
def test_other_image_shapes(shape):
    for name in SMALL:
        assert build(name, image_shape=shape)(images(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "alexnet_twoer"}, "alexnet_tower"),
        ({"options": "towers=1"}, "towers"),
        ({"image_shape": (32, 32)}, r"image_shape \(32, 32\)"),
        ({"image_shape": (32, 0, 3)}, r"image_shape \(32, 0, 3\)"),
        ({"image_shape": (None, None, 3)}, "image_shape"),
        ({"precision": "half"}, "precision 'half'"),
        ({"dropout_rate": 1.0}, "dropout_rate 1.0"),
    ],
)
def test_arguments_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="num_classes 0"):
        alexnet.build("alexnet_tower", 0, (32, 32, 3))


def test_a_saved_model_comes_back(tmp_path):
    model = build("alexnet_tower", "dense_units=16,lrn=true")
    model.save(tmp_path / "model.keras")
    x = images(2, 32, 32, 3)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


def test_model_fit_learns():
    x, y = images(32, 16, 16, 3), np.arange(32) % 10
    model = build("alexnet_tower", "dense_units=64", (16, 16, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    losses = model.fit(x, y, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
