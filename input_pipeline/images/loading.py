"""Decodes a whole split. Finds examples that cannot be decoded, names them and, if the source allows it, leaves them out."""

import dataclasses
import time

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import CORES, without_autotune
from input_pipeline.common.errors import UnusableError, one_line_of
from input_pipeline.config import CLASS_NAMES
from input_pipeline.images import decoding, headers

_BATCH = 256
# TensorFlow puts the bytes of a record that it cannot parse into its message, and Python cannot read them as text.
READ_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


@dataclasses.dataclass
class BadExamples:
    """The unusable examples of a source: `found` is {where: why}. Each counts once; more than `limit` of them end the run."""

    limit: int = 0
    found: dict = dataclasses.field(default_factory=dict)

    def add(self, where, why, remedy):
        """Notes a bad example, what is wrong ("is truncated") and the remedy. Raises UnusableError beyond `limit` examples."""
        self.found.setdefault(where, why)
        if (count := len(self.found)) > self.limit:
            which = f" (--max_bad_examples={self.limit}, this is number {count})" if self.limit else ""
            tolerate = f"a larger --max_bad_examples than {self.limit}" if self.limit else "--max_bad_examples=N"
            raise UnusableError(f"{where}: {why}{which}; {remedy}, or give {tolerate} to skip such examples")

    def lines(self):
        """One line per skipped example, for a text file."""
        return [f"{where}: {why}" for where, why in list(self.found.items())[: self.limit]]


def decode_split(source, split, num_examples, image_size, decode_threads=0):
    """Decodes a split of a Source in its order, in `decode_threads` threads (0: one per core).

    Returns uint8 [n, height, width, 3] and int32 [n]; n is `num_examples` minus the skipped examples. If height and width in
    `image_size` are equal, images are scaled and cropped to it; otherwise they must already have that size. Raises UnusableError
    if more than `source.bad.limit` examples cannot be read or decoded, or all of them. The first pass decodes in parallel and
    does not ask why an example fails. Those that failed are then read again, one by one.
    """
    def decode(number, record):
        return number, *decode_example(source, record, image_size)

    threads = decode_threads or CORES
    if source.bad.limit:
        source.skip_damaged(split)  # otherwise the Dataset would end at the first damaged record
        num_examples = source.num_examples(split, "train_split")
    examples = source.records(split).map(decode, num_parallel_calls=threads)
    if source.bad.limit:
        examples = examples.ignore_errors()
    images = np.empty((num_examples, *image_size, 3), np.uint8)
    labels = np.empty(num_examples, np.int32)
    decoded = set()
    try:
        for numbers, image, label in without_autotune(examples.batch(_BATCH).prefetch(2), threads):
            rows = slice(len(decoded), len(decoded) + len(label))
            images[rows], labels[rows] = image, label
            decoded.update(numbers.numpy().tolist())
    except READ_ERRORS as error:
        _explain(source, split, image_size, decoded)
        source.skip_damaged(split)
        where, reason = f"{source.name}: {split} cannot be read after {len(decoded)} examples", one_line_of(error)
        raise UnusableError(f"{where} ({reason}); prepare the data again") from None
    if len(decoded) < num_examples:
        _explain(source, split, image_size, decoded)
    if not decoded:
        raise _nothing_good(source, split)
    return images[: len(decoded)], labels[: len(decoded)]


def decode_example(source, record, image_size):
    """A record -> uint8 [height, width, 3] of `image_size`, or of the image's own size if that is None; and the label, int64."""
    example = source.parse(record)
    image = _fitted(decoding.decode(example["image"]), image_size)
    return tf.ensure_shape(image, [*(image_size or (None, None)), 3]), checked_label(source, example)


def checked_label(source, example):
    """The label of a parsed example, int64. Raises InvalidArgumentError if there is no such class."""
    label = example["label"]
    return decoding.require((label >= 0) & (label < len(source.class_names)), ["label out of range:", label], label)


def _fitted(image, image_size):
    if image_size is None or image_size[0] != image_size[1]:
        return image
    return decoding.central_crop(decoding.resize_short_side(image, image_size[0]), image_size[0])


def _explain(source, split, image_size, decoded):
    """Reads examples one by one, except those whose numbers are in `decoded`, and notes in `source.bad` those that fail."""
    try:
        for number, record in without_autotune(source.records(split)).as_numpy_iterator():
            if number not in decoded:
                # If bad examples are skipped, all examples were tried: one that fails only at times was left out, so list it too.
                _is_bad(source, split, number, record, image_size, "cannot be decoded" if source.bad.limit else "")
    except tf.errors.OpError:
        return  # a damaged record, which `Source.skip_damaged` finds


def first_good(source, split):
    """The first record that can be used. Notes those before it in `source.bad`. Raises UnusableError if there is none."""
    for number, record in without_autotune(source.records(split)).as_numpy_iterator():
        if not _is_bad(source, split, number, record):
            return record
    raise _nothing_good(source, split)


def note_bad_example(source, split, number, record):
    """Notes in a graph that a record cannot be used; returns a tensor to wait for.

    If there are too many, the graph fails with a TensorFlow error whose text contains that of the UnusableError.
    """
    def note(number, record):
        record = record if isinstance(record, bytes) else record.item()  # outside a graph it is an array
        return _is_bad(source, split, int(number), record, otherwise="cannot be decoded")

    return tf.numpy_function(note, [number, record], tf.bool)


def name_bad_example(source, split, seconds=60, clock=time.monotonic):
    """Looks for the first example of `split` that cannot be used, and raises UnusableError, which names it, if it finds one.

    A stream that fails does not know which example it was. So this decodes the images once more, in parallel, and gives up after
    so many `seconds` by `clock`.
    """
    def decode(position, numbered):
        image, label = decode_example(source, numbered[1], None)
        return position, numbered[0], tf.size(image), label

    examples = source.records(split).enumerate().map(decode, num_parallel_calls=CORES).ignore_errors()
    decoded, deadline = set(), clock() + seconds
    for position, number, _, _ in without_autotune(examples.prefetch(_BATCH)).as_numpy_iterator():
        if clock() > deadline:
            return
        if position > len(decoded):
            break
        decoded.add(number)
    _explain(source, split, None, decoded)


def _nothing_good(source, split):
    return UnusableError(f"{source.name}: {split} contains no example that can be decoded; give other data")


def _is_bad(source, split, number, record, image_size=None, otherwise=""):
    """Whether an example cannot be used, which is noted in `source.bad`. `otherwise` is the reason if none is found."""
    reason = _why_not(source, record, image_size) or otherwise
    if reason:
        source.bad.add(source.where(split, number), reason, "replace or remove it")
    return bool(reason)


def _why_not(source, record, image_size):
    """Why a record cannot be used; empty if it can."""
    try:
        example = source.parse(record)
    except READ_ERRORS as error:
        reason = "it is no tf.train.Example" if isinstance(error, UnicodeDecodeError) else one_line_of(error)
        return f"cannot be read ({reason})"
    label = int(example["label"])
    if label < 0:
        return f"is without a label ({label})"
    if label >= len(source.class_names):
        classes = len(source.class_names)
        hint = f": labels count from 0, and a first line for label 0 in {CLASS_NAMES} serves labels that count from 1"
        return f"has the label {label}, out of range of {classes} classes{hint if label == classes else ''}"
    if reason := why_undecodable(example["image"].numpy(), lambda image: _fitted(image, image_size)):
        return reason
    height, width, _ = decoding.decode(example["image"]).shape
    if image_size is not None and image_size[0] != image_size[1] and (height, width) != tuple(image_size):
        return f"is {height} x {width} pixels, others are {image_size[0]} x {image_size[1]}"
    return ""


def why_undecodable(encoded, view=lambda image: image):
    """Why the bytes of an image file cannot be decoded, or the image cannot be transformed by `view`; empty if they can."""
    try:
        image = decoding.decode(encoded)
    except tf.errors.OpError as error:
        return headers.check(encoded) or f"is damaged or cut off ({one_line_of(error)})"
    try:
        view(image)
    except tf.errors.OpError:
        return f"is {image.shape[0]} x {image.shape[1]} pixels, too long and narrow to be scaled"
    return ""
