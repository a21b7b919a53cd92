"""Image functions for TensorFlow graphs: decoding, resizing, cropping, flipping. Everything uint8, [height, width, 3].

Those that say [..., height, width, 3] take a batch of images of one size, too.
"""

import tensorflow as tf

from input_pipeline.images import headers


def decode(encoded):
    """PNG, JPEG, WebP, BMP or a GIF's first frame: bytes -> uint8 [height, width, 3].

    Grey becomes three equal channels, a palette its colours, 16 bits their upper 8; alpha is dropped, the colours stay as stored.

    Raises:
      InvalidArgumentError: it is damaged, of another kind, or by its header larger than `headers.MAX_PIXELS`.
    """
    reason = tf.ensure_shape(tf.numpy_function(_check, [encoded], tf.string, stateful=False), [])
    fine = tf.debugging.Assert(tf.equal(reason, ""), ["an image", reason])  # before anything is allocated for it
    with tf.control_dependencies([] if fine is None else [fine]):
        encoded = tf.identity(encoded)
    return decode_unchecked(encoded)


def decode_unchecked(encoded):
    """`decode` by TensorFlow alone, for a graph that is saved: trusts the size in the header, takes a BMP's palette for greys."""
    webp = _webp_of_four(encoded)

    def in_four():
        return tf.io.decode_image(webp, channels=4, expand_animations=False)[..., :3]

    def in_three():
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    return tf.ensure_shape(tf.cond(tf.not_equal(webp, ""), in_four, in_three), [None, None, 3])


def _webp_of_four(encoded):
    """A WebP file with alpha or an animation, else empty: TensorFlow's kernel gives four channels of such, and no other number.

    The flag of alpha is set in an animation without: asked for four channels it refuses that, and for as many as there are it
    writes beyond its memory (TensorFlow 2.21).
    """
    head = tf.strings.substr(tf.strings.join([tf.strings.substr(encoded, 0, 32), " " * 32]), 0, 32)
    byte, kind = tf.io.decode_raw(head, tf.uint8), tf.strings.substr(head, 12, 4)
    is_webp = tf.equal(tf.strings.substr(head, 0, 4), "RIFF") & tf.equal(tf.strings.substr(head, 8, 4), "WEBP")
    extended = is_webp & tf.equal(kind, "VP8X") & (byte[20] & 0x12 != 0)  # alpha, animation (RFC 9649, section 2.7.1)
    lossless = is_webp & tf.equal(kind, "VP8L") & (byte[24] & 0x10 != 0)  # alpha_is_used (section 3.4)

    def with_alpha():
        flags = tf.gather([bytes([value]) for value in range(256)], tf.cast(byte[20] | 0x10, tf.int32))
        return tf.strings.join([tf.strings.substr(encoded, 0, 20), flags, tf.strings.substr(encoded, 21, tf.int32.max)])

    return tf.cond(extended, with_alpha, lambda: tf.where(lossless, encoded, ""))


def _check(encoded):
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


def random_window(seed, size, margin):
    """The paper's training crop (section 4.1): a window that has `size` pixels a side once the short side has size + margin.

    The image need not be scaled for that: the window's side is the short side's share of size / (size + margin).

    Args:
      seed: int64 [2]; the results are a function of it.
      size: pixels.
      margin: pixels.

    Returns:
      A function of an image's height and width, int32 scalars, that gives its window, int32 [top, left, height, width]; and
      whether to mirror it, bool scalar, with probability 1/2.
    """
    draws = tf.random.stateless_uniform([3], seed)

    def window_of(height, width):
        short = tf.cast(tf.minimum(height, width), tf.float32)
        side = tf.maximum(tf.cast(tf.round(short * (size / (size + margin))), tf.int32), 1)
        room = tf.cast(tf.stack([height, width]) - side + 1, tf.float32)
        return tf.concat([tf.cast(draws[:2] * room, tf.int32), [side, side]], axis=0)

    return window_of, draws[2] < 0.5


def decode_window(encoded, window_of, size, mirrored):
    """Decodes a window of an image and scales it to `size` x `size`. Of a JPEG only the window is decoded.

    Args:
      encoded: bytes, string scalar.
      window_of: a function of the image's height and width that gives the window, int32 [top, left, height, width].
      size: pixels.
      mirrored: whether to mirror it left-right, bool scalar tensor; None: never.

    Returns:
      uint8 [size, size, 3].

    Raises:
      InvalidArgumentError: as `decode`; what a JPEG lacks outside of the window is not missed.
    """
    def of_jpeg():
        shape = tf.image.extract_jpeg_shape(encoded)
        fits = tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= headers.MAX_PIXELS
        limit = f"the limit is {headers.MAX_PIXELS} pixels"
        fine = tf.debugging.Assert(fits, ["an image", "is huge: height, width and channels are", shape, limit], summarize=3)
        with tf.control_dependencies([] if fine is None else [fine]):  # progressive ones are held whole to decode a part
            window = window_of(shape[0], shape[1])
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3)

    def of_other():
        image = decode(encoded)
        top, left, rows, columns = tf.unstack(window_of(*tf.unstack(tf.shape(image)[:2])))
        return image[top : top + rows, left : left + columns]

    image = _scaled(tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_other), size)
    if mirrored is not None:
        image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)  # a slice with step -1 is far slower
    return tf.ensure_shape(image, [size, size, 3])


def _scaled(image, size):
    """A window scaled to `size` x `size`."""
    rows, columns = tf.unstack(tf.shape(image)[:2])

    def plain():
        pixels = tf.cast(image, tf.float32)[tf.newaxis]  # for which the kernel is nearly twice as fast as for uint8
        return tf.cast(tf.raw_ops.ResizeBilinear(images=pixels, size=[size, size], half_pixel_centers=True)[0] + 0.5, tf.uint8)

    def antialiased():
        pixels = tf.image.resize(image, [size, size], antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

    # Up to half the size, the 2 x 2 pixels that are interpolated miss next to none, at a fifth of the time.
    near = tf.maximum(rows, columns) <= 2 * size
    return tf.cond((rows == size) & (columns == size), lambda: image, lambda: tf.cond(near, plain, antialiased))
