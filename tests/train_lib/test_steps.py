"""The update against Keras model.fit, NumPy and hand-computed cases."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from drivers import ZERO_ONE, Driver, make_config, random_split

from train_lib import steps
from train_lib.config import OptimizerConfig
from train_lib.optimizers import UPDATE_RULES, guarded, make_optimizers
from train_lib.state import PixelScaling, create_state, tensors_of

STEPS = 20


@pytest.fixture(scope="module")
def split():
    return random_split()


class LossPerStep(keras.callbacks.Callback):
    """The loss of each batch: Keras reports a running mean, reset here before each."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def fit(driver, optimizer, num_steps):
    """Trains the same network on the same batches by model.fit; returns losses and weights."""
    model = create_state(driver.config, driver.strategy, 10, driver.split.image_shape, ZERO_ONE).model
    dtype = driver.config.network.precision
    # Everything in the precision under test: Keras would hold the learning rate and the metrics in float32.
    keras.config.set_floatx(dtype)
    try:
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype))
        data = driver.batches().map(lambda batch: (tf.cast(batch["image"], dtype) / 255, batch["label"]))
        per_step = LossPerStep()
        model.fit(data, epochs=1, steps_per_epoch=num_steps, callbacks=[per_step], verbose=0, shuffle=False)
    finally:
        keras.config.set_floatx("float32")
    return np.array(per_step.losses), [variable.numpy() for variable in model.trainable_variables]


OPTIMIZERS = {
    "sgd": ({"optimizer": "sgd", "momentum": 0.875}, lambda: keras.optimizers.SGD(2.0**-6, momentum=0.875)),
    "nesterov": (
        {"optimizer": "sgd", "momentum": 0.875, "nesterov": True},
        lambda: keras.optimizers.SGD(2.0**-6, momentum=0.875, nesterov=True),
    ),
    "adam": ({"optimizer": "adam", "learning_rate": 2.0**-10}, lambda: keras.optimizers.Adam(2.0**-10)),
    "adamw": (
        {"optimizer": "adamw", "learning_rate": 2.0**-10, "weight_decay": 0.125},
        lambda: adamw_without_vectors(),
    ),
    "clipped": (
        {"optimizer": "sgd", "momentum": 0.875, "clip_global_norm": 0.25},
        lambda: keras.optimizers.SGD(2.0**-6, momentum=0.875, global_clipnorm=0.25),
    ),
}


def adamw_without_vectors():
    optimizer = keras.optimizers.AdamW(2.0**-10, weight_decay=0.125)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float64_equals_model_fit_over_20_steps(name, split):
    values, make_optimizer = OPTIMIZERS[name]
    driver = Driver(make_config(precision="float64", **values), split)
    losses, weights = fit(driver, make_optimizer(), STEPS)
    done, _, reports = driver.run(STEPS)
    assert done == STEPS
    assert len(np.unique(losses)) == STEPS
    np.testing.assert_allclose(reports["loss"], losses, rtol=1e-9)
    for ours, theirs in zip(driver.weights(), weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_float32_equals_model_fit_over_five_steps(name, split):
    values, make_optimizer = OPTIMIZERS[name]
    driver = Driver(make_config(**values), split)
    losses, _ = fit(driver, make_optimizer(), 5)
    *_, reports = driver.run(5)
    np.testing.assert_allclose(reports["loss"][:5], losses, rtol=1e-5)


def test_weight_decay_goes_into_the_momentum_and_spares_biases(split):
    """Paper, section 5: v <- 0.9 v - decay * rate * w - rate * gradient; w <- w + v. By hand, in NumPy, for three steps."""
    rate, momentum, decay = 2.0**-6, 0.875, 0.125
    config = make_config(precision="float64", momentum=momentum, weight_decay=decay)
    driver = Driver(config, split)
    model, iterator = driver.state.model, iter(driver.batches())
    weights = driver.weights()
    velocities = [np.zeros_like(weight) for weight in weights]
    for _ in range(3):
        batch = next(iterator)
        with tf.GradientTape() as tape:
            logits = model(tf.cast(batch["image"], tf.float64) / 255, training=True)
            loss = tf.reduce_mean(-tf.gather(tf.nn.log_softmax(logits), batch["label"], batch_dims=1))
        gradients = [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_variables)]
        for index, gradient in enumerate(gradients):
            decayed = decay * rate * weights[index] if weights[index].ndim > 1 else 0.0
            velocities[index] = momentum * velocities[index] - decayed - rate * gradient
            weights[index] = weights[index] + velocities[index]
        for variable, weight in zip(model.trainable_variables, weights, strict=True):
            variable.assign(weight)
    other = Driver(config, split)
    other.run(3)
    for ours, by_hand in zip(other.weights(), weights, strict=True):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-10, atol=1e-14)


def test_label_smoothing_equals_keras():
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(16, 7)), generator.integers(0, 7, 16).astype(np.int32)
    ours = steps.cross_entropy(tf.constant(labels), tf.constant(logits), 0.1).numpy()
    smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction=None, dtype="float64")
    np.testing.assert_allclose(ours, smooth(np.eye(7)[labels], logits).numpy(), rtol=1e-12)


def with_nan(batches, bad_step):
    """Batches of float images, with one NaN in that of `bad_step`."""

    def spoil(index, batch):
        images = tf.cast(batch["image"], tf.float32)
        nan = tf.one_hot(0, tf.size(images), on_value=np.nan, off_value=0.0)
        return {**batch, "image": tf.where(index == bad_step, images + tf.reshape(nan, tf.shape(images)), images)}

    return batches.enumerate().map(spoil)


# Everything that a step changes: each rule's own slots, decay, averages, slow weights, batch statistics.
CHANGED = {
    "momentum": {"momentum": 0.9, "weight_decay": 1e-3, "clip_global_norm": 1.0},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "no momentum": {"momentum": 0.0},
    "adam": {"optimizer": "adam", "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "weight_decay": 1e-3, "ema_decay": 0.9},
    "a rule of Keras": {"optimizer": "adam", "learning_rate": 1e-3},
    "float16": {"precision": "float16"},
    "lookahead": {"lookahead_steps": 2, "model": "airbench", "model_options": "filters1=4,filters2=6,filters3=8", "bias_rate": 4},
}


@pytest.mark.parametrize("bad_step", [0, 2])
@pytest.mark.parametrize("name", CHANGED)
def test_a_nonfinite_gradient_leaves_everything_untouched(split, bad_step, name, monkeypatch):
    """One NaN pixel makes a batch's loss NaN; all that a step changes stays what it was before it, in the steps after it too."""
    if name == "a rule of Keras":
        monkeypatch.setitem(UPDATE_RULES, "adam", lambda config: guarded(keras.optimizers.Lamb)(1e-3, name="lamb"))
    config = make_config(steps_per_loop=4, **CHANGED[name])
    driver, reached = Driver(config, split), Driver(config, split)
    first = tensors_of(reached.state)
    # Lookahead moves where a bad step comes after steps that it let go.
    ahead = [tf.constant([0, 0, 0.5, 0.25], tf.float64), tf.constant([0, 0, 1, 1])] if name == "lookahead" else []
    if bad_step:
        reached.loop(*reached.arguments(bad_step), *ahead)
    done, skipped, reports = driver.loop(*driver.arguments(4, lambda batches, shard: with_nan(batches, bad_step)), *ahead)
    assert (int(done), int(skipped)) == (bad_step + 1, 1)
    assert reports["finite"][: bad_step + 1].numpy().tolist() == [True] * bad_step + [False]
    found, expected = tensors_of(driver.state), tensors_of(reached.state)
    assert any((expected[tensor] != first[tensor]).any() for tensor in expected) == bool(bad_step)
    if name == "float16":  # the loss scale is what a skipped step may change
        assert found.pop("loss_scale/value") == expected.pop("loss_scale/value") / 2
        assert (found.pop("loss_scale/good_steps"), expected.pop("loss_scale/good_steps")) == (0, bad_step)
    for tensor, value in expected.items():
        np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)


@pytest.mark.parametrize("optimizer", UPDATE_RULES)
def test_weights_that_are_too_large_to_be_squared_stay_finite(split, optimizer):
    """The first step goes so far that the second has no finite loss."""
    config = make_config(steps_per_loop=4, optimizer=optimizer, learning_rate=1e25)
    driver, reached = Driver(config, split), Driver(config, split)
    assert driver.run(4)[:2] == (2, 1) and reached.run(1)[:2] == (1, 0)
    found = tensors_of(driver.state)
    for tensor, value in tensors_of(reached.state).items():
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)


def test_tolerated_nonfinite_steps_are_skipped_and_training_goes_on(split):
    config = make_config(steps_per_loop=4, max_nonfinite_steps=1)
    driver = Driver(config, split)
    done, skipped, reports = driver.run(4, lambda batches, shard: with_nan(batches, 1))
    assert skipped == 0
    assert done == 4
    assert reports["finite"].tolist() == [True, False, True, True]
    assert all(np.isfinite(weight).all() for weight in driver.weights())


def test_short_stretches_equal_one_long_one_and_do_not_trace_again(split):
    config = make_config(precision="float64", steps_per_loop=8)
    whole, parts = Driver(config, split), Driver(config, split)
    *_, reports = whole.run(8)
    iterator, losses = iter(parts.batches()), []
    rates = tf.constant(np.full(8, config.optimization.learning_rate))
    for first, count in ((0, 3), (3, 1), (4, 4)):
        *_, part = parts.loop(
            iterator, tf.constant(first, tf.int64), tf.constant(count), rates, tf.constant(0, tf.int64))
        losses += part["loss"].numpy()[:count].tolist()
    assert losses == reports["loss"].tolist()
    assert parts.loop.experimental_get_tracing_count() == 1


def test_pixels_are_scaled_on_the_device():
    pixels = PixelScaling(np.array([10.0, 20.0, 30.0]), np.array([1.0, 0.5, 0.25]))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    scaled = steps.scale_pixels(tf.constant(images), pixels, tf.float64).numpy()
    np.testing.assert_allclose(scaled, (images - [10.0, 20.0, 30.0]) * [1.0, 0.5, 0.25], rtol=1e-15)


def test_eager_and_compiled_losses_agree(split):
    """What --debug runs is what the compiled loop computes."""
    config = make_config(precision="float64", steps_per_loop=3)
    *_, compiled = Driver(config, split).run(3)
    driver = Driver(config, split)
    tf.config.run_functions_eagerly(True)
    try:
        *_, eager = driver.run(3)
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(eager["loss"], compiled["loss"], rtol=1e-12)


def test_every_optimizer_that_the_flag_allows_has_an_update_rule():
    """An unknown name used to become Adam, with the other kind of weight decay."""
    choices = OptimizerConfig.__dataclass_fields__["optimizer"].metadata["choices"]
    assert set(choices) <= UPDATE_RULES.keys()
    with pytest.raises(KeyError):
        make_optimizers(types.SimpleNamespace(optimizer="lamp"), [])
