"""The input pipelines that the benchmark compares with: those of tutorials and of per-example code, and the parts of a stream.

None of them trains anything. `epochs` is how often the examples are repeated; None, the usual case, repeats them without end.
They repeat before the shuffle. Otherwise the shuffle buffer would be refilled at the end of each epoch, in some of the short
rounds of a benchmark and not in others.
"""

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import CORES, without_autotune
from input_pipeline.images import decoding

SHUFFLED = 10_000  # examples
SHUFFLED_RECORDS = 1024  # encoded examples, fewer than a real stream shuffles: more would cost memory, not time
PREFETCHED_BATCHES = 2


def _scaled(image, label):
    return tf.cast(image, tf.float32) / 255, label


def tutorial(images, labels, batch_size, epochs=None):
    """The pipeline of tutorials: slices, map(cast), shuffle(10000), batch. No augmentation, TensorFlow's own options.

    Args:
      images, labels: uint8 [n, height, width, 3] and int32 [n]; arrays or tensors.
      batch_size: images.
      epochs: see the module.

    Returns:
      Dataset of (float32 [batch_size, height, width, 3] in [0, 1], int32 [batch_size]). A shorter last batch is dropped.
    """
    slices = tf.data.Dataset.from_tensor_slices((images, labels)).map(_scaled)
    repeated = slices if epochs == 1 else slices.repeat(epochs)
    return repeated.shuffle(SHUFFLED).batch(batch_size, drop_remainder=True)


def canonical(images, labels, batch_size, augmentations, epochs=None):
    """The recommended pipeline that works on one example at a time, with the augmentations of `ResidentSplit`.

    It shuffles first, so that the buffer holds uint8. Then each example is padded with zeros by an eighth of the height, cropped
    and flipped at random and cast; then batch and prefetch. All parallelism and buffers are AUTOTUNE. Arguments and elements are
    those of `tutorial`; augmentations: any of "crop", "flip".
    """
    padding = images.shape[1] // 8 if "crop" in augmentations else 0
    shape = tuple(images.shape[1:])

    def augmented(image, label):
        if padding:
            image = tf.image.random_crop(tf.pad(image, [(padding, padding), (padding, padding), (0, 0)]), shape)
        if "flip" in augmentations:
            image = tf.image.random_flip_left_right(image)
        return _scaled(image, label)

    slices = tf.data.Dataset.from_tensor_slices((images, labels)).repeat(epochs).shuffle(SHUFFLED)
    return _batched(slices.map(augmented, num_parallel_calls=tf.data.AUTOTUNE), batch_size)


def canonical_stream(split, batch_size, augmentations, epochs=None):
    """`canonical` for a StreamingSplit: decodes, resizes, crops, flips and casts record by record, AUTOTUNE everywhere."""
    size = split.image_size

    def decoded(_, record):
        example = split.source.parse(record)
        image = decoding.resize_short_side(decoding.decode(example["image"]), size + split.margin)
        image = tf.image.random_crop(image, (size, size, 3))
        if "flip" in augmentations:
            image = tf.image.random_flip_left_right(image)
        return _scaled(image, tf.cast(example["label"], tf.int32))

    shuffled = split.source.records(split.split).repeat(epochs).shuffle(SHUFFLED_RECORDS)
    return _batched(_without_bad(split, shuffled.map(decoded, num_parallel_calls=tf.data.AUTOTUNE)), batch_size)


def _batched(examples, batch_size):
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def part_of_stream(name, split, batch_size, seed, augmentations, epochs=None):
    """The first steps of what a StreamingSplit does, in batches, in a shuffled order. Nothing is resized or flipped.

    Whole images of different sizes cannot be batched, so there is one pixel of each. Without it, TensorFlow would leave out the
    decoding.

    Args:
      name: "read": records are neither parsed nor decoded. "read_decode": they are parsed and decoded completely. "decode_crop":
        records with JPEGs, of which only the windows that training would cut are decoded.
      split: StreamingSplit.
      batch_size, seed, augmentations: as in training.
      epochs: see the module.

    Returns:
      Dataset of (first pixel of the decoded part, uint8 [batch_size, 3]; label, int64 [batch_size]), without autotune; for "read"
      of (number, int64 [batch_size]; serialized example, bytes [batch_size]).
    """

    def decode(position, numbered):
        example = split.source.parse(numbered[1])
        if name == "read_decode":
            return decoding.decode(example["image"])[0, 0], example["label"]
        window_of, _ = split.random_window(seed, position, augmentations)
        height, width, _ = tf.unstack(tf.image.extract_jpeg_shape(example["image"]))
        image = tf.image.decode_and_crop_jpeg(example["image"], window_of(height, width), channels=3)
        return image[0, 0], example["label"]

    numbers = tf.data.Dataset.range(np.iinfo(np.int64).max if epochs is None else epochs)
    examples = numbers.flat_map(lambda epoch: split.source.shuffled_records(split.split, seed, epoch, SHUFFLED_RECORDS))
    if name != "read":
        examples = _without_bad(split, examples.enumerate().map(decode, num_parallel_calls=CORES))
    return without_autotune(examples.batch(batch_size, drop_remainder=True).prefetch(PREFETCHED_BATCHES))


def _without_bad(split, examples):
    return examples.ignore_errors() if split.source.bad.limit else examples


def numpy_gather(images, labels, batch_size, seed=0):
    """Yields batches of whole images without end, gathered by NumPy in random order in one thread, with no other work.

    This is the upper bound of what memory allows. Elements are (uint8 [batch_size, ...], int32 [batch_size]). If batch_size does
    not divide an epoch, its last batch goes on with examples of the next epoch.
    """
    generator = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, generator.permutation(len(labels))])
        index, order = order[:batch_size], order[batch_size:]
        yield images[index], labels[index]
