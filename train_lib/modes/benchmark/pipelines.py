"""The input pipelines that the benchmark compares with: what tutorials and per-example code do, and the parts of a stream.

None of them trains anything. Each `epochs` is how often the examples come; None: for ever, the usual case. They repeat before the
shuffle: else its refill at the end of each epoch would fall into some of the short rounds of a benchmark and not into others.
"""

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import CORES, without_autotune
from input_pipeline.images import decoding as augment

SHUFFLED = 10_000  # examples
SHUFFLED_RECORDS = 1024  # encoded ones, fewer than a real stream's: their number costs memory, not time
PREFETCHED_BATCHES = 2


def _scaled(image, label):
    return tf.cast(image, tf.float32) / 255, label


def tutorial(images, labels, batch_size, epochs=None):
    """What tutorials write: slices, map(cast), shuffle(10000), batch; no augmentation, TensorFlow's own options.

    Args:
      images, labels: uint8 [n, height, width, 3] and int32 [n]; arrays or tensors.
      batch_size: images.
      epochs: see the module.

    Returns:
      Dataset of (float32 [batch_size, height, width, 3] in [0, 1], int32 [batch_size]), without a shorter last batch.
    """
    slices = tf.data.Dataset.from_tensor_slices((images, labels)).map(_scaled)
    return slices.repeat(epochs).shuffle(SHUFFLED).batch(batch_size, drop_remainder=True)


def canonical(images, labels, batch_size, augmentations, epochs=None):
    """The per-example pipeline of good practice, with the distribution of `ResidentSplit.training_batches`.

    Shuffle (first, so that its buffer holds uint8), then per example zero padding by an eighth of the height, a random window,
    a random flip, cast; batch, prefetch. All parallelism and buffers are AUTOTUNE. Arguments and elements: see `tutorial`;
    augmentations: any of "crop", "flip".
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
    """`canonical` for a StreamingSplit: decodes, resizes, cuts, flips and casts one record at a time, AUTOTUNE throughout."""
    size = split.image_size

    def decoded(record):
        example = split.source.parse(record)
        image = augment.resize_short_side(augment.decode(example["image"]), size + split.margin)
        image = tf.image.random_crop(image, (size, size, 3))
        if "flip" in augmentations:
            image = tf.image.random_flip_left_right(image)
        return _scaled(image, tf.cast(example["label"], tf.int32))

    records = split.source.records(split.split).repeat(epochs).shuffle(SHUFFLED_RECORDS)
    return _batched(_without_bad(split, records.map(decoded, num_parallel_calls=tf.data.AUTOTUNE)), batch_size)


def _batched(examples, batch_size):
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def records(split, batch_size, seed, epochs=None):
    """What a StreamingSplit reads, in a shuffled order: encoded examples, bytes [batch_size], neither parsed nor decoded."""
    return without_autotune(_shuffled(split, seed, epochs).batch(batch_size, drop_remainder=True).prefetch(PREFETCHED_BATCHES))


def decoded_records(split, batch_size, seed, epochs=None):
    """`records`, each parsed and decoded in full: (its first pixel, uint8 [batch_size, 3]; label int64 [batch_size]).

    Whole images of different sizes make no batch; without a pixel TensorFlow would leave the decoding out.
    """

    def decode(record):
        example = split.source.parse(record)
        return augment.decode(example["image"])[0, 0], example["label"]

    return _first_pixels(split, _shuffled(split, seed, epochs), decode, batch_size)


def decoded_windows(split, batch_size, seed, augmentations, epochs=None):
    """`decoded_records` of JPEGs, of which only the windows are decoded that training would cut; neither scaled nor mirrored."""

    def decode(position, record):
        example = split.source.parse(record)
        window_of, _ = split.random_window(seed, position, augmentations)
        height, width, _ = tf.unstack(tf.image.extract_jpeg_shape(example["image"]))
        image = tf.image.decode_and_crop_jpeg(example["image"], window_of(height, width), channels=3)
        return image[0, 0], example["label"]

    return _first_pixels(split, _shuffled(split, seed, epochs).enumerate(), decode, batch_size)


def _first_pixels(split, records, decode, batch_size):
    pixels = _without_bad(split, records.map(decode, num_parallel_calls=CORES))
    return without_autotune(pixels.batch(batch_size, drop_remainder=True).prefetch(PREFETCHED_BATCHES))


def _without_bad(split, examples):
    return examples.ignore_errors() if split.source.bad.limit else examples


def _shuffled(split, seed, epochs):
    numbers = tf.data.Dataset.range(np.iinfo(np.int64).max if epochs is None else epochs)
    return numbers.flat_map(lambda epoch: split.source.shuffled_records(split.split, seed, epoch, SHUFFLED_RECORDS))


def numpy_gather(images, labels, batch_size, seed=0):
    """Yields for ever NumPy's gather of whole images in random order, one thread, nothing else: the bound of what memory gives.

    Elements are (uint8 [batch_size, ...], int32 [batch_size]). An epoch that does not divide by batch_size goes on in the next.
    """
    generator = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, generator.permutation(len(labels))])
        index, order = order[:batch_size], order[batch_size:]
        yield images[index], labels[index]
