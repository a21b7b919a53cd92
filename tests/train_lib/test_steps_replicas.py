"""N replicas against one, in one process on logical CPU devices; and each safeguard broken on purpose, to see the tests fail."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from drivers import ZERO_ONE, Driver, make_config, random_split

from alexnet.layers import Dropout
from train_lib import steps
from train_lib.optimizers import LossScale, make_optimizers
from train_lib.state import TrainState

STEPS = 4
# Clipping far below the gradient's norm, so that where it is done matters.
EVERYTHING = {"precision": "float64", "dropout_rate": 0.5, "clip_global_norm": 0.5, "weight_decay": 1e-3, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def split():
    return random_split()


def train(split, num_replicas=1, num_steps=STEPS, **values):
    driver = Driver(make_config(**EVERYTHING | values), split, num_replicas)
    done, _, reports = driver.run(num_steps)
    assert done == num_steps
    return driver, reports["loss"][:num_steps]


@pytest.fixture(scope="module")
def reference(split):
    """What one replica computes, and its final weights."""
    driver, losses = train(split)
    assert len(np.unique(losses)) == STEPS
    return driver.weights(), losses


def difference(reference, driver, losses):
    """The largest relative difference of losses and weights."""
    pairs = [(losses, reference[1]), *zip(driver.weights(), reference[0], strict=True)]
    return max(float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))) for ours, theirs in pairs)


@pytest.mark.parametrize(("num_replicas", "parts"), [
    (2, 1), (1, 4), (2, 4), *(pytest.param(4, parts, marks=pytest.mark.slow) for parts in (1, 2))])
def test_replicas_and_parts_equal_the_large_batch(split, reference, num_replicas, parts):
    """Clipping too early, means of means, masks drawn anew or the wrong rows of the batch would each show at once."""
    assert difference(reference, *train(split, num_replicas, accumulate_steps=parts)) < 1e-9


def clip_before_the_reduction(monkeypatch):
    compute = steps.replica_sums

    def clipped(state, config, batch, step):
        gradients, sums = compute(state, config, batch, step)
        return tf.clip_by_global_norm(gradients, config.optimization.clip_global_norm)[0], sums

    monkeypatch.setattr(steps, "replica_sums", clipped)


def mean_over_the_replica(monkeypatch):
    """What a Keras loss with its default reduction does, once the gradients are summed."""
    compute = steps.replica_sums

    def averaged(*arguments):
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        return tf.nest.map_structure(lambda tensor: tensor * replicas, compute(*arguments))

    monkeypatch.setattr(steps, "replica_sums", averaged)


def equal_masks_on_every_replica(monkeypatch):
    masks = steps.dropout_masks
    monkeypatch.setattr(steps, "dropout_masks", lambda seed, step, first_example: masks(seed, step, 0))


def no_reduction(monkeypatch):
    monkeypatch.setattr(steps, "sum_over_replicas", lambda tensors: tensors)


MISTAKES = [clip_before_the_reduction, mean_over_the_replica, equal_masks_on_every_replica, no_reduction]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_equality_would_show(split, reference, monkeypatch, mistake):
    """A proof that cannot fail proves nothing: each known mistake parts two replicas from one by far more than rounding."""
    mistake(monkeypatch)
    assert difference(reference, *train(split, 2)) > 1e-4


def test_float32_stays_within_rounding_over_five_steps(split):
    values = {"precision": "float32", "num_steps": 5, "learning_rate": 0.01}
    one, four = train(split, **values)[1], train(split, 4, **values)[1]
    np.testing.assert_allclose(four, one, rtol=1e-5)


@pytest.mark.slow
def test_xla_computes_the_same(split, reference):
    """Other masks, or a reduction that was compiled away, would show."""
    assert difference(reference, *train(split, 2, xla="on")) < 1e-9


def test_a_step_has_one_all_reduce(split, monkeypatch):
    """One call for each of many small tensors costs its latency as often."""
    called = []
    context = tf.distribute.ReplicaContext
    all_reduce = context.all_reduce
    monkeypatch.setattr(context, "all_reduce", lambda self, op, value: (called.append(value), all_reduce(self, op, value))[1])
    driver = Driver(make_config(**EVERYTHING), split, 2)
    driver.run(1)
    assert [tensor.shape.rank for tensor in called] == [1, 1]  # one vector on each replica
    weights = sum(variable.numpy().size for variable in driver.state.model.trainable_variables)
    # One number per metric that is summed over examples.
    assert weights + 2 <= called[0].shape.num_elements() <= weights + len(steps.METRICS)


def test_a_step_has_one_collective_operation(split):
    """The same in the graph, where the strategy reduces by collectives, as on GPUs and between machines."""
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    driver = Driver(make_config(**EVERYTHING, accumulate_steps=2), split, strategy=strategy)
    graph = driver.loop.get_concrete_function(*driver.arguments(1)).graph.as_graph_def()
    operations = [node.op for function in graph.library.function for node in function.node_def] + [n.op for n in graph.node]
    assert operations.count("CollectiveReduceV2") == 2  # on each of two replicas


def batch_normalized(config):
    """A small network with synchronized batch normalization, as `alexnet.applications` makes them."""
    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3), dtype="float64")
    hidden = keras.layers.Conv2D(8, 5, 4, activation="relu", dtype="float64")(images)
    hidden = keras.layers.BatchNormalization(synchronized=True, momentum=0.5, dtype="float64")(hidden)
    hidden = Dropout(0.5, 0, dtype="float64")(keras.layers.Flatten(dtype="float64")(hidden))
    model = keras.Model(images, keras.layers.Dense(10, dtype="float64")(hidden))
    return TrainState(model, make_optimizers(config.optimization, model.trainable_variables), ZERO_ONE)


def drive_batch_normalized(split, num_replicas, num_steps=STEPS, spoil=lambda batches, shard: batches):
    config = make_config(**EVERYTHING)
    driver = Driver(config, split, num_replicas, lambda: batch_normalized(config))
    _, skipped, reports = driver.run(num_steps, spoil)
    statistics = [variable.numpy() for variable in driver.state.model.non_trainable_weights]
    return driver, reports["loss"][:num_steps], statistics, skipped


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_batch_normalization_sees_the_whole_batch(split, num_replicas):
    """Statistics of each replica's own share would give other losses, gradients and moving averages."""
    one, losses, statistics, _ = drive_batch_normalized(split, 1)
    several, their_losses, their_statistics, _ = drive_batch_normalized(split, num_replicas)
    assert difference((one.weights(), losses), several, their_losses) < 1e-9
    for ours, theirs in zip(statistics, their_statistics, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-12)


def with_infinity(batches, shard):
    """Batches of float images; those of the second replica hold an infinity."""

    def spoil(batch):
        images = tf.cast(batch["image"], tf.float32)
        infinity = tf.reshape(tf.one_hot(0, tf.size(images), on_value=np.inf, off_value=0.0), tf.shape(images))
        return {**batch, "image": images + infinity if shard.first_replica == 1 else images}

    return batches.map(spoil)


def test_an_infinity_on_the_second_replica_touches_nothing(split):
    """Checked on replica 0 only, or before the reduction, it made every weight infinite (Keras's LossScaleOptimizer)."""
    driver, losses, statistics, skipped = drive_batch_normalized(split, 2, 1, with_infinity)
    fresh = Driver(driver.config, split, 2, lambda: batch_normalized(driver.config))
    assert skipped == 1 and not np.isfinite(losses).any()
    for ours, before in zip(driver.weights(), fresh.weights(), strict=True):
        np.testing.assert_array_equal(ours, before)
    for ours, before in zip(statistics, fresh.state.model.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(ours, before.numpy())


def test_looking_at_replica_0_alone_would_show(split, monkeypatch):
    no_reduction(monkeypatch)
    driver = Driver(make_config(**EVERYTHING), split, 2)
    driver.run(1, with_infinity)
    weights = [value.numpy() for v in driver.state.model.trainable_variables for value in v.value.values]
    assert not all(np.isfinite(weight).all() for weight in weights)


# float16 and its loss scale. A narrow network, because float16 convolutions have slow kernels on CPUs.

FLOAT16 = {"precision": "float16", "model_options": "width=0.25,dense_units=64"}


@contextlib.contextmanager
def gradients_overflow_on(monkeypatch, replica, where=lambda step: True):
    """Makes the gradients of one replica infinite, as a too large loss scale does; the loss stays what it is."""
    compute = steps.forward_and_backward

    def overflowing(state, config, batch, step, first_example):
        gradients, sums = compute(state, config, batch, step, first_example)
        rows = tf.shape(batch["label"])[0]
        hit = tf.equal(first_example, replica * rows) & where(step)
        return [tf.where(hit, np.inf * tf.ones_like(g), g) for g in gradients], sums

    monkeypatch.setattr(steps, "forward_and_backward", overflowing)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize("replica", [0, 1])
def test_an_overflow_on_any_replica_only_lowers_the_loss_scale(split, monkeypatch, replica):
    driver = Driver(make_config(**FLOAT16, learning_rate=0.01), split, 2)
    before = driver.weights()
    with gradients_overflow_on(monkeypatch, replica, lambda step: step < 2):
        done, skipped, reports = driver.run(2)
        assert (done, skipped) == (2, 0)  # such steps do not count
        assert not reports["finite"][:2].any() and np.isfinite(reports["loss"][:2]).all()
        for ours, theirs in zip(driver.weights(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert driver.state.loss_scale.value.numpy() == LossScale.START / 4
        done, _, reports = driver.run(1, first_step=2)
    assert reports["finite"][0] and any((ours != theirs).any() for ours, theirs in zip(driver.weights(), before, strict=True))


def test_an_overflow_at_the_lowest_loss_scale_counts(split, monkeypatch):
    """Otherwise it would go on without ever training."""
    driver = Driver(make_config(**FLOAT16, max_nonfinite_steps=0), split)
    driver.state.loss_scale.value.assign(2 * LossScale.FLOOR)
    with gradients_overflow_on(monkeypatch, 0):
        done, skipped, _ = driver.run(5)
    assert (done, skipped) == (2, 1)
    assert driver.state.loss_scale.value.numpy() == LossScale.FLOOR


def test_the_loss_scale_saves_small_gradients(split, monkeypatch):
    """Gradients below float16's smallest number vanish without it; with it the update is as in float32."""
    entropy, tiny = steps.cross_entropy, 2.0**-18
    monkeypatch.setattr(steps, "cross_entropy", lambda *arguments: entropy(*arguments) * tiny)
    drivers = [Driver(make_config(precision=p, learning_rate=0.01 / tiny), split) for p in ("float32", "float16", "float16")]
    drivers[2].state.loss_scale.value.assign(LossScale.FLOOR)
    before = drivers[0].weights()
    for driver in drivers:
        driver.run(1)
    exact, scaled, unscaled = (
        np.concatenate([(w - b).ravel() for w, b in zip(driver.weights(), before, strict=True)]) for driver in drivers)
    assert np.linalg.norm(scaled - exact) < 0.05 * np.linalg.norm(exact)
    assert np.linalg.norm(unscaled - exact) > 0.2 * np.linalg.norm(exact)


def test_the_loss_scale_grows_and_falls_by_powers_of_two():
    scale = LossScale()
    scale.good_steps.assign(LossScale.STEPS_TO_DOUBLE - 2)
    start = LossScale.START
    expected = [(True, start, LossScale.STEPS_TO_DOUBLE - 1), (True, 2 * start, 0), (True, 2 * start, 1), (False, start, 0)]
    for finite, value, good in expected:
        scale.update(tf.constant(finite))
        assert (scale.value.numpy(), scale.good_steps.numpy()) == (value, good)


def test_softmax_and_loss_are_never_below_float32():
    """In float16 the logits 12 and 11.99 are one number away, and a sum of 4,000 losses stops growing at 2,048 times one."""
    logits, labels = np.array([[12.0, 11.99, -3.0]], np.float16), np.array([0], np.int32)
    exact = np.log(np.exp(logits.astype(np.float64)).sum()) - float(logits[0, 0])
    for smoothing in (0.0, 0.1):
        loss = steps.cross_entropy(tf.constant(labels), tf.constant(logits), smoothing)
        assert loss.dtype == tf.float32
    np.testing.assert_allclose(steps.cross_entropy(tf.constant(labels), tf.constant(logits)), [exact], rtol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precisions_train_on_several_replicas(split, precision):
    options = {"model_options": "width=0.25,dense_units=64,lrn=true", "learning_rate": 0.02}
    driver = Driver(make_config(precision=precision, **options), split, 2)
    _, _, reports = driver.run(20)
    assert reports["finite"].all() and reports["loss"].dtype == np.float32
    assert reports["loss"][-5:].mean() < reports["loss"][:5].mean()
    assert all(weight.dtype == np.float32 for weight in driver.weights())


# Averaged weights.


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_averages_follow_the_weights(split, num_replicas):
    """average <- decay * average + (1 - decay) * weight after each update, by hand, from the initial weights on."""
    decay = 0.75
    driver = Driver(make_config(**EVERYTHING, ema_decay=decay), split, num_replicas)
    expected = driver.weights()
    for step in range(3):
        driver.run(1, lambda batches, shard, step=step: batches.skip(step), first_step=step)
        expected = [decay * average + (1 - decay) * weight for average, weight in zip(expected, driver.weights(), strict=True)]
    for average, by_hand in zip(driver.state.averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), by_hand, rtol=1e-12, atol=1e-15)
    weights = driver.weights()
    with driver.state.averages_in_place():
        for ours, by_hand in zip(driver.weights(), expected, strict=True):
            np.testing.assert_allclose(ours, by_hand, rtol=1e-12, atol=1e-15)
    for ours, before in zip(driver.weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, before)


def test_a_skipped_step_leaves_the_averages_alone(split):
    driver = Driver(make_config(**EVERYTHING, ema_decay=0.5), split, 2)
    before = [average.numpy() for average in driver.state.averages]
    driver.run(1, with_infinity)
    for average, value in zip(driver.state.averages, before, strict=True):
        np.testing.assert_array_equal(average.numpy(), value)
