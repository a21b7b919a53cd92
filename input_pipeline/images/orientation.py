"""Turns photos upright whose EXIF says that the camera was held sideways, in TensorFlow's operations only.

An orientation is a number from 1, upright, to 8 (JEITA CP-3451, tag 0x0112): the stored image is upright after its rows and
columns have been exchanged, for 5 to 8, and then its rows, its columns or both reversed.
"""

import tensorflow as tf

from input_pipeline.images import headers

_ROWS_REVERSED = [orientation in (3, 4, 7, 8) for orientation in range(9)]
_COLUMNS_REVERSED = [orientation in (2, 3, 6, 7) for orientation in range(9)]
# From a marker to the next: a fill byte has one byte, a bare marker two. The search ends at a frame. -1: it states its length.
_JPEG_STEPS = [1 if marker == 0xFF else 2 if marker in headers.JPEG_BARE else 0 if marker in headers.JPEG_FRAMES else -1
               for marker in range(256)]


def upright(image, orientation):
    """Turns a stored image or its `stored_window`, uint8 [height, width, 3], given its orientation, an int32 scalar."""
    image = tf.transpose(image, tf.where(orientation > 4, [1, 0, 2], [0, 1, 2]))
    reversed_axes = [tf.gather(_ROWS_REVERSED, orientation), tf.gather(_COLUMNS_REVERSED, orientation), False]
    return tf.raw_ops.Reverse(tensor=image, dims=reversed_axes)


def stored_window(window, height, width, orientation):
    """The window of a stored image that shows a window of the upright image of `height` x `width`.

    Windows are int32 [top, left, height, width]. `upright` turns what is decoded from this window.
    """
    top, left, rows, columns = tf.unstack(window)
    top = tf.where(tf.gather(_ROWS_REVERSED, orientation), height - top - rows, top)
    left = tf.where(tf.gather(_COLUMNS_REVERSED, orientation), width - left - columns, left)
    return tf.where(orientation > 4, [left, top, columns, rows], [top, left, rows, columns])


def read(encoded):
    """The orientation of an encoded image, int32, as `headers.read_orientation` reads it. Malformed EXIF is no error."""
    return tf.case([(tf.io.is_jpeg(encoded), lambda: read_jpeg(encoded)),
                    (_is_png(encoded), lambda: _stated_in(_find(encoded, 8, _part_of_png))),
                    (_is_webp_with_exif(encoded), lambda: _stated_in(_find(encoded, 12, _part_of_webp)))], default=lambda: 1)


def may_be_in(encoded):
    """Whether an image may have EXIF. False only if it has none; takes microseconds per 100 kB."""
    is_png = _is_png(encoded)
    searched = tf.strings.substr(encoded, 0, tf.where(is_png, tf.int32.max, headers.EXIF_WITHIN))  # it can be at a PNG's end
    return _is_webp_with_exif(encoded) | _occurs(tf.where(is_png, "eXIf", r"Exif\x00\x00"), searched)


def _is_png(encoded):
    return tf.equal(tf.strings.substr(encoded, 0, 8), b"\x89PNG\r\n\x1a\n")


def _is_webp_with_exif(encoded):
    head = _beginning(encoded, 0, 21)
    is_webp = tf.equal(tf.strings.substr(head, 0, 4), "RIFF") & tf.equal(tf.strings.substr(head, 8, 8), "WEBPVP8X")
    return is_webp & (_bytes(head)[20] & 8 > 0)  # the flag of EXIF


def read_jpeg(encoded):
    """`read` for a JPEG."""
    return _stated_in(_find(tf.strings.substr(encoded, 0, headers.EXIF_WITHIN), 2, _part_of_jpeg))


def may_be_in_jpeg(encoded):
    """Whether a JPEG may have EXIF: whether the bytes with which EXIF begins occur in its beginning. Takes microseconds."""
    return _occurs(r"Exif\x00\x00", tf.strings.substr(encoded, 0, headers.EXIF_WITHIN))


def _occurs(pattern, text):
    # This searches for a fixed text and ends at the first hit. A full match by a pattern is slower and always reads everything.
    without = tf.strings.regex_replace(text, pattern, "", replace_global=False)
    return tf.not_equal(tf.strings.length(without), tf.strings.length(text))


def _find(encoded, start, part_at):
    """The content of the first part of a file that holds EXIF; empty if there is none. The first part begins at byte `start`.

    `part_at` maps the first ten bytes of a part to its length (0 ends the search), the beginning and the length of its content,
    and whether that is EXIF.
    """
    size = tf.cast(tf.strings.length(encoded), tf.int64)

    def unread(position, found, _):
        return (position < size) & ~found

    def read_part(position, _, content):
        head = _beginning(encoded, position, 10)
        length, begin, content_length, found = part_at(head, _bytes(head))
        wanted = tf.where(found, tf.minimum(content_length, headers.MOST_EXIF_BYTES), 0)
        content = tf.strings.substr(encoded, tf.minimum(position + begin, size), wanted)
        return tf.where(length > 0, position + length, size), found, content

    first = tf.constant(start, tf.int64), tf.constant(False), tf.constant("")
    return tf.while_loop(unread, read_part, first, maximum_iterations=headers.MOST_PARTS)[2]


def _part_of_jpeg(head, values):
    marker, length = values[1], _number(values[2:4], False)
    step = tf.gather(tf.constant(_JPEG_STEPS, tf.int64), marker)
    step = tf.where(step < 0, tf.where(length >= 2, 2 + length, 0), step)
    is_marker = values[0] == 0xFF
    found = is_marker & (marker == 0xE1) & tf.equal(tf.strings.substr(head, 4, 6), headers.EXIF)
    return tf.where(is_marker, step, 0), 10, tf.maximum(length - 8, 0), found


def _part_of_png(head, values):
    name, length = tf.strings.substr(head, 4, 4), _number(values[:4], False)
    return tf.where(tf.not_equal(name, "IEND"), 12 + length, 0), 8, length, tf.equal(name, "eXIf")


def _part_of_webp(head, values):
    length = _number(values[4:8], True)
    return 8 + length + length % 2, 8, length, tf.equal(tf.strings.substr(head, 0, 4), "EXIF")


def _stated_in(exif):
    """The orientation in EXIF, int32: as `headers` reads it: 1 if it states none."""
    exif = tf.strings.regex_replace(exif, r"^Exif\x00\x00", "")
    mark, values = tf.strings.substr(exif, 0, 4), _bytes(exif)
    little = tf.equal(mark, b"II*\0")
    table = _number(values[4:8], little)
    count = tf.minimum(_number(values[table : table + 2], little), headers.MOST_ENTRIES)
    entries = values[table + 2 : table + 2 + 12 * count]
    rows = tf.size(entries, tf.int64) // 12
    entries = tf.concat([tf.reshape(entries[: 12 * rows], [-1, 12]), tf.zeros([1, 12], tf.int64)], axis=0)
    fits = _number(entries[:, :2], little) == headers.ORIENTATION_TAG
    entry = entries[tf.where(tf.reduce_any(fits), tf.argmax(fits), rows)]  # the last row, zeros, if there is none
    kind, number = _number(entry[2:4], little), _number(entry[4:8], little)
    forms = [_number(entry[8:10], little), _number(entry[8:12], little)]
    stated = tf.reduce_sum(tf.where(kind == [3, 4], forms, 0))
    valid = (little | tf.equal(mark, b"MM\0*")) & (number == 1) & (stated >= 1) & (stated <= 8)
    return tf.where(valid, tf.cast(stated, tf.int32), 1)


def _beginning(text, position, count):
    """`count` bytes of a string from a position on, with zeros for what lies behind its end."""
    return tf.strings.substr(tf.strings.join([tf.strings.substr(text, position, count), b"\0" * count]), 0, count)


def _bytes(text):
    return tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int64)


def _number(values, little):
    """The number that bytes, int64 [..., n], stand for, the lowest byte first if `little`, else last."""
    places = tf.range(tf.shape(values, tf.int64)[-1])
    places = tf.where(little, places, places[::-1])
    return tf.reduce_sum(tf.bitwise.left_shift(values, 8 * places), axis=-1)
