"""Inception's training crop: a window of random area and shape, scaled to the size of the network's input.

Szegedy et al., "Going Deeper with Convolutions", section 6: 8 to 100 % of the image's area, sides between 3:4 and 4:3. The
logarithm of the ratio of the sides is uniform, so a shape and the same shape turned by 90 degrees are equally likely.
"""

import math

import numpy as np
import tensorflow as tf

LEAST_AREA, GREATEST_AREA = 0.08, 1.0
GREATEST_RATIO = 4 / 3
ATTEMPTS = 10
DRAWS = ATTEMPTS * 4


def windows(draws, height, width):
    """Random windows of images: the first of ten attempts that lies within the image, or the whole image if none does.

    `draws` are float32 [..., 40] in [0, 1), height and width int or int32 scalars. Returns int32 [..., 4]: top, left, height,
    width.
    """
    area, ratio, down, across = tf.unstack(tf.reshape(draws, [*draws.shape[:-1], ATTEMPTS, 4]), axis=-1)
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = (LEAST_AREA + (GREATEST_AREA - LEAST_AREA) * area) * tall * wide
    ratio = tf.exp((2 * ratio - 1) * math.log(GREATEST_RATIO))
    rows, columns = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    fits = (rows >= 1) & (rows <= tall) & (columns >= 1) & (columns <= wide)
    # Rounding can take a draw near 1 beyond the last position.
    top = tf.minimum(tf.floor(down * (tall - rows + 1)), tall - rows)
    left = tf.minimum(tf.floor(across * (wide - columns + 1)), wide - columns)
    attempts = tf.stack([top, left, rows, columns], axis=-1)
    first = tf.argmax(fits, axis=-1, output_type=tf.int32)
    chosen = tf.gather(attempts, first, batch_dims=first.shape.rank, axis=first.shape.rank)
    whole = tf.stack([0.0, 0.0, tall, wide])
    return tf.cast(tf.where(tf.reduce_any(fits, axis=-1)[..., tf.newaxis], chosen, whole), tf.int32)


def random_window(seed):
    """One of `windows` as a function of `seed`, int64 [2]. Returns the same as `decoding.random_window`."""
    draws = tf.random.stateless_uniform([DRAWS + 1], seed)
    return lambda height, width: windows(draws[:DRAWS], height, width), draws[DRAWS] < 0.5


def epoch_draws(seed, epoch, num_examples):
    """The draws for the windows of an epoch, float32 [num_examples, 40] in [0, 1), in the epoch's order.

    They are from another part of the generator's sequence than those of `resident.plan_epoch`, which has the same key.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]).jumped())
    return generator.random((num_examples, DRAWS), np.float32)


def boxes(draws, height, width):
    """The corners of random windows for `crop_batch`: draws, float32 [b, 40] -> an array, float32 [b, 4].

    Always computed eagerly on the host, even if the windows are cut on a device: compiled into a step, the last bit can differ.
    """
    with tf.device("/cpu:0"):
        top, left, rows, columns = tf.cast(windows(draws, height, width), tf.float32).numpy().T
    last_row, last_column = np.float32(max(height - 1, 1)), np.float32(max(width - 1, 1))
    corners = np.stack(
        [top / last_row, left / last_column, (top + rows - 1) / last_row, (left + columns - 1) / last_column], axis=-1)
    # Rounding may move the last corner slightly out of the image, and there crop_and_resize would read a black pixel.
    return np.minimum(corners, np.float32(1 - 1e-6))


def crop_batch(images, corners):
    """Windows of images, uint8 or whole float32 [b, height, width, 3], at the corners from `boxes`, scaled to the images' size.

    Bilinear with aligned corners: the corners of a window become the corners of the result, and no pixel outside of the window
    is read. A window is never larger than the result, so no smoothing is needed.
    """
    images = tf.cast(images, tf.float32)  # GPUs have no kernel for uint8
    pixels = tf.image.crop_and_resize(images, corners, tf.range(tf.shape(images)[0]), list(images.shape[1:3]))
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)
