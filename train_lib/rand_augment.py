"""RandAugment inside the compiled step, on images whose pixels are whole numbers in [0, 255].

Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", section 3. An image goes through
a number of layers. Each does one of 14 operations, chosen with equal probability. All have one magnitude M, from 0 to 10:

    identity, autocontrast, equalize          the same at every magnitude
    rotate                                    by +-3 M degrees
    shear_x, shear_y                          by +-0.03 M; the upper or left border stays where it is
    translate_x, translate_y                  by +-M / 10 * 150 / 331 of the width or height
    solarize                                  inverts values of at least 256 - 25.6 M
    posterize                                 keeps the 8 - 0.4 M highest bits, rounded
    color, contrast, brightness, sharpness    multiply by 1 +- 0.09 M how much the image differs from: its grey image, the
                                              mean of that, black, the smoothed image

The ranges are those of Cubuk et al., "AutoAugment: Learning Augmentation Policies from Data", table of operations in the
appendix; M goes through them linearly, from the end that changes nothing. The 150 pixels of translation are taken as a share of
331, as torchvision does. Signs are random. The operations are the Python Imaging Library's, as in that paper, up to one grey
level: the library cuts fractions off, here they are rounded. Geometry takes the nearest pixel, the library's default, and grey,
FILL, for what lies outside of the image.

Every operation is computed for every image, with a strength that changes nothing where another one was chosen. All arithmetic
is exact, or rounded where the last bit does not matter. So the result is the same on every device and with XLA.
"""

import math

import numpy as np
import tensorflow as tf

OPERATIONS = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness", "sharpness",
    "shear_x", "shear_y", "translate_x", "translate_y",
)
FILL = 128.0
LUMA = (19595.0, 38470.0, 7471.0)  # 2**16 times what red, green and blue contribute to grey: the library's form of ITU-R 601-2


def rand_augment(images, integers, magnitude):
    """Applies one random operation per layer to each image.

    Args:
      images: float32 [b, height, width, 3], whole numbers from 0 to 255.
      integers: uint32 [b, 2 * layers], uniform: for each layer one number for the operation and one for the sign.
      magnitude: a float, 0 to 10.

    Returns the images, as they came.
    """
    height, width = images.shape[1:3]
    amounts, tables, transforms = _strengths(magnitude, height, width)
    integers = tf.cast(integers, tf.int64)
    for layer in range(integers.shape[1] // 2):
        operation = integers[:, 2 * layer] * len(OPERATIONS) // 2**32
        row = 2 * operation + integers[:, 2 * layer + 1] // 2**31
        images = _look_up(images, operation, tf.gather(tables, row))
        images = _blend(images, operation, tf.gather(amounts, row))
        images = _transform(images, tf.gather(transforms, row))
    return images


def _strengths(magnitude, height, width):
    """What the operations do, as NumPy arrays with two rows for each of OPERATIONS, those of the signs + and -.

    Returns:
      amounts: float32 [28], how far a blend goes beyond the image: the factor - 1. 0 for other operations.
      tables: float32 [28, 256], the new value of each pixel, for solarize and posterize. For others, the old one.
      transforms: float64 [28, 2, 3]. The pixel at (x, y) comes from transform @ (x, y, 1). The identity for others.
    """
    share = magnitude / 10
    amounts, values = np.zeros((len(OPERATIONS), 2)), np.arange(256)
    tables, transforms = np.tile(values, (len(OPERATIONS), 2, 1)), np.tile(np.eye(2, 3), (len(OPERATIONS), 2, 1, 1))
    tables[OPERATIONS.index("solarize")] = np.where(values >= 256 * (1 - share), 255 - values, values)
    step = 2 ** round(4 * share)
    tables[OPERATIONS.index("posterize")] = values // step * step
    angle = math.radians(30 * share)
    for column, sign in enumerate((1, -1)):
        for name in ("color", "contrast", "brightness", "sharpness"):
            amounts[OPERATIONS.index(name), column] = sign * 0.9 * share
        cosine, sine = math.cos(angle), sign * math.sin(angle)
        middle, turn = np.array([width / 2, height / 2]), np.array([[cosine, sine], [-sine, cosine]])
        transforms[OPERATIONS.index("rotate"), column] = np.c_[turn, middle - turn @ middle]
        transforms[OPERATIONS.index("shear_x"), column, 0, 1] = sign * 0.3 * share
        transforms[OPERATIONS.index("shear_y"), column, 1, 0] = sign * 0.3 * share
        transforms[OPERATIONS.index("translate_x"), column, 0, 2] = sign * share * 150 / 331 * width
        transforms[OPERATIONS.index("translate_y"), column, 1, 2] = sign * share * 150 / 331 * height
    # With few enough bits, the products below are exact.
    amounts, transforms = np.round(amounts * 2**12) / 2**12, np.round(transforms * 2**32) / 2**32
    return amounts.reshape(-1).astype(np.float32), tables.reshape(-1, 256).astype(np.float32), transforms.reshape(-1, 2, 3)


def _is(operation, name, rank):
    """1.0 where `operation`, int64 [b], is the named one, else 0.0: float32 [b, 1, ...] with `rank` dimensions."""
    return tf.reshape(tf.cast(operation == OPERATIONS.index(name), tf.float32), [-1] + [1] * (rank - 1))


def _look_up(images, operation, tables):
    """autocontrast, equalize and what is in `tables`, float32 [b, 256]: what makes a new value of a pixel from its old one.

    Those tables hold for all channels. autocontrast and equalize make tables from the histogram of each channel of an image.
    """
    # The place of each pixel's value among the 256 of its image and channel. On GPUs, TensorFlow adds int32 on the host.
    channels = tf.range(3 * tf.shape(images, tf.int64)[0])
    places = tf.cast(images, tf.int64) + tf.reshape(256 * channels, [-1, 1, 1, 3])
    # Unlike tf.math.bincount, this counts on GPUs under --deterministic too.
    counts = tf.math.unsorted_segment_sum(tf.ones_like(images), places, 256 * tf.size(channels))
    counts, values = tf.reshape(counts, [-1, 3, 256]), tf.range(256, dtype=tf.float32)

    def greatest(numbers):
        return tf.reduce_max(tf.where(counts > 0, numbers, 0), axis=2, keepdims=True)

    lowest, highest = 255 - greatest(255 - values), greatest(values)
    contrasted = _quotient(255 * (values - lowest), tf.maximum(highest - lowest, 1))
    below = tf.cumsum(counts, axis=2, exclusive=True)
    # The pixels that do not have the highest value share 255 steps.
    step = tf.floor((greatest(below) + 0.5) / 255)
    equalized = tf.minimum(_quotient(below, tf.maximum(step, 1)), 255)
    result = tf.where(_is(operation, "autocontrast", 3) * (highest - lowest) > 0, contrasted, tables[:, tf.newaxis])
    result = tf.where(_is(operation, "equalize", 3) * step > 0, equalized, result)
    return tf.gather(tf.reshape(result, [-1]), places)


def _quotient(dividend, divisor):
    """Whole numbers, divided and rounded to the nearest whole number, halves up. The divisor is positive.

    The 1/2 in the dividend keeps the quotient away from where `floor` jumps, so that its last bit does not matter.
    """
    return tf.floor((2 * dividend + divisor + 0.5) / (2 * divisor))


def _blend(images, operation, amounts):
    """color, contrast, brightness and sharpness: image + amount * (image - what the operation names), `amounts` float32 [b]."""
    amounts = tf.reshape(amounts, [-1, 1, 1, 1])
    grey = tf.floor((tf.add_n([share * images[..., i] for i, share in enumerate(LUMA)]) + 2.0**15) * 2.0**-16)
    total = tf.reduce_sum(tf.cast(grey, tf.float64), axis=[1, 2], keepdims=True)
    mean = tf.cast(_quotient(total, images.shape[1] * images.shape[2]), tf.float32)
    level = _is(operation, "color", 3) * grey + _is(operation, "contrast", 3) * mean  # 0 for brightness
    is_sharpness = _is(operation, "sharpness", 4)
    # The smoothed image is a weighted mean of 3x3 pixels, 5 times the middle one; its border is that of the image.
    middle = images[:, 1:-1, 1:-1]
    sums = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    sums = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:] + 4 * middle
    edges = tf.pad(middle - _quotient(sums, 13), [[0, 0], [1, 1], [1, 1], [0, 0]])
    blended = images + amounts * (1 - is_sharpness) * (images - level[..., tf.newaxis]) + amounts * is_sharpness * edges
    return tf.clip_by_value(tf.floor(blended + 0.5), 0, 255)


def _transform(images, transforms):
    """rotate, shear and translate: each pixel is the one at `transforms`, float64 [b, 2, 3], times its own place."""
    height, width = images.shape[1:3]
    across, down = (tf.range(size, dtype=tf.float64) + 0.5 for size in (width, height))  # the middle of each pixel

    def source(axis, size):
        row = transforms[:, axis, :, tf.newaxis]
        place = (row[:, 0] * across)[:, tf.newaxis] + (row[:, 1] * down + row[:, 2])[:, :, tf.newaxis]
        return tf.clip_by_value(tf.floor(place), -1, size)

    # What is outside comes from a border of one pixel. ImageProjectiveTransformV3 does all of this, but XLA cannot compile it.
    bordered = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=FILL)
    places = tf.cast((source(1, height) + 1) * (width + 2) + (source(0, width) + 1), tf.int32)
    return tf.gather(tf.reshape(bordered, [-1, (height + 2) * (width + 2), 3]), places, batch_dims=1)
