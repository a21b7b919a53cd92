"""Image functions for TensorFlow graphs: decoding, resizing, cropping, flipping. Everything uint8, [height, width, 3].

Those that say [..., height, width, 3] take a batch of images of one size, too.
"""

import tensorflow as tf

from input_pipeline import headers


def decode(encoded):
    """PNG, JPEG, WebP, BMP or a GIF's first frame: bytes -> uint8 [height, width, 3].

    Grey becomes three equal channels, a palette its colours, 16 bits their upper 8; alpha is dropped, the colours stay as stored.

    Raises:
      InvalidArgumentError: it is damaged, of another kind, or by its header larger than `headers.MAX_PIXELS`.
    """
    reason = tf.ensure_shape(tf.numpy_function(_judge, [encoded], tf.string, stateful=False), [])
    fine = tf.debugging.Assert(tf.equal(reason, ""), ["an image", reason])  # before anything is allocated for it
    with tf.control_dependencies([] if fine is None else [fine]):
        encoded = tf.identity(encoded)
    return decode_unjudged(encoded)


def decode_unjudged(encoded):
    """`decode` by TensorFlow alone, for a graph that is saved: trusts the size in the header, takes a BMP's palette for greys."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _judge(encoded):
    return headers.check(encoded if isinstance(encoded, bytes) else encoded.item())  # outside a graph it comes as an array


def resize_short_side(image, size):
    """Scales an image, antialiased, so that its shorter side has `size` pixels; no work where it has them."""
    return resize_to_cover(image, size, size)


def resize_to_cover(image, height, width):
    """Scales [..., h, w, 3], antialiased, to the smallest size that covers `height` x `width`; no work where it has it.

    Raises:
      InvalidArgumentError: so long and narrow that it would then have more than `headers.MAX_PIXELS`.
    """
    shape = tf.cast(tf.shape(image)[-3:-1], tf.float32)
    scale = tf.reduce_max(tf.cast([height, width], tf.float32) / shape)
    reason = ["an image", "is too long and narrow to be scaled"]
    fine = tf.debugging.Assert(tf.reduce_prod(shape * scale) <= headers.MAX_PIXELS, reason)
    with tf.control_dependencies([] if fine is None else [fine]):
        scaled = tf.cast(tf.round(shape * scale), tf.int32)

    def resized():
        pixels = tf.image.resize(image, tf.maximum(scaled, [height, width]), antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

    return tf.cond(scale == 1, lambda: image, resized)


def central_crop(image, size, width=None):
    """The middle `size` x `size` pixels, or `size` x `width`, of [..., h, w, 3]."""
    width = size if width is None else width
    top, left = tf.unstack((tf.shape(image)[-3:-1] - [size, width]) // 2)
    return tf.ensure_shape(image[..., top : top + size, left : left + width, :], [*image.shape[:-3], size, width, 3])


def random_crop_and_flip(image, size, seed, flip):
    """A random `size` x `size` window, mirrored with probability 1/2 if `flip`; a function of `seed` (int64 [2])."""
    draws = tf.random.stateless_uniform([3], seed)
    room = tf.cast(tf.shape(image)[:2] - size + 1, tf.float32)
    top_left = tf.cast(draws[:2] * room, tf.int32)
    image = tf.ensure_shape(image[top_left[0] : top_left[0] + size, top_left[1] : top_left[1] + size], [size, size, 3])
    return tf.where(draws[2] < 0.5, image[:, ::-1], image) if flip else image
