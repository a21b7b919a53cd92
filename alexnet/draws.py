"""Random integers that belong to an example, not to a device: a pure function of (seed, stream, example). And layers' seeds."""

import math

import numpy as np
import tensorflow as tf

# Philox gives four 32-bit numbers for one count.
_NUMBERS_PER_COUNT = 4
_PHILOX = 1


def layer_seed(seed, number):
    """The seed, an int, of the initial weights of layer `number` of a network with this seed."""
    # Mixed, not added: with seed + number, layer 2 of one seed would begin like layer 1 of the next.
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def example_integers(seed, stream, first_example, batch_size, numbers):
    """Uniform integers in [0, 2**32), `numbers` for each example of a part of the global batch.

    Row i is a pure function of (seed, stream, first_example + i): however the batch is shared out over replicas or worked
    through in parts, with and without XLA. `numbers` must be the same wherever rows are to be the same.

    Args:
      seed: int or integer scalar tensor; ints count modulo 2**64.
      stream: integer scalar, 0 <= stream < 2**63; another stream gives other numbers.
      first_example: position in the global batch of the first row; integer scalar.
      batch_size: how many rows; int or integer scalar tensor.
      numbers: how many columns, int.

    Returns:
      uint32 [batch_size, numbers].
    """
    # Whole counts for each example: every row of the batch then starts at one and can be drawn by itself.
    counts = math.ceil(numbers / _NUMBERS_PER_COUNT)
    # The 128-bit counter. Low word: which of the batch's counts; high word: the stream.
    counter = tf.stack([tf.cast(first_example, tf.int64) * counts, tf.cast(stream, tf.int64)])
    key = tf.constant(seed % 2**64, tf.uint64) if isinstance(seed, int) else tf.cast(seed, tf.uint64)
    # Integers, not the op's own uniform floats: TensorFlow's kernels make those from the lower bits of the
    # same integers, XLA from the upper ones, and masks would change with the compiler. Measured with
    # TensorFlow 2.21, CPU.
    integers = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[batch_size, counts * _NUMBERS_PER_COUNT],
        key=key[tf.newaxis],
        counter=tf.cast(counter, tf.uint64),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    return integers[:, :numbers]
