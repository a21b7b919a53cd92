"""Inception's training crop: a window of random area and shape, scaled to the size of the network's input.

Szegedy et al., "Going Deeper with Convolutions", section 6: 8 to 100 % of the image's area, sides between 3:4 and 4:3. The
logarithm of the ratio of the sides is uniform, so that a shape is as probable as the same shape turned by 90 degrees.
"""

import math

import numpy as np
import tensorflow as tf

LEAST_AREA, GREATEST_AREA = 0.08, 1.0
GREATEST_RATIO = 4 / 3
ATTEMPTS = 10
DRAWS = ATTEMPTS * 4


def windows(draws, height, width):
    """Random windows of images; the first of ten attempts that lies within the image, the whole image where none does.

    Args:
      draws: float32 [..., 40] in [0, 1).
      height: of the images, int or int32 scalar tensor.
      width: likewise.

    Returns:
      int32 [..., 4]: top, left, height, width.
    """
    area, ratio, down, across = tf.unstack(tf.reshape(draws, [*draws.shape[:-1], ATTEMPTS, 4]), axis=-1)
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = (LEAST_AREA + (GREATEST_AREA - LEAST_AREA) * area) * tall * wide
    ratio = tf.exp((2 * ratio - 1) * math.log(GREATEST_RATIO))
    rows, columns = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    fits = (rows >= 1) & (rows <= tall) & (columns >= 1) & (columns <= wide)
    # A draw near 1 can round up to the room.
    top = tf.minimum(tf.floor(down * (tall - rows + 1)), tall - rows)
    left = tf.minimum(tf.floor(across * (wide - columns + 1)), wide - columns)
    attempts = tf.stack([top, left, rows, columns], axis=-1)
    first = tf.argmax(fits, axis=-1, output_type=tf.int32)
    chosen = tf.gather(attempts, first, batch_dims=first.shape.rank, axis=first.shape.rank)
    whole = tf.stack([0.0, 0.0, tall, wide])
    return tf.cast(tf.where(tf.reduce_any(fits, axis=-1)[..., tf.newaxis], chosen, whole), tf.int32)


def random_window(seed):
    """One of `windows` as a function of `seed`, int64 [2]; returns what `augment.random_window` does."""
    draws = tf.random.stateless_uniform([DRAWS + 1], seed)
    return lambda height, width: windows(draws[:DRAWS], height, width), draws[DRAWS] < 0.5


def epoch_draws(seed, epoch, num_examples):
    """What the windows of an epoch are made from, float32 [num_examples, 40] in [0, 1), in the epoch's order.

    Another stretch of the generator than that of `resident.plan_epoch`, which starts from the same key.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]).jumped())
    return generator.random((num_examples, DRAWS), np.float32)


def boxes(draws, height, width):
    """The corners of random windows, for `crop_batch`: from float32 [b, 40], float32 [b, 4], an array.

    Eager and on the host, wherever the windows are cut: compiled into a step, the last bit may be another.
    """
    with tf.device("/cpu:0"):
        top, left, rows, columns = tf.cast(windows(draws, height, width), tf.float32).numpy().T
    last_row, last_column = np.float32(max(height - 1, 1)), np.float32(max(width - 1, 1))
    corners = np.stack(
        [top / last_row, left / last_column, (top + rows - 1) / last_row, (left + columns - 1) / last_column], axis=-1)
    # Rounding may take the last corner out of the image by a bit, where crop_and_resize reads a black pixel.
    return np.minimum(corners, np.float32(1 - 1e-6))


def crop_batch(images, corners):
    """Windows of decoded images, scaled to the images' own size.

    The corners of a window become those of the result (bilinear, corners aligned): a window of a small image is always
    enlarged, so nothing needs smoothing, and no pixel outside of it is read.

    Args:
      images: uint8 [b, height, width, 3].
      corners: float32 [b, 4], from `boxes`.

    Returns:
      uint8 [b, height, width, 3].
    """
    pixels = tf.image.crop_and_resize(images, corners, tf.range(tf.shape(images)[0]), list(images.shape[1:3]))
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)
