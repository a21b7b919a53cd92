"""Image functions for TensorFlow graphs: decoding, resizing, cropping, flipping. Everything uint8, [height, width, 3]."""

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
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _judge(encoded):
    return headers.check(encoded if isinstance(encoded, bytes) else encoded.item())  # outside a graph it comes as an array


def resize_short_side(image, size):
    """Scales an image, antialiased, so that its shorter side has `size` pixels; no work where it has them."""
    shape = tf.shape(image)[:2]
    short = tf.reduce_min(shape)
    scaled = tf.cast(tf.round(tf.cast(shape, tf.float32) * (tf.cast(size, tf.float32) / tf.cast(short, tf.float32))), tf.int32)

    def resized():
        pixels = tf.image.resize(image, tf.maximum(scaled, size), antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

    return tf.cond(short == size, lambda: image, resized)


def central_crop(image, size):
    """The middle `size` x `size` pixels."""
    top_left = (tf.shape(image)[:2] - size) // 2
    return tf.ensure_shape(image[top_left[0] : top_left[0] + size, top_left[1] : top_left[1] + size], [size, size, 3])


def random_crop_and_flip(image, size, seed, flip):
    """A random `size` x `size` window, mirrored with probability 1/2 if `flip`; a function of `seed` (int64 [2])."""
    draws = tf.random.stateless_uniform([3], seed)
    room = tf.cast(tf.shape(image)[:2] - size + 1, tf.float32)
    top_left = tf.cast(draws[:2] * room, tf.int32)
    image = tf.ensure_shape(image[top_left[0] : top_left[0] + size, top_left[1] : top_left[1] + size], [size, size, 3])
    return tf.where(draws[2] < 0.5, image[:, ::-1], image) if flip else image
