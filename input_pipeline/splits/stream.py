"""A split that does not fit in memory: read, decoded and augmented on the way, in an order that is a function of (seed, epoch).

To resume, the records of the current epoch are read again up to the current step, but neither parsed nor decoded. Whole files
cannot be skipped, because the shuffle needs their records. An example's augmentation is a function of (seed, its position in the
run); that of "alternating_flip" is one of (seed, its number in the split, epoch). If bad examples are skipped, a good example
takes the place of each of them. All others then keep their positions, so the batches are the same on any number of replicas and
after a resume.
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import CORES, ONE_REPLICA, Split, num_evaluation_steps, without_autotune
from input_pipeline.images import decoding, loading, resized_crop
from input_pipeline.sources.base import Source

SHUFFLE_BUFFER = 8192  # encoded images, about 110 kB each for ImageNet: 900 MB
PREFETCHED_BATCHES = 2
STATISTICS_EXAMPLES = 2000
PADDING = -1  # the number of a record that only fills up the last batch of an evaluation


@dataclasses.dataclass(frozen=True)
class StreamingSplit(Split):
    """A split of a source, as square images of `image_size` pixels. The short side of a decoded image has `margin` pixels more.

    In the paper the margin is 256 - 224, for random crops. `decode_threads` threads decode and augment; 0: one per core. The
    next encoded image is drawn from `shuffle_buffer` that are in memory.
    """

    source: Source
    split: str
    num_examples: int
    image_size: int
    margin: int
    decode_threads: int = 0
    shuffle_buffer: int = SHUFFLE_BUFFER

    @property
    def image_shape(self):
        """(height, width, 3) of the images of a batch."""
        return (self.image_size, self.image_size, 3)

    def _pixel_parts(self):
        """The middle squares of the first 2,000 examples."""
        def central(_, record):
            return self._evaluation_image(record, self.image_size, self.image_size + self.margin)[0]

        images = self.source.records(self.split).map(central, num_parallel_calls=self._threads)
        images = (images if self._substitute is None else images.ignore_errors()).take(STATISTICS_EXAMPLES)
        return without_autotune(images.prefetch(self._threads), self._threads).as_numpy_iterator()

    def training_batches(self, seed, first_step, global_batch_size, augmentations, shard=ONE_REPLICA):
        """An endless Dataset with the elements and order of `ResidentSplit.training_batches`; decodes only windows of images."""
        first_example = first_step * global_batch_size
        first_epoch, consumed = divmod(first_example, self.num_examples)
        spare = 0, self._substitute  # if it alternates, then as example 0 does

        def decode(position, number, record):
            example = self.source.parse(record)
            window_of, mirrored = self.random_window(seed, position, augmentations)
            if "alternating_flip" in augmentations:
                mirrored = tf.not_equal(mirrored_first(seed, number), position // self.num_examples % 2 == 1)
            image = decoding.decode_window(example["image"], window_of, self.image_size, mirrored)
            return {"image": image, "label": tf.cast(loading.checked_label(self.source, example), tf.int64)}

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        records = epochs.flat_map(lambda epoch: self.source.shuffled_records(self.split, seed, epoch, self.shuffle_buffer))
        examples = records.skip(consumed).enumerate(first_example)
        return self._batches(examples, decode, spare, global_batch_size, shard)

    def random_window(self, seed, position, augmentations):
        """The arguments window_of and mirrored of `decode_window` for the example at a position of the run.

        "random_resized_crop" cuts Inception's windows, "crop" the paper's, neither: a square with the side of the short side.
        """
        key = tf.stack([tf.constant(seed, tf.int64), position])
        if "random_resized_crop" in augmentations:
            window_of, mirrored = resized_crop.random_window(key)
        else:
            window_of, mirrored = decoding.random_window(key, self.image_size, self.margin)
        return window_of, mirrored if "flip" in augmentations else None

    def evaluation_batches(self, global_batch_size, shard=ONE_REPLICA, test_crops=1):
        """An endless Dataset with the elements and the order of `resident.ResidentSplit.evaluation_batches`.

        With test_crops=10, each image is the whole middle square of an image whose short side is 8/7 of image_size.
        """
        size, scaled = evaluation_sizes(self.image_size, self.margin, test_crops)
        padding = num_evaluation_steps(self.num_examples, global_batch_size) * global_batch_size - self.num_examples
        _ = self._substitute  # raises UnusableError now if there is no good example to evaluate

        def blank():
            return tf.zeros([size, size, 3], tf.uint8), tf.constant(0, tf.int64), tf.constant(0.0)

        def decode(_, number, record):
            image, label, weight = tf.cond(number == PADDING, blank, lambda: self._evaluation_image(record, size, scaled))
            return {"image": tf.ensure_shape(image, [size, size, 3]), "label": label, "weight": weight}

        numbered_blank = tf.constant(PADDING, tf.int64), ""
        blanks = tf.data.Dataset.from_tensors(numbered_blank).repeat(padding)
        examples = self.source.records(self.split).concatenate(blanks).repeat().enumerate()
        return self._batches(examples, decode, numbered_blank, global_batch_size, shard)

    def locate_batch(self, seed, step, global_batch_size):
        """{"positions": [[epoch, first, last]]} of the batch of a step in the shuffled order. The examples are not known."""
        start, last, count = step * global_batch_size, (step + 1) * global_batch_size - 1, self.num_examples
        return {"positions": [[epoch, max(start - epoch * count, 0), min(last - epoch * count, count - 1)]
                              for epoch in range(start // count, last // count + 1)]}

    @property
    def _threads(self):
        return self.decode_threads or CORES

    @functools.cached_property
    def _substitute(self):
        """A record to use in the place of bad ones; None if bad examples are not skipped. Must be read outside of a graph."""
        return loading.first_good(self.source, self.split) if self.source.bad.limit else None

    def _batches(self, examples, decode, spare, global_batch_size, shard):
        """Batches for a Shard, from a Dataset of (position in the run, (number, record)).

        `decode` maps (position, number, record) to an element; `spare` is the (number, record) for the place of a bad example.
        """
        rows = global_batch_size // shard.num_replicas
        first, last = shard.first_replica * rows, (shard.first_replica + shard.local_replicas) * rows

        def is_ours(position, _):
            row = position % global_batch_size
            return first <= row and row < last

        def replaced(position, number, record):
            with tf.control_dependencies([loading.note_bad_example(self.source, self.split, number, record)]):
                return decode(tf.identity(position), *spare)

        def decoded_or_replaced(position, numbered):
            example = tf.data.Dataset.from_tensors((position, *numbered))
            return example.map(decode).ignore_errors().concatenate(example.map(replaced)).take(1)

        if shard.local_replicas < shard.num_replicas:
            examples = examples.filter(is_ours)  # before anything is decoded
        if self.source.bad.limit:
            examples = examples.interleave(
                decoded_or_replaced, self._threads, block_length=1, num_parallel_calls=self._threads, deterministic=True)
        else:
            examples = examples.map(lambda position, numbered: decode(position, *numbered), num_parallel_calls=self._threads)
        batches = examples.batch(rows, drop_remainder=True)
        return without_autotune(batches.prefetch(PREFETCHED_BATCHES), self._threads)

    def _evaluation_image(self, record, size, scaled):
        example = self.source.parse(record)
        image = decoding.resize_short_side(decoding.decode(example["image"]), scaled)
        return decoding.central_crop(image, size), tf.cast(loading.checked_label(self.source, example), tf.int64), 1.0


def mirrored_first(seed, number):
    """`resident.mirrored_first` for the record of that number in the split, int64: a bool scalar, true with probability 1/2."""
    key = tf.stack([tf.constant(-1 - seed, tf.int64), number])  # negative: no other draw of a stream has such a key
    return tf.random.stateless_uniform([], key) < 0.5


def evaluation_sizes(image_size, margin, test_crops):
    """(side of the middle square that evaluation uses, short side of the image that it is cut from), in pixels."""
    ten = test_crops == 10  # 2 and 6 views are made from the image that one view shows
    scaled = image_size + (image_size // 7 if ten else margin)
    return (scaled if ten else image_size), scaled


def training_margin(image_size, augmentations):
    """The margin of a StreamingSplit for the names in --augment."""
    # The paper scales the short side to 256 and cuts windows of 224 (section 4.1): 8/7.
    return image_size // 7 if {"crop", "random_resized_crop"} & set(augmentations) else 0
