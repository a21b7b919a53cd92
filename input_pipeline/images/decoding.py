"""Image functions for TensorFlow graphs: decode, resize, crop, flip. Images are uint8 [height, width, 3].

Functions that accept [..., height, width, 3] also accept a batch of images of one size.
"""

import numpy as np
import tensorflow as tf

from input_pipeline.images import headers, orientation

EXACT = "INTEGER_ACCURATE"  # TensorFlow's name for the transform that Pillow uses; takes 2 % longer


def require(condition, reason, tensor):
    """`tensor`, but InvalidArgumentError with the parts of `reason` if `condition` is false. Works in a graph and eagerly."""
    check = tf.debugging.Assert(condition, reason, summarize=3)
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(tensor)


def rarely(function):
    """Decorates a branch that is seldom taken, so that it costs nothing where it is not taken.

    TensorFlow merges both branches into the graph, and visits each operation of the one that is not taken. With the attribute,
    the branch stays one operation.
    """
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def decode(encoded):
    """PNG, JPEG, WebP, BMP or the first frame of a GIF: bytes -> uint8 [height, width, 3], turned upright as its EXIF says.

    Grey becomes three equal channels, and a palette its colours. Of 16 bits the upper 8 are kept. Alpha is dropped without
    blending: the colours stay as stored. Raises InvalidArgumentError if the image is damaged, of another format, or has more
    than `headers.MAX_PIXELS` by its header.
    """
    def inspect(encoded):
        reason, turn = headers.inspect(encoded if isinstance(encoded, bytes) else encoded.item())  # outside a graph: an array
        return reason, np.int32(turn)

    reason, turn = tf.numpy_function(inspect, [encoded], [tf.string, tf.int32], stateful=False)
    # Check before decoding, because a decoder allocates memory for all pixels that the header claims.
    encoded = require(tf.equal(tf.ensure_shape(reason, []), ""), ["an image", reason], encoded)
    turn = tf.ensure_shape(turn, [])

    @rarely
    def otherwise():
        image = _stored_with_exif(encoded)
        return tf.cond(tf.abs(turn) <= 1, lambda: image, lambda: orientation.upright(image, tf.abs(turn)))

    # Nearly all images are upright and no WebP, and one operation decodes them.
    return tf.ensure_shape(tf.cond(tf.equal(turn, 1), lambda: _decode_image(encoded), otherwise), [None, None, 3])


def decode_unchecked(encoded):
    """`decode` in TensorFlow's operations only, for saved graphs. Trusts the size in a header, takes a BMP's palette for grey."""
    @rarely
    def with_exif():
        return orientation.upright(_stored_with_exif(encoded), orientation.read(encoded))

    image = tf.cond(orientation.may_be_in(encoded), with_exif, lambda: _stored(encoded))
    return tf.ensure_shape(image, [None, None, 3])


def _stored(encoded):
    """The image as the file stores it: it may lie on its side."""
    webp = _webp_of_four(encoded)
    return tf.cond(tf.not_equal(webp, ""), lambda: tf.io.decode_image(webp, channels=4, expand_animations=False)[..., :3],
                   lambda: _decode_image(encoded))


def _stored_with_exif(encoded):
    """`_stored` for a file with EXIF: a JPEG gets the pixels of Pillow. Without EXIF it keeps those of TensorFlow's default."""
    return tf.cond(tf.io.is_jpeg(encoded), lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method=EXACT),
                   lambda: _stored(encoded))


def _decode_image(encoded):
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _webp_of_four(encoded):
    """A WebP file with alpha or an animation, else empty. TensorFlow decodes such a file to four channels and no other number.

    In an animation without alpha, this sets the flag of alpha. Without it, TensorFlow 2.21 refuses to decode the file to four
    channels; and if asked for the file's own number of channels, it writes beyond its memory.
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


def resize_short_side(image, size):
    """Scales an image, antialiased, so that its shorter side has `size` pixels; returns it as it is if it already does."""
    return resize_to_cover(image, size, size)


def resize_to_cover(image, height, width):
    """Scales [..., h, w, 3], antialiased, to the smallest size that covers `height` x `width`.

    Raises InvalidArgumentError if the image is so narrow that the result would have more than `headers.MAX_PIXELS`.
    """
    shape = tf.cast(tf.shape(image)[-3:-1], tf.float32)
    scale = tf.reduce_max(tf.cast([height, width], tf.float32) / shape)
    fits = tf.reduce_prod(shape * scale) <= headers.MAX_PIXELS
    scaled = tf.cast(tf.round(require(fits, ["an image", "is too long and narrow to be scaled"], shape * scale)), tf.int32)
    return tf.cond(scale == 1, lambda: image, lambda: _antialiased(image, tf.maximum(scaled, [height, width])))


def _antialiased(image, size):
    return tf.cast(tf.clip_by_value(tf.round(tf.image.resize(image, size, antialias=True)), 0, 255), tf.uint8)


def central_crop(image, size, width=None):
    """The middle `size` x `size` pixels, or `size` x `width`, of [..., h, w, 3]."""
    width = size if width is None else width
    top, left = tf.unstack((tf.shape(image)[-3:-1] - [size, width]) // 2)
    return tf.ensure_shape(image[..., top : top + size, left : left + width, :], [*image.shape[:-3], size, width, 3])


def random_window(seed, size, margin):
    """The paper's training crop (section 4.1): a square of `size` pixels from an image whose short side has size + margin.

    The image is not scaled first. Instead, the square's side is the fraction size / (size + margin) of the short side. The
    results are a function of `seed`, int64 [2]: a function (height, width) -> window, of int32 scalars to int32 [top, left,
    height, width]; and whether to mirror the window, a bool scalar, true with probability 1/2.
    """
    draws = tf.random.stateless_uniform([3], seed)

    def window_of(height, width):
        short = tf.cast(tf.minimum(height, width), tf.float32)
        side = tf.maximum(tf.cast(tf.round(short * (size / (size + margin))), tf.int32), 1)
        room = tf.cast(tf.stack([height, width]) - side + 1, tf.float32)
        return tf.concat([tf.cast(draws[:2] * room, tf.int32), [side, side]], axis=0)

    return window_of, draws[2] < 0.5


def decode_window(encoded, window_of, size, mirrored):
    """Decodes a window of the upright image and scales it: bytes -> uint8 [size, size, 3]. For a JPEG, decodes only the window.

    `window_of` and `mirrored` are those of `random_window`; mirrored=None: never. Raises InvalidArgumentError as `decode` does,
    but does not notice damage outside of a JPEG's window.
    """
    def of_jpeg():
        shape = tf.image.extract_jpeg_shape(encoded)
        # The decoder keeps all of a progressive JPEG in memory, even to decode a part of it.
        fits = tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= headers.MAX_PIXELS
        limit = f"the limit is {headers.MAX_PIXELS} pixels"
        height, width, _ = tf.unstack(require(fits, ["an image", "is huge: height, width and channels are", shape, limit], shape))

        def of_upright():
            return tf.image.decode_and_crop_jpeg(encoded, window_of(height, width), channels=3)

        @rarely
        def with_exif():
            turn = orientation.read_jpeg(encoded)
            size = tf.where(turn > 4, [width, height], [height, width])
            window = orientation.stored_window(window_of(size[0], size[1]), size[0], size[1], turn)
            return orientation.upright(tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method=EXACT), turn)

        return tf.cond(orientation.may_be_in_jpeg(encoded), with_exif, of_upright)

    @rarely
    def of_other():
        image = decode(encoded)
        top, left, rows, columns = tf.unstack(window_of(*tf.unstack(tf.shape(image)[:2])))
        return image[top : top + rows, left : left + columns]

    image = _scaled(tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_other), size)
    if mirrored is not None:
        image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)  # a slice with step -1 is much slower
    return tf.ensure_shape(image, [size, size, 3])


def _scaled(image, size):
    rows, columns = tf.unstack(tf.shape(image)[:2])

    def plain():
        pixels = tf.cast(image, tf.float32)[tf.newaxis]  # the kernel is nearly twice as fast for float32 as for uint8
        return tf.cast(tf.raw_ops.ResizeBilinear(images=pixels, size=[size, size], half_pixel_centers=True)[0] + 0.5, tf.uint8)

    # Down to half the size, interpolating 2 x 2 pixels ignores almost no pixel, and takes a fifth of the time.
    near = tf.maximum(rows, columns) <= 2 * size
    return tf.cond((rows == size) & (columns == size), lambda: image,
                   lambda: tf.cond(near, plain, lambda: _antialiased(image, [size, size])))
