"""Decodes a whole split. What cannot be decoded is found, named and, as far as the source allows, left out."""

import time

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import CORES, without_autotune
from input_pipeline.common.errors import UnusableError, one_line_of
from input_pipeline.images import decoding as augment
from input_pipeline.images import headers

_BATCH = 256
_REMEDY = "replace or remove it"


def decode_split(source, split, num_examples, image_size, decode_threads=0):
    """Decodes the examples of a split, in their order.

    A first pass decodes in parallel and does not ask why something fails; what failed is then read once more, alone.

    Args:
      source: Source.
      split: TFDS slicing syntax.
      num_examples: how many examples `split` has.
      image_size: (height, width) of the result; where equal, each image is scaled and cut to it, else it has that size.
      decode_threads: how many to decode with, 0: one per core.

    Returns:
      uint8 [n, height, width, 3] and int32 [n]; n is num_examples less what was skipped, up to `source.bad.limit`.

    Raises:
      UnusableError: more than that cannot be read or decoded, or nothing can.
    """
    tolerant = source.bad.limit > 0
    if tolerant:
        source.skip_damaged(split)  # a stream of records ends at the first one that is damaged
        num_examples = sum(1 for _ in without_autotune(source.records(split))) if source.bad.found else num_examples

    def decode(position, record):
        image, label = decode_example(source, record, image_size)
        return position, image, label

    threads = decode_threads or CORES
    examples = source.records(split).enumerate().map(decode, num_parallel_calls=threads)
    if tolerant:
        examples = examples.ignore_errors()
    images = np.empty((num_examples, *image_size, 3), np.uint8)
    labels = np.empty(num_examples, np.int32)
    whole, filled = np.zeros(num_examples, bool), 0
    try:
        for position, image, label in without_autotune(examples.batch(_BATCH).prefetch(2), threads):
            images[filled : filled + len(label)], labels[filled : filled + len(label)] = image, label
            whole[position.numpy()] = True
            filled += len(label)
            if position[-1] - filled >= source.bad.limit + _BATCH:
                break  # enough to stop for
        else:
            position = [num_examples - 1]
    except tf.errors.OpError as error:
        explain(source, split, image_size, filled)
        source.skip_damaged(split)
        text = f"{source.name}: {split} cannot be read after {filled} examples ({one_line_of(error)}); prepare the data again"
        raise UnusableError(text) from None
    if filled < num_examples:
        explain(source, split, image_size, 0, set(np.flatnonzero(~whole[: int(position[-1]) + 1])))
    if not filled:
        raise _nothing_good(source, split)
    return images[:filled], labels[:filled]


def decode_example(source, record, image_size):
    """uint8 [height, width, 3] and the label of one record, in a TensorFlow graph or eagerly; image_size None: of any size."""
    example = source.parse(record)
    image = _fitted(augment.decode(example["image"]), image_size)
    return tf.ensure_shape(image, [*(image_size or (None, None)), 3]), checked_label(source, example)


def checked_label(source, example):
    """The label of an example of `Source.parse`, int64; InvalidArgumentError where there is no such class."""
    label = example["label"]
    inside = tf.debugging.Assert((label >= 0) & (label < len(source.class_names)), ["label out of range:", label])
    with tf.control_dependencies([inside] if inside is not None else []):
        return tf.identity(label)


def _fitted(image, image_size):
    if image_size is None or image_size[0] != image_size[1]:
        return image
    return augment.central_crop(augment.resize_short_side(image, image_size[0]), image_size[0])


def explain(source, split, image_size, first, positions=None):
    """Reads examples one by one and notes in `source.bad` those that fail.

    Args:
      first: the position to begin at; without `positions` the search goes on from there to the first failure.
      positions: those to look at, all others are known to be whole.

    Raises:
      UnusableError: they are more than are allowed.
    """
    located = iter(without_autotune(source.located_records(split).enumerate().skip(first)))
    while True:
        try:
            position, (where, record) = next(located)
        except (StopIteration, tf.errors.OpError):  # of a damaged record: `Source.skip_damaged` finds which
            return
        if positions is None or int(position) in positions:
            reason = why_not(source, record, image_size)
            if reason or positions:
                source.bad.add(where.numpy().decode(errors="replace"), reason or "cannot be decoded", _REMEDY)


def first_good(source, split):
    """The first record of a split that can be used. Those before it are noted in `source.bad`.

    Raises:
      UnusableError: they are more than are allowed, or all.
    """
    for where, record in without_autotune(source.located_records(split)):
        reason = why_not(source, record, None)
        if not reason:
            return record
        source.bad.add(where.numpy().decode(errors="replace"), reason, _REMEDY)
    raise _nothing_good(source, split)


def note_bad_example(source, where, record):
    """Notes in `source.bad` that a record cannot be used. Runs in a graph; returns a tensor to wait for.

    More than are allowed end the graph's execution with an error of TensorFlow's whose text holds that of the UnusableError.
    """
    def note(*texts):
        where, record = (text if isinstance(text, bytes) else text.item() for text in texts)  # outside a graph they are arrays
        source.bad.add(where.decode(errors="replace"), why_not(source, record, None) or "cannot be decoded", _REMEDY)
        return np.int64(len(source.bad.found))

    return tf.numpy_function(note, [where, record], tf.int64)


def name_bad_example(source, split, seconds=60, clock=time.monotonic):
    """Looks for the first example of `split` that cannot be used: what a stream that failed on it does not know.

    Args:
      seconds: after which it gives up; the images are decoded in parallel once more.
      clock: returns seconds.

    Raises:
      UnusableError: found; the line names it.
    """
    def decode(position, record):
        image, label = decode_example(source, record, None)
        return position, tf.size(image), label

    examples = source.records(split).enumerate().map(decode, num_parallel_calls=CORES).ignore_errors()
    whole, deadline = 0, clock() + seconds
    for position, _, _ in without_autotune(examples.prefetch(_BATCH)).as_numpy_iterator():
        if clock() > deadline:
            return
        if position > whole:
            break
        whole += 1
    explain(source, split, None, whole)


def _nothing_good(source, split):
    return UnusableError(f"{source.name}: {split} holds no example that can be decoded; give other data")


def why_not(source, record, image_size):
    """Why a record cannot be used; empty where it can."""
    try:
        example = source.parse(record)
    except tf.errors.OpError as error:
        return f"cannot be read ({one_line_of(error)})"
    label = int(example["label"])
    if label < 0:
        return f"is without a label ({label})"
    if label >= len(source.class_names):
        return f"has the label {label}, out of range of {len(source.class_names)} classes"
    if reason := why_undecodable(example["image"].numpy(), lambda image: _fitted(image, image_size)):
        return reason
    image = augment.decode(example["image"])
    if image_size is not None and image_size[0] != image_size[1] and tuple(image.shape[:2]) != tuple(image_size):
        return f"is {image.shape[0]} x {image.shape[1]} pixels, others are {image_size[0]} x {image_size[1]}"
    return ""


def why_undecodable(encoded, view=lambda image: image):
    """Why the bytes of an image file cannot be decoded, or the image not be brought into shape by `view`; empty where it can."""
    try:
        image = augment.decode(encoded)
    except tf.errors.OpError as error:
        return headers.check(encoded) or f"is damaged or cut off ({one_line_of(error)})"
    try:
        view(image)
    except tf.errors.OpError:
        return f"is {image.shape[0]} x {image.shape[1]} pixels, too long and narrow to be scaled"
    return ""
