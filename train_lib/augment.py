"""Augmentation inside the compiled step, on images that are already scaled: RandAugment, PCA colour noise, what hides parts of
an image (cutout, random erasing), and what mixes examples (mixup, CutMix).

All randomness is a pure function of (seed, step, position of the example in the global batch), so an example looks the same
on 1 or N replicas, in any number of --accumulate_steps, after a resume, under every precision and with XLA.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from alexnet.layers import example_integers
from train_lib.rand_augment import rand_augment

COLOR_SIGMA = 0.1  # paper, section 4.1
# The side of the square is the short side of the image divided by this: 16 of 32 pixels, as its paper uses for CIFAR-10.
CUTOUT_SHARE = 2
# Random erasing, as in its paper: the share of the images, the range of areas, the range of the height divided by the width.
ERASING_PROBABILITY, ERASING_AREA, ERASING_RATIO = 0.5, (0.02, 0.4), (0.3, 1 / 0.3)
ERASING_ATTEMPTS = 4
MIXUP_ALPHA = 0.2  # of Beta(alpha, alpha); the mixup paper uses 0.2 for ImageNet in 90 epochs
# Each augmentation draws with its own key. The keys of dropout are below 2**31, like --seed.
_COLOR, _CUTOUT, _MIXUP, _ERASING, _CUTMIX, _RAND_AUGMENT = (2**32 * number for number in range(1, 7))


class Targets(NamedTuple):
    """The classes that the network should predict for the examples of part of the batch; only `labels` if none are mixed."""

    labels: tf.Tensor  # int64 [b], the classes with the larger weight; the accuracy counts these
    others: tf.Tensor | None = None  # int64 [b], the classes with the smaller weight
    weight: tf.Tensor | None = None  # float [b], at least 1/2: the weight of `labels`; `others` have 1 - weight


def augment(config, pixels, images, labels, step, first_example):
    """Applies to part of the global batch what --augment names: rand_augment, pca_color, cutout, random_erasing, and mixup or
    cutmix, in this order.

    Args:
      pixels: the PixelScaling of the images, measured with the same --augment.
      images: float [b, height, width, 3], scaled.
      labels: int64 [b].
      step: int64 scalar.
      first_example: the position of the part's first example in the global batch. With mixup or cutmix, it and b must be even.

    Returns (images, Targets).
    """
    chosen, seed, (height, width) = config.data.augmentations, config.general.seed, images.shape[1:3]
    examples = step, first_example, tf.shape(images)[0]
    if "rand_augment" in chosen:
        layers, magnitude = config.data.rand_augment_layers_and_magnitude()
        integers = example_integers(seed + _RAND_AUGMENT, *examples, 2 * layers)
        images = scale_pixels(rand_augment(_unscaled(images, pixels), integers, magnitude), pixels, images.dtype)
    if "pca_color" in chosen:
        images += color_noise(seed, *examples, pixels, images.dtype)[:, tf.newaxis, tf.newaxis]
    if "cutout" in chosen:
        hidden = cutout_masks(seed, *examples, height, width)
        images = tf.where(hidden[..., tf.newaxis], scale_pixels(pixels.mean, pixels, images.dtype), images)
    if "random_erasing" in chosen:
        hidden, noise = erasing(seed, *examples, height, width)
        images = tf.where(hidden[..., tf.newaxis], scale_pixels(noise, pixels, images.dtype), images)
    if "mixup" in chosen:
        return mix(images, labels, mixing_weights(seed, *examples))
    if "cutmix" in chosen:
        return paste(images, labels, pasted_masks(seed, *examples, height, width))
    return images, Targets(labels)


def scale_pixels(images, pixels, dtype):
    """Turns pixels in [0, 255] into the network's input on the device: (image - offset) * scale per channel, in `dtype`."""
    return (tf.cast(images, dtype) - tf.constant(pixels.offset, dtype)) * tf.constant(pixels.scale, dtype)


def _unscaled(images, pixels):
    """The inverse: the whole numbers in [0, 255] that scaled images come from, float32."""
    scale, offset = tf.constant(pixels.scale, tf.float32), tf.constant(pixels.offset, tf.float32)
    return tf.clip_by_value(tf.round(tf.cast(images, tf.float32) / scale + offset), 0, 255)


def color_noise(seed, step, first_example, batch_size, pixels, dtype):
    """The colour noise of the paper, section 4.1: `dtype` [batch_size, 3], in the scale of the network's input.

    It is added to all pixels of an image: the sum over i of alpha[i] * eigenvalue[i] * eigenvector[i]. The eigenvectors are those
    of the covariance of the channels; alpha is drawn once per image from N(0, 0.1). The paper does not state the unit of the
    pixels, whose square scales the eigenvalues. Here it is [0, 1]: with [0, 255] the noise would be several times as strong as
    any image. Nothing is clipped.
    """
    integers = example_integers(seed + _COLOR, step, first_example, batch_size, 4)
    alpha = COLOR_SIGMA * normals(integers)[:, :3]
    return tf.cast(tf.matmul(alpha, tf.constant((pixels.color_axes * pixels.scale[:, np.newaxis]).T)), dtype)


def uniforms(integers):
    """float64 in (0, 1), without 0 and 1, from uint32. They are the same under every precision."""
    return (tf.cast(integers, tf.float64) + 0.5) * 2.0**-32


def normals(integers):
    """Standard normal numbers, float64 [b, 2 n], from uint32 [b, 2 n], by the method of Box and Muller."""
    radius, angle = tf.split(uniforms(integers), 2, axis=1)
    radius, angle = tf.sqrt(-2 * tf.math.log(radius)), 2 * np.pi * angle
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=1)


def cutout_masks(seed, step, first_example, batch_size, height, width):
    """The pixels that cutout hides, bool [batch_size, height, width]: a square of half the short side.

    Its centre is any pixel with equal probability; what is outside is cut off (DeVries and Taylor, "Improved Regularization of
    Convolutional Neural Networks with Cutout").
    """
    side = min(height, width) // CUTOUT_SHARE
    integers = example_integers(seed + _CUTOUT, step, first_example, batch_size, 2)
    return _rectangles(_starts(integers[:, 0], side, height), _starts(integers[:, 1], side, width), side, side, height, width)


def _starts(integers, side, size):
    """Where spans of `side` pixels begin, int64 [b], whose middle is any of `size` pixels equally often. From uint32 [b]."""
    # Use integers: in float32, a number just below 1 times the size can round up to the size.
    return tf.cast(integers, tf.int64) * size // 2**32 - side // 2


def _rectangles(top, left, rows, columns, height, width):
    """The pixels of rectangles, bool [b, height, width], from whole numbers of one dtype, [b]. What is outside is cut off."""

    def inside(first, side, size):
        place = tf.range(size, dtype=first.dtype)
        return (place >= first[:, tf.newaxis]) & (place < (first + side)[:, tf.newaxis])

    return inside(top, rows, height)[:, :, tf.newaxis] & inside(left, columns, width)[:, tf.newaxis, :]


def erasing(seed, step, first_example, batch_size, height, width):
    """The pixels that random erasing hides, bool [batch_size, height, width], and what it shows there, uint8 [..., 3].

    Zhong et al., "Random Erasing Data Augmentation", algorithm 1: half of the images lose a rectangle. The share of its area is
    uniform in 2 to 40 %, its height divided by its width uniform in 0.3 to 1 / 0.3. Each value of each pixel is random there,
    which was best in the paper (RE-R). It departs from the paper in two ways. The paper draws a size and a place until the
    rectangle lies inside the image, which makes large ones rare; here only sizes that fit nowhere are drawn again, and then a
    place where the rectangle fits. And after four sizes that do not fit, which is rarer than one image in 100,000, the first is
    cut to the image, so that the number of draws is fixed.
    """
    geometry = 3 + 2 * ERASING_ATTEMPTS
    numbers = geometry + math.ceil(height * width * 3 / 4)
    integers = example_integers(seed + _ERASING, step, first_example, batch_size, numbers)
    chance, down, across, *shapes = tf.unstack(uniforms(integers[:, :geometry]), axis=1)
    area, ratio = (tf.stack(draws, axis=1) for draws in (shapes[::2], shapes[1::2]))
    area = (ERASING_AREA[0] + (ERASING_AREA[1] - ERASING_AREA[0]) * area) * height * width
    ratio = ERASING_RATIO[0] + (ERASING_RATIO[1] - ERASING_RATIO[0]) * ratio
    rows, columns = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
    first = tf.argmax((rows <= height) & (columns <= width), axis=1)
    rows, columns = (
        tf.clip_by_value(tf.gather(sides, first, batch_dims=1), 1, size) for sides, size in ((rows, height), (columns, width)))
    top, left = tf.floor(down * (height - rows + 1)), tf.floor(across * (width - columns + 1))
    hidden = _rectangles(top, left, rows, columns, height, width)
    # Each integer gives four pixels' values.
    noise = tf.reshape(tf.bitcast(integers[:, geometry:], tf.uint8), [batch_size, -1])[:, : height * width * 3]
    return hidden & (chance < ERASING_PROBABILITY)[:, tf.newaxis, tf.newaxis], tf.reshape(noise, [batch_size, height, width, 3])


def mixing_weights(seed, step, first_example, batch_size):
    """float64 [batch_size] from Beta(0.2, 0.2): the weight that each example keeps in its mixture."""
    integers = example_integers(seed + _MIXUP, step, first_example, batch_size, 2)
    return symmetric_beta(uniforms(integers), MIXUP_ALPHA)


def symmetric_beta(uniform, alpha):
    """Numbers from Beta(alpha, alpha), float64 [b], from uniform numbers in (0, 1), float64 [b, 2], for any alpha > 0.

    This is a closed form, because rejection sampling, whose number of draws varies, would not compile. Bailey, "Polar generation
    of random variates with the t-distribution", gives t = sqrt(2 alpha (u^(-1/alpha) - 1)) cos(2 pi v) with 2 alpha degrees of
    freedom, and 1/2 + t / (2 sqrt(2 alpha + t^2)) has the wanted distribution. Multiplying by u^(1/alpha) avoids overflows.
    """
    power, cosine = tf.pow(uniform[:, 0], 1 / alpha), tf.cos(2 * np.pi * uniform[:, 1])
    squared = (1 - power) * cosine**2
    return 0.5 + 0.5 * tf.sign(cosine) * tf.sqrt(squared / (power + squared))


def mix(images, labels, kept):
    """Mixes each example with its neighbour (Zhang et al., "mixup: Beyond Empirical Risk Minimization").

    Examples 2 i and 2 i + 1 of the batch are partners. Which examples these are is as random as the order of the epoch, and no
    pair is split between two replicas or parts of the batch. The paper's code draws one weight per batch; here each example has
    its own. Of `images`, float [b, height, width, 3], and `labels`, int64 [b], b must be even; `kept`, float64 [b], is the weight
    of each example in its own mixture. Returns (images, Targets).
    """
    share = tf.cast(kept, images.dtype)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    images = share * images + (1 - share) * _partners(images)
    return images, _mixed_targets(labels, kept)


def pasted_masks(seed, step, first_example, batch_size, height, width):
    """The pixels that CutMix takes from the partner, bool [batch_size, height, width].

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", section 3.1: the sides
    are those of the image times sqrt(1 - lambda), rounded to pixels, with lambda from Beta(1, 1), which is uniform. The centre
    is any pixel with equal probability; what is outside is cut off.
    """
    integers = example_integers(seed + _CUTMIX, step, first_example, batch_size, 3)
    share = tf.sqrt(1 - uniforms(integers[:, 0]))
    rows, columns = (tf.cast(tf.round(share * size), tf.int64) for size in (height, width))
    top, left = _starts(integers[:, 1], rows, height), _starts(integers[:, 2], columns, width)
    return _rectangles(top, left, rows, columns, height, width)


def paste(images, labels, masks):
    """CutMix: each example gets the pixels in `masks`, bool [b, height, width], from its neighbour. The rest is as in `mix`.

    The weight of its own label is the exact share of the pixels that stay its own. The paper's code has one rectangle per
    batch; here each example has its own.
    """
    images = tf.where(masks[..., tf.newaxis], _partners(images), images)
    kept = tf.reduce_sum(tf.cast(~masks, tf.float64), axis=[1, 2]) / (masks.shape[1] * masks.shape[2])
    return images, _mixed_targets(labels, kept)


def _mixed_targets(labels, kept):
    """The Targets of examples that keep the weights `kept`, float64 [b], and get the rest from their partners."""
    own, other = kept >= 0.5, _partners(labels)
    return Targets(tf.where(own, labels, other), tf.where(own, other, labels), tf.maximum(kept, 1 - kept))


def _partners(values):
    """The rows 1, 0, 3, 2, ... of a tensor with an even number of rows."""
    pairs = tf.reshape(values, [-1, 2, *values.shape[1:]])
    return tf.reshape(pairs[:, ::-1], [-1, *values.shape[1:]])
