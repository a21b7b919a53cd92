"""A split that does not fit in memory: read, decoded and augmented on the way, in an order that is a function of (seed, epoch).

A resume reads the records of the epoch under way again, at most, and parses and decodes none of them: whole files cannot be
skipped because the shuffle needs their records. The augmentation of an example is a function of (seed, its position in the run).

Where the source tolerates bad examples, another takes the place of each, so that all others keep theirs: the same batches on any
number of replicas, and after a resume.
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import CORES, ONE_REPLICA, num_evaluation_steps, stretches, without_autotune
from input_pipeline.images import decoding as augment
from input_pipeline.images import loading, resized_crop
from input_pipeline.sources import Source
from input_pipeline.splits.statistics import covariance

SHUFFLE_BUFFER = 8192  # encoded images, about 110 kB each for ImageNet: 900 MB
PREFETCHED_BATCHES = 2
STATISTICS_EXAMPLES = 2000
PADDING = b"\0padding"  # in place of a record; no example is serialized like this


@dataclasses.dataclass(frozen=True)
class StreamingSplit:
    """A split of a source, as square images of `image_size` pixels.

    Attributes:
      margin: pixels that the short side of a decoded image has beyond image_size; the paper's 256 - 224 where training crops.
      decode_threads: how many decode and augment, 0: one per core.
      shuffle_buffer: encoded images in memory out of which the next is drawn.
    """

    source: Source
    split: str
    num_examples: int
    image_size: int
    margin: int
    decode_threads: int = 0
    shuffle_buffer: int = SHUFFLE_BUFFER

    look_up = None  # its batches hold images

    @property
    def on_host(self):
        """A split of the same examples whose batches hold images: itself."""
        return self

    @property
    def image_shape(self):
        """(height, width, 3) of a batch's images."""
        return (self.image_size, self.image_size, 3)

    def pixel_statistics(self):
        """Mean and standard deviation per channel, float64 [3] each, in [0, 255], over the first 2,000 examples."""
        total, squares, pixels = np.zeros(3), np.zeros(3), 0
        for image in self._first_examples():
            values = image.reshape(-1, 3).astype(np.float64)
            total += values.sum(axis=0)
            squares += (values**2).sum(axis=0)
            pixels += len(values)
        mean = total / pixels
        return mean, np.sqrt(np.maximum(squares / pixels - mean**2, 0))

    def pixel_covariance(self):
        """Covariance of the channels, float64 [3, 3], in [0, 255] squared, over the first 2,000 examples."""
        return covariance(self._first_examples())

    def _first_examples(self):
        def central(record):
            return self._evaluation_image(record, self.image_size, self.image_size + self.margin)[0]

        images = self.source.records(self.split).map(central, num_parallel_calls=self._threads)
        if self._tolerant and self._substitute is not None:  # which ends a run that would find none
            images = images.ignore_errors()
        images = images.take(STATISTICS_EXAMPLES)
        return without_autotune(images.prefetch(self._threads), self._threads).as_numpy_iterator()

    def training_batches(self, seed, first_step, global_batch_size, augmentations, shard=ONE_REPLICA):
        """An endless Dataset with the elements and the order of `resident.ResidentSplit.training_batches`.

        Only windows are decoded, see `random_window`.
        """
        rows = global_batch_size // shard.num_replicas
        substitute = self._substitute if self._tolerant else None  # here, outside of any graph
        first_example = first_step * global_batch_size
        first_epoch, consumed = divmod(first_example, self.num_examples)

        def records(epoch):
            return self.source.shuffled_records(self.split, seed, epoch, self.shuffle_buffer, located=self._tolerant)

        def decode(position, record):
            example = self.source.parse(record)
            window_of, mirrored = self.random_window(seed, position, augmentations)
            image = augment.decode_window(example["image"], window_of, self.image_size, mirrored)
            return {"image": image, "label": tf.cast(loading.checked_label(self.source, example), tf.int32)}

        examples = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(records).skip(consumed)
        examples = _only_rows_of(shard, examples.enumerate(first_example), global_batch_size)
        examples = self._decoded(examples, decode, lambda position: decode(position, substitute))
        batches = examples.batch(rows, drop_remainder=True)
        return without_autotune(batches.prefetch(PREFETCHED_BATCHES), self._threads)

    def random_window(self, seed, position, augmentations):
        """What training cuts of the example at a position of the run: the arguments window_of and mirrored of `decode_window`.

        "random_resized_crop" cuts Inception's windows, all else the paper's, which without "crop" are squares of the short side.
        """
        key = tf.stack([tf.constant(seed, tf.int64), position])
        if "random_resized_crop" in augmentations:
            window_of, mirrored = resized_crop.random_window(key)
        else:
            window_of, mirrored = augment.random_window(key, self.image_size, self.margin)
        return window_of, mirrored if "flip" in augmentations else None

    def evaluation_batches(self, global_batch_size, shard=ONE_REPLICA, test_crops=1):
        """An endless Dataset with the elements and the order of `resident.ResidentSplit.evaluation_batches`.

        With test_crops=10 each image is the middle square of one whose short side is 8/7 of image_size, all of it.
        """
        rows = global_batch_size // shard.num_replicas
        size, scaled = evaluation_sizes(self.image_size, self.margin, test_crops)
        if self._tolerant:
            _ = self._substitute  # which ends a run that would find nothing to judge
        padding = num_evaluation_steps(self.num_examples, global_batch_size) * global_batch_size - self.num_examples

        def blank():
            return tf.zeros([size, size, 3], tf.uint8), 0, 0.0

        def element(image, label, weight):
            return {"image": tf.ensure_shape(image, [size, size, 3]), "label": label, "weight": weight}

        def decode(_, record):
            return element(*tf.cond(tf.equal(record, PADDING), blank, lambda: self._evaluation_image(record, size, scaled)))

        records = (self.source.located_records if self._tolerant else self.source.records)(self.split)
        blanks = tf.data.Dataset.from_tensors((PADDING, PADDING) if self._tolerant else PADDING).repeat(padding)
        records = records.concatenate(blanks).repeat().enumerate()
        records = _only_rows_of(shard, records, global_batch_size)
        examples = self._decoded(records, decode, lambda _: element(*map(tf.convert_to_tensor, blank())))
        batches = examples.batch(rows, drop_remainder=True)
        return without_autotune(batches.prefetch(PREFETCHED_BATCHES), self._threads)

    @property
    def _threads(self):
        return self.decode_threads or CORES

    def locate_batch(self, seed, step, global_batch_size):
        """{"positions": [[epoch, first, last]]} of the batch of a step in the shuffled order: what is there was not kept."""
        start = step * global_batch_size
        parts = stretches(start, start + global_batch_size, self.num_examples)
        return {"positions": [[epoch, first, last - 1] for epoch, first, last in parts]}

    @property
    def _tolerant(self):
        return self.source.bad.limit > 0

    @functools.cached_property
    def _substitute(self):
        return loading.first_good(self.source, self.split)

    def _decoded(self, examples, decode, stand_in):
        """`decode` of each of the elements (position, record). Order and number stay.

        Where bad ones are tolerated, elements are (position, (where, record)): what fails is noted, and the result of
        `stand_in(position)` takes its place.
        """
        if not self._tolerant:
            return examples.map(decode, num_parallel_calls=self._threads)

        def replaced(position, where, record):
            with tf.control_dependencies([loading.note_bad_example(self.source, where, record)]):
                return stand_in(tf.identity(position))

        def tried(position, located):
            example = tf.data.Dataset.from_tensors((position, *located))
            whole = example.map(lambda position, _, record: decode(position, record)).ignore_errors()
            return whole.concatenate(example.map(replaced)).take(1)

        return examples.interleave(
            tried, cycle_length=self._threads, block_length=1, num_parallel_calls=self._threads, deterministic=True)

    def _evaluation_image(self, record, size, scaled):
        example = self.source.parse(record)
        image = augment.resize_short_side(augment.decode(example["image"]), scaled)
        return augment.central_crop(image, size), tf.cast(loading.checked_label(self.source, example), tf.int32), 1.0


def evaluation_sizes(image_size, margin, test_crops):
    """(side of the middle square that evaluation takes, short side of the image that it is cut from), in pixels."""
    scaled = image_size + (image_size // 7 if test_crops > 1 else margin)
    return (scaled if test_crops > 1 else image_size), scaled


def training_margin(image_size, augmentations):
    """The margin of a StreamingSplit for --augment."""
    # The paper scales the short side to 256 and cuts windows of 224 (section 4.1): 8/7.
    return image_size // 7 if {"crop", "random_resized_crop"} & set(augmentations) else 0


def _only_rows_of(shard, numbered, global_batch_size):
    """Keeps the rows of a shard's replicas, before anything is decoded; elements are (position in the run, record)."""
    if shard.local_replicas == shard.num_replicas:
        return numbered
    rows = global_batch_size // shard.num_replicas
    first, last = shard.first_replica * rows, (shard.first_replica + shard.local_replicas) * rows

    def is_ours(position, _):
        row = position % global_batch_size
        return first <= row and row < last

    return numbered.filter(is_ours)
