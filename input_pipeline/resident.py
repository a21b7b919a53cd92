"""A split that fits in memory: every batch is a pure function of (seed, step).

Resuming at any step costs nothing, the order of the examples does not depend on the number of replicas, and no iterator
state needs saving. Successive epochs follow each other without a gap: example `i` of the run is example `i % n` of epoch
`i // n`, and each epoch is a permutation of the split.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input_pipeline import augment
from input_pipeline.batches import CORES, ONE_REPLICA, num_evaluation_steps, without_autotune
from input_pipeline.errors import UnusableError

PARALLEL_BATCHES = 2
INT32, FLOAT32 = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)  # one of these an example


class EpochPlan(NamedTuple):
    """One epoch's choices, each of shape [num_examples]: which image, where its window starts, whether it is mirrored."""

    order: np.ndarray
    top: np.ndarray
    left: np.ndarray
    mirrored: np.ndarray


def plan_epoch(seed, epoch, num_examples, padding, flip):
    """Draws the plan of an epoch; a pure function of its arguments."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(num_examples)
    top, left = generator.integers(0, 2 * padding + 1, size=(2, num_examples))
    mirrored = generator.integers(0, 2, size=num_examples).astype(bool)
    return EpochPlan(order, top, left, mirrored if flip else np.zeros(num_examples, bool))


class Choices:
    """The choices for any stretch of the endless sequence of training examples.

    Args:
      seed: of the order and the augmentation.
      num_examples: of the split.
      image_height: in pixels; the augmentation "crop" pads by an eighth of it.
      augmentations: any of "crop", "flip".
    """

    def __init__(self, seed, num_examples, image_height, augmentations):
        self.padding = image_height // 8 if "crop" in augmentations else 0
        self._num_examples = num_examples
        self._plan = functools.lru_cache(maxsize=3)(
            lambda epoch: plan_epoch(seed, epoch, num_examples, self.padding, "flip" in augmentations)
        )

    def of(self, start, stop):
        """An EpochPlan of the examples start to stop - 1 of the run, from however many epochs they are."""
        pieces = []
        while start < stop:
            epoch, first = divmod(start, self._num_examples)
            last = min(first + stop - start, self._num_examples)
            pieces.append([choice[first:last] for choice in self._plan(epoch)])
            start += last - first
        return EpochPlan(*(np.concatenate(choices) for choices in zip(*pieces, strict=True)))


@dataclasses.dataclass(frozen=True, eq=False)
class ResidentSplit:
    """All images of a split, decoded. `images`: uint8 [n, height, width, 3]; `labels`: int32 [n]."""

    images: np.ndarray
    labels: np.ndarray
    _tables: dict = dataclasses.field(default_factory=dict, repr=False)  # padding -> the images padded by it

    look_up = None  # its batches hold images; those of a DeviceSplit get them by this, on the device

    @property
    def on_host(self):
        """A split of the same examples whose batches hold images: itself."""
        return self

    @property
    def num_examples(self):
        """Number of examples, n."""
        return len(self.labels)

    @property
    def image_shape(self):
        """(height, width, 3) of a batch's images."""
        return self.images.shape[1:]

    def pixel_statistics(self):
        """Mean and standard deviation per channel over all pixels, float64 [3] each, exact, in the range [0, 255]."""
        values, counts = np.arange(256), np.zeros((3, 256), np.int64)
        for first in range(0, self.num_examples, 1000):  # bincount works on a copy eight times as large
            pixels = self.images[first : first + 1000].reshape(-1, 3)
            counts += np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)])
        mean = counts @ values / counts.sum(axis=1)
        variance = counts @ values**2 / counts.sum(axis=1) - mean**2
        return mean, np.sqrt(np.maximum(variance, 0))

    def training_batches(self, seed, first_step, global_batch_size, augmentations, shard=ONE_REPLICA):
        """An endless Dataset of per-replica batches, step after step and, within a step, replica after replica.

        Args:
          seed: of the order and the augmentation.
          first_step: the step (0-based) whose batch comes first.
          global_batch_size: images per step over all replicas.
          augmentations: any of "crop" (a window of the image padded by an eighth of its height with zeros), "flip".
          shard: the replicas to feed.

        Returns:
          Elements {"image": uint8 [b, height, width, 3], "label": int32 [b]}, b = global_batch_size / num_replicas.
        """
        reader = BatchReader(self, seed, augmentations)
        images = tf.TensorSpec(self.image_shape, tf.uint8)
        return map_rows(reader.read, {"image": images, "label": INT32}, global_batch_size, shard, first_step)

    def evaluation_batches(self, global_batch_size, shard=ONE_REPLICA):
        """An endless Dataset that goes through the split in order, again and again, padded to whole global batches.

        Elements are those of `training_batches` and "weight": float32 [b], 1 for an example, 0 for padding.
        """

        def read(start, stop):
            index, weight = evaluation_rows(self.num_examples, global_batch_size, start, stop)
            return self.images[index], self.labels[index], weight

        images = tf.TensorSpec(self.image_shape, tf.uint8)
        return map_rows(read, {"image": images, "label": INT32, "weight": FLOAT32}, global_batch_size, shard)

    def windows(self, padding):
        """A view [n, tops, lefts, height, width * 3] of all windows of the padded images: contiguous rows of whole pixels."""
        count, height, width, channels = self.images.shape
        rows = self._padded(padding).reshape(count, height + 2 * padding, (width + 2 * padding) * channels)
        windows = np.lib.stride_tricks.sliding_window_view(rows, (height, width * channels), axis=(1, 2))
        return windows[:, :, ::channels]

    def _padded(self, padding):
        # Kept: one table serves all the pipelines of a process, with MirroredStrategy up to one per replica.
        if padding and padding not in self._tables:
            self._tables[padding] = np.pad(self.images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return self._tables[padding] if padding else self.images


def map_rows(read, specs, global_batch_size, shard, first_step=0):
    """An endless Dataset of batches that NumPy makes, step after step and, within a step, replica after replica.

    Args:
      read: (start, stop) -> arrays of the examples start to stop - 1 of the run, in the order of `specs`.
      specs: {name: TensorSpec of one example}.
      global_batch_size: examples per step over all replicas.
      shard: the replicas to feed.
      first_step: the step (0-based) whose batch comes first.
    """
    rows = global_batch_size // shard.num_replicas

    def read_at(position):
        step, replica = divmod(int(position), shard.local_replicas)
        start = step * global_batch_size + (shard.first_replica + replica) * rows
        return read(start, start + rows)

    def batch(position):
        tensors = tf.numpy_function(read_at, [position], [spec.dtype for spec in specs.values()], stateful=False)
        shapes = [(rows, *spec.shape) for spec in specs.values()]
        return {name: tf.ensure_shape(*pair) for name, pair in zip(specs, zip(tensors, shapes, strict=True), strict=True)}

    positions = tf.data.Dataset.range(first_step * shard.local_replicas, np.iinfo(np.int64).max)
    return without_autotune(positions.map(batch, num_parallel_calls=PARALLEL_BATCHES).prefetch(PARALLEL_BATCHES))


def evaluation_rows(num_examples, global_batch_size, start, stop):
    """Which images the rows start to stop - 1 of the evaluation are (int64), and their weights: 1, or 0 for padding (float32)."""
    padded = num_evaluation_steps(num_examples, global_batch_size) * global_batch_size
    index = np.arange(start, stop) % padded
    inside = index < num_examples
    return np.where(inside, index, 0), inside.astype(np.float32)


class BatchReader:
    """Reads any stretch of the endless sequence of augmented training examples."""

    def __init__(self, split, seed, augmentations):
        self._labels = split.labels
        self._image_shape = split.image_shape
        self._choices = Choices(seed, split.num_examples, split.image_shape[0], augmentations)
        self._windows = split.windows(self._choices.padding)

    def read(self, start, stop):
        """Examples start to stop - 1 of the run: uint8 [stop - start, height, width, 3] and int32 [stop - start]."""
        order, top, left, mirrored = self._choices.of(start, stop)
        # One gather cuts each image's own window out of the padded table.
        images = self._windows[order, top, left].reshape(-1, *self._image_shape)
        images[mirrored] = images[mirrored, :, ::-1]
        return images, self._labels[order]


def load(source, split, num_examples, image_size, decode_threads=0):
    """Decodes a whole split into memory, as a ResidentSplit.

    Args:
      source: Source.
      split: TFDS slicing syntax.
      num_examples: how many examples `split` has.
      image_size: (height, width) of the result; where equal, each image is scaled and cut to it, else it has that size.
      decode_threads: how many to decode with, 0: one per core.

    Raises:
      UnusableError: a file is missing, damaged or too short, an image cannot be decoded, or an example has no label.
    """
    images = np.empty((num_examples, image_size[0], image_size[1], 3), np.uint8)
    labels = np.empty(num_examples, np.int32)

    def decode(record):
        example = source.parse(record)
        image = augment.decode(example["image"])
        if image_size[0] == image_size[1]:
            image = augment.central_crop(augment.resize_short_side(image, image_size[0]), image_size[0])
        return tf.ensure_shape(image, [*image_size, 3]), example["label"]

    threads = decode_threads or CORES
    batches = source.records(split).map(decode, num_parallel_calls=threads).batch(256).prefetch(PARALLEL_BATCHES)
    filled = 0
    try:
        for image, label in without_autotune(batches, threads):
            images[filled : filled + len(label)] = image
            labels[filled : filled + len(label)] = label
            filled += len(label)
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())[:300]
        remedy = "prepare the data again"
        raise UnusableError(f"{source.name}: {split} cannot be read after {filled} examples ({reason}); {remedy}") from None
    if labels.min() < 0:
        raise UnusableError(f"{source.name}: {split} has examples without a label (-1); give another split")
    return ResidentSplit(images, labels)
