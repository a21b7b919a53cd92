"""The rows of the benchmark that draw batches and train nothing: this project's input, and what it is compared with.

The examples are repeated `epochs` times, or without end if that is None, before they are shuffled. Otherwise the shuffle buffer
would be refilled at the end of each epoch, in some of the short rounds of a benchmark and not in others.
"""

import contextlib
import types

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import CORES, without_autotune
from input_pipeline.images import decoding
from train_lib.modes.benchmark.rows import OF_A_STREAM, Row, RowFailed

INPUT_SECONDS = 0.3  # the least length of a round; it ends with the first call after that
CALL_SECONDS, MOST_PER_CALL = 0.02, 64  # of drawing in one compiled call, much longer than the call itself takes; batches
FEWEST_BATCHES = 8  # of a round
# Batches that a pipeline has ready before the clock starts would count as infinitely fast, so they are drawn first. Autotune's
# buffers grow, so a number of batches alone would not be enough.
DRAINED_BATCHES, DRAINED_SECONDS = 8, 0.1
FIRST_EPOCH_SECONDS = 10.0  # at most, for the first pass over the files of a stream
SAMPLED_IMAGES = 16  # of the first images of a stream
LARGEST_BUFFER = 1e9  # bytes that the tutorial's shuffle may need; a benchmark must not fill the memory
SHUFFLED = 10_000  # examples
SHUFFLED_RECORDS = 1024  # encoded examples, fewer than a real stream shuffles: more would cost memory, not time
PREFETCHED_BATCHES = 2

# Deleting an iterator whose autotune is on waits for a thread of tf.data, for up to minutes.
_kept_alive = []


@tf.function
def _draw_compiled(iterator, count):
    for _ in tf.range(count):
        next(iterator)


class DrawnRow(Row):
    """Batches drawn on the host and thrown away: several in one compiled call, as the loop draws them."""

    def __init__(self, bench, name):
        super().__init__(bench)
        self._iterator, self._batches_per_call = iter(open_batches(bench, name)), 1
        _kept_alive.append(self._iterator)

    def warm_up(self):
        return self.measure(FEWEST_BATCHES)

    def _take(self, num_steps):  # for INPUT_SECONDS: the number of steps only matters for rows that train
        self._draw(DRAINED_BATCHES, DRAINED_SECONDS)
        return self._draw(FEWEST_BATCHES, INPUT_SECONDS)

    def _draw(self, fewest, shortest):
        start, done, seconds = self._bench.clock(), 0, 0.0
        while done < fewest or seconds < shortest:
            self._call(self._batches_per_call)
            done += self._batches_per_call
            before, seconds = seconds, self._bench.clock() - start
            if seconds - before < CALL_SECONDS:
                self._batches_per_call = min(2 * self._batches_per_call, MOST_PER_CALL)
        return done, seconds

    def _call(self, count):
        if isinstance(self._iterator, types.GeneratorType):
            for _ in range(count):
                next(self._iterator)
        else:
            _draw_compiled(self._iterator, tf.constant(count))


class ReadRow(DrawnRow):
    """A stream's records, unparsed. Its warm-up reads the files once, so that no round is the first to read them.

    `first_epoch` has the figures of that pass. If it is not "complete", it was cut off, and all rounds read from the disk too.
    """

    def warm_up(self):
        """Reads an epoch, and returns images/s of a measurement after that."""
        num_examples, images, start, seconds = self._bench.run.train_split.num_examples, 0, self._bench.clock(), 0.0
        while images < num_examples and seconds < FIRST_EPOCH_SECONDS:
            next(self._iterator)
            images, seconds = images + self._bench.batch_size, self._bench.clock() - start
        self.first_epoch = {"images": images, "seconds": seconds, "images_per_second": images / seconds,
                            "complete": images >= num_examples}
        if images < num_examples:
            self._bench.note(f"the files take longer than {FIRST_EPOCH_SECONDS:.0f} s to read: rounds may wait for the disk")
        return super().warm_up()


def open_batches(bench, name):
    """The batches of a row, as an endless Dataset or, for numpy_gather, a Python generator.

    Raises RowFailed if the row means nothing for the data.
    """
    split, config, size = bench.run.train_split, bench.config, bench.batch_size
    in_memory = hasattr(split, "images")
    augmentations = [name.replace("alternating_flip", "flip") for name in config.data.augmentations]  # costs the same
    if in_memory and name in OF_A_STREAM:
        raise RowFailed("the images are in memory; this row measures a part of --input=stream")
    if not in_memory and name in ("numpy_gather", "tutorial"):
        raise RowFailed("the images of a stream are not in memory")
    if name == "tutorial" and 4 * split.images[0].size * min(SHUFFLED, split.num_examples) > LARGEST_BUFFER:
        height, width, _ = split.image_shape
        raise RowFailed(f"its shuffle buffer would hold {SHUFFLED:,} float images of {height} x {width}")
    if name == "decode_crop":
        _refuse_other_than_jpegs(split)
    if name in ("input", "read_decode_augment"):  # the latter repeats `input` next to its parts, which also shows the noise
        return bench.run.training_dataset()
    if name in OF_A_STREAM:
        return part_of_stream(name, split, size, config.general.seed, augmentations)
    if name == "numpy_gather":
        return numpy_gather(split.images, split.labels, size)
    if not in_memory:
        return canonical_stream(split, size, augmentations)
    if "tensors" not in bench.shared:  # images and labels in TensorFlow's memory, once for the rows that slice them
        with tf.device("/cpu:0"):
            bench.shared["tensors"] = tf.constant(split.images), tf.constant(split.labels)
    images, labels = bench.shared["tensors"]
    return tutorial(images, labels, size) if name == "tutorial" else canonical(images, labels, size, augmentations)


def _refuse_other_than_jpegs(split):
    for _, record in without_autotune(split.source.records(split.split).take(SAMPLED_IMAGES)):
        with contextlib.suppress(tf.errors.OpError):  # a bad example; the row treats it as the run does
            if not tf.io.is_jpeg(split.source.parse(record)["image"]):
                raise RowFailed("not all images are JPEGs, the only format that can be decoded in part")


def tutorial(images, labels, batch_size, epochs=None):
    """The pipeline of tutorials: slices, map(cast), shuffle(10000), batch. No augmentation, TensorFlow's own options.

    The images are uint8 [n, height, width, 3] and the labels int32 [n], arrays or tensors. Returns a Dataset of pairs: images,
    float32 [batch_size, height, width, 3] in [0, 1], and labels, int32 [batch_size]. A shorter last batch is dropped.
    """
    slices = tf.data.Dataset.from_tensor_slices((images, labels)).map(_scaled).repeat(epochs)
    return slices.shuffle(SHUFFLED).batch(batch_size, drop_remainder=True)


def _scaled(image, label):
    return tf.cast(image, tf.float32) / 255, label


def canonical(images, labels, batch_size, augmentations, epochs=None):
    """The recommended pipeline that works on one example at a time, with the augmentations of `ResidentSplit`.

    It shuffles first, so that the buffer holds uint8. Then each example is padded with zeros by an eighth of the height, cropped
    and flipped at random and cast; then batch and prefetch. All parallelism and buffers are AUTOTUNE. Images and elements are
    those of `tutorial`.
    """
    padding = images.shape[1] // 8

    def cropped(image, label):
        if "crop" in augmentations:
            padded = tf.pad(image, [(padding, padding), (padding, padding), (0, 0)])
            image = tf.image.random_crop(padded, tuple(images.shape[1:]))
        return image, label

    slices = tf.data.Dataset.from_tensor_slices((images, labels)).repeat(epochs).shuffle(SHUFFLED)
    return _canonical_batches(slices, cropped, batch_size, augmentations)


def canonical_stream(split, batch_size, augmentations, epochs=None):
    """`canonical` for a StreamingSplit: decodes, resizes, crops, flips and casts record by record, AUTOTUNE everywhere."""
    size = split.image_size

    def cropped(_, record):
        example = split.source.parse(record)
        image = decoding.resize_short_side(decoding.decode(example["image"]), size + split.margin)
        return tf.image.random_crop(image, (size, size, 3)), tf.cast(example["label"], tf.int32)

    records = split.source.records(split.split).repeat(epochs).shuffle(SHUFFLED_RECORDS)
    return _canonical_batches(records, cropped, batch_size, augmentations, skip_bad=split.source.bad.limit > 0)


def _canonical_batches(elements, cropped, batch_size, augmentations, skip_bad=False):
    def prepared(*element):
        image, label = cropped(*element)
        return _scaled(tf.image.random_flip_left_right(image) if "flip" in augmentations else image, label)

    examples = elements.map(prepared, num_parallel_calls=tf.data.AUTOTUNE)
    examples = examples.ignore_errors() if skip_bad else examples
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def part_of_stream(name, split, batch_size, seed, augmentations, epochs=None):
    """The first steps of what a StreamingSplit does, in batches, in a shuffled order. Nothing is resized or flipped.

    For the rows "read_decode" and "decode_crop", the elements are (first pixel of the decoded part, uint8 [batch_size, 3]; label,
    int64 [batch_size]); for "read", (number, int64 [batch_size]; serialized example, bytes [batch_size]). Whole images of
    different sizes cannot be batched; without any pixel, TensorFlow would leave out the decoding.
    """

    def decode(position, numbered):
        example = split.source.parse(numbered[1])
        if name == "read_decode":
            return decoding.decode(example["image"])[0, 0], example["label"]
        window_of, _ = split.random_window(seed, position, augmentations)
        height, width, _ = tf.unstack(tf.image.extract_jpeg_shape(example["image"]))
        image = tf.image.decode_and_crop_jpeg(example["image"], window_of(height, width), channels=3)
        return image[0, 0], example["label"]

    numbers = tf.data.Dataset.range(epochs or np.iinfo(np.int64).max)
    examples = numbers.flat_map(lambda epoch: split.source.shuffled_records(split.split, seed, epoch, SHUFFLED_RECORDS))
    if name != "read":
        examples = examples.enumerate().map(decode, num_parallel_calls=CORES)
        examples = examples.ignore_errors() if split.source.bad.limit else examples
    return without_autotune(examples.batch(batch_size, drop_remainder=True).prefetch(PREFETCHED_BATCHES))


def numpy_gather(images, labels, batch_size):
    """Yields batches of whole images without end, gathered by NumPy in random order in one thread, with no other work.

    This is the upper bound of what memory allows. Elements are (uint8 [batch_size, ...], int32 [batch_size]). If batch_size does
    not divide an epoch, its last batch goes on with examples of the next epoch.
    """
    generator, order = np.random.default_rng(0), np.empty(0, np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, generator.permutation(len(labels))])
        index, order = order[:batch_size], order[batch_size:]
        yield images[index], labels[index]
