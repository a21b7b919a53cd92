import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.layers import Dropout, dropout_masks

FEATURES = 1000


def philox(key, counter):
    """Philox 4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3). All words have 32 bits."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (right >> 32) ^ c1 ^ k0,
            right & 0xFFFFFFFF,
            (left >> 32) ^ c3 ^ k1,
            left & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def reference_mask(seed, step, layer_index, example, features, rate):
    """The units that one example keeps, bool [features], computed one number at a time."""
    counts = math.ceil(features / 4)
    high = step * 2**16 + layer_index
    numbers = []
    for low in range(example * counts, (example + 1) * counts):
        words = [word % 2**32 for word in (low, low >> 32, high, high >> 32)]
        numbers += philox((seed % 2**32, seed >> 32), words)
    return np.array(numbers[:features], np.float32) >= np.float32(rate * 2.0**32)


def mask(seed=0, step=0, first_example=0, *, layer_index=6, batch_size=4, features=FEATURES, rate=0.5, dtype="float32"):
    """The units that the layer keeps in a batch, bool [batch_size, features]."""
    layer = Dropout(rate, layer_index, dtype=dtype)
    with dropout_masks(seed, step, first_example):
        return layer(tf.ones([batch_size, features], layer.compute_dtype), training=True).numpy() != 0


@pytest.mark.parametrize("features", [1, 6, 8, 4096])
@pytest.mark.parametrize(("seed", "step", "first_example"), [(0, 0, 0), (2**40 + 3, 2**33 + 7, 5)])
def test_masks_are_those_of_the_reference(features, seed, step, first_example):
    expected = [reference_mask(seed, step, 6, first_example + row, features, 0.3) for row in range(2)]
    actual = mask(seed, step, first_example, batch_size=2, features=features, rate=0.3)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("features", [1, 2, 3, 4, 5, 9, 128])
def test_masks_do_not_depend_on_how_the_batch_is_divided(features):
    whole = mask(3, 17, batch_size=12, features=features)
    cuts = [0, 3, 8, 9, 12]
    parts = [
        mask(3, 17, start, batch_size=end - start, features=features)
        for start, end in itertools.pairwise(cuts)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_masks_of_other_seeds_steps_layers_and_examples_are_unrelated():
    keys = itertools.product((0, 1, 2**32), (0, 1, 2, 2**16, 2**32), (0, 1, 2, 7, 2**16 - 1))
    rows = np.concatenate(
        [mask(seed, step, layer_index=layer) for seed, step, layer in keys]
    )  # [75 * 4, FEATURES]
    signs = np.where(rows, 1.0, -1.0)
    correlations = (signs @ signs.T / FEATURES)[np.triu_indices(len(signs), k=1)]
    # 44,850 pairs, each with standard deviation 1 / sqrt(FEATURES). Six standard deviations practically never happen by chance.
    assert np.abs(correlations).max() < 6 / math.sqrt(FEATURES)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_rate_and_scale(rate):
    layer, x = Dropout(rate, 6), tf.fill([200, FEATURES], 3.0)
    with dropout_masks(1, 2):
        out = layer(x, training=True).numpy()
    assert abs(np.mean(out == 0) - rate) < 5 * math.sqrt(rate * (1 - rate) / out.size)
    np.testing.assert_allclose(out[out != 0], 3.0 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16", "mixed_float16"])
def test_every_precision_has_the_masks_of_float32(dtype):
    np.testing.assert_array_equal(mask(5, 6, dtype=dtype, rate=0.3), mask(5, 6, rate=0.3))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_masks_are_those_of_eager_execution(jit_compile):
    layer = Dropout(0.5, 6)

    @tf.function(jit_compile=jit_compile)
    def drop(x, seed, step, first_example):
        with dropout_masks(seed, step, first_example):
            return layer(x, training=True)

    for seed, step, first_example in [(0, 0, 0), (9, 1, 4), (2**31 - 1, 2**40, 1000)]:
        tensors = [tf.constant(value, tf.int64) for value in (seed, step, first_example)]
        out = drop(tf.ones([4, FEATURES]), *tensors).numpy()
        np.testing.assert_array_equal(out != 0, mask(seed, step, first_example))


def test_gradient_flows_through_what_is_kept_only():
    x = tf.ones([4, FEATURES])
    with tf.GradientTape() as tape, dropout_masks(0, 0):
        tape.watch(x)
        out = Dropout(0.5, 6)(x, training=True)
    np.testing.assert_array_equal(tape.gradient(out, x), 2.0 * mask())


def test_an_infinity_that_is_dropped_is_gone():
    with dropout_masks(0, 0):
        out = Dropout(0.5, 6)(tf.fill([4, FEATURES], np.inf), training=True).numpy()
    np.testing.assert_array_equal(out, np.where(mask(), np.inf, 0.0))


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_nothing_is_dropped_at_rate_0_or_outside_training(rate, training):
    x = tf.random.stateless_normal([4, 10], [0, 0])
    with dropout_masks(0, 0):
        np.testing.assert_array_equal(Dropout(rate, 6)(x, training=training), x)


def test_maps_are_dropped_whole_where_noise_shape_says_so():
    x = tf.ones([8, 3, 5, 7])
    with dropout_masks(0, 0):
        kept = Dropout(0.5, 6, noise_shape=(None, 1, 1, None))(x, training=True).numpy() != 0
        examples = Dropout(0.5, 6, noise_shape=(None, 1, 1, 1))(x, training=True).numpy() != 0
    np.testing.assert_array_equal(kept[:, 1, 2], mask(batch_size=8, features=7))
    assert np.all(kept == kept[:, :1, :1]) and np.all(examples == examples[:, :1, :1, :1])


def test_outside_the_context_it_is_the_dropout_of_keras():
    x = tf.ones([4, FEATURES])
    ours, theirs = Dropout(0.3, 6, seed=11), keras.layers.Dropout(0.3, seed=11)
    for _ in range(2):
        np.testing.assert_array_equal(ours(x, training=True), theirs(x, training=True))


def test_contexts_nest_and_end():
    layer, x = Dropout(0.5, 6), tf.ones([4, FEATURES])
    with dropout_masks(0, 0):
        with pytest.raises(KeyError), dropout_masks(0, 1):
            raise KeyError
        np.testing.assert_array_equal(layer(x, training=True) != 0, mask())
    assert np.any((layer(x, training=True) != 0) != mask())


@pytest.mark.parametrize(
    "arguments",
    [{"rate": 1.0}, {"rate": -0.1}, {"layer_index": 2**16}, {"layer_index": -1}, {"noise_shape": (1, None)}],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Dropout(**{"rate": 0.5, "layer_index": 6, **arguments})


def test_dropout_can_be_rebuilt_from_its_configuration():
    layer = Dropout(0.3, 6, noise_shape=(None, 1), seed=4)
    assert Dropout.from_config(layer.get_config()).get_config() == layer.get_config()
