"""Augmentation inside the compiled step: PCA colour noise, cutout and mixup, on images that are already scaled.

All randomness is a pure function of (seed, step, position of the example in the global batch), so an example looks the same
on 1 or N replicas, in any number of --accumulate_steps, after a resume, under every precision and with XLA.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from alexnet.layers import example_integers

COLOR_SIGMA = 0.1  # paper, section 4.1
# The side of the square is the short side of the image divided by this: 16 of 32 pixels, as its paper uses for CIFAR-10.
CUTOUT_SHARE = 2
MIXUP_ALPHA = 0.2  # of Beta(alpha, alpha); the mixup paper uses 0.2 for ImageNet in 90 epochs
# Each augmentation draws with its own key. The keys of dropout are below 2**31, like --seed.
_COLOR, _CUTOUT, _MIXUP = (2**32 * number for number in (1, 2, 3))


class Targets(NamedTuple):
    """The classes that the network should predict for the examples of part of the batch. Without mixup, only `labels`."""

    labels: tf.Tensor  # int32 [b], the classes with the larger weight; the accuracy counts these
    others: tf.Tensor | None = None  # int32 [b], the classes with the smaller weight
    weight: tf.Tensor | None = None  # float [b], at least 1/2: the weight of `labels`; `others` have 1 - weight


def augment(config, pixels, images, labels, step, first_example):
    """Applies pca_color, cutout and mixup, as far as --augment names them and in this order, to part of the global batch.

    Args:
      pixels: the PixelScaling of the images, measured with the same --augment.
      images: float [b, height, width, 3], scaled.
      labels: int32 [b].
      step: int64 scalar.
      first_example: the position of the part's first example in the global batch. With mixup, it and b must be even.

    Returns (images, Targets).
    """
    chosen, seed = config.data.augmentations, config.general.seed
    if "pca_color" in chosen:
        images += color_noise(seed, step, first_example, tf.shape(images)[0], pixels, images.dtype)[:, tf.newaxis, tf.newaxis]
    if "cutout" in chosen:
        hidden = cutout_masks(seed, step, first_example, tf.shape(images)[0], *images.shape[1:3])
        fill = tf.constant((pixels.mean - pixels.offset) * pixels.scale, images.dtype)
        images = tf.where(hidden[..., tf.newaxis], fill, images)
    if "mixup" in chosen:
        return mix(images, labels, mixing_weights(seed, step, first_example, tf.shape(images)[0]))
    return images, Targets(labels)


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
    integers = tf.cast(example_integers(seed + _CUTOUT, step, first_example, batch_size, 2), tf.int64)

    def inside(column, size):
        # Use integers: in float32, a number just below 1 times the size can round up to the size.
        first = integers[:, column, tf.newaxis] * size // 2**32 - side // 2
        place = tf.range(size, dtype=tf.int64)
        return (place >= first) & (place < first + side)

    return inside(0, height)[:, :, tf.newaxis] & inside(1, width)[:, tf.newaxis, :]


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
    its own. Of `images`, float [b, height, width, 3], and `labels`, int32 [b], b must be even; `kept`, float64 [b], is the weight
    of each example in its own mixture. Returns (images, Targets).
    """
    share = tf.cast(kept, images.dtype)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    images = share * images + (1 - share) * _partners(images)
    own, other = kept >= 0.5, _partners(labels)
    targets = Targets(tf.where(own, labels, other), tf.where(own, other, labels), tf.maximum(kept, 1 - kept))
    return images, targets


def _partners(values):
    """The rows 1, 0, 3, 2, ... of a tensor with an even number of rows."""
    pairs = tf.reshape(values, [-1, 2, *values.shape[1:]])
    return tf.reshape(pairs[:, ::-1], [-1, *values.shape[1:]])
