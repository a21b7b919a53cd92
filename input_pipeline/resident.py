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

from input_pipeline import resized_crop
from input_pipeline.batches import ONE_REPLICA, num_evaluation_steps, stretches, without_autotune
from input_pipeline.loading import decode_split
from input_pipeline.statistics import covariance

PARALLEL_BATCHES = 2


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


@dataclasses.dataclass(frozen=True, eq=False)
class ResidentSplit:
    """All images of a split, decoded. `images`: uint8 [n, height, width, 3]; `labels`: int32 [n]."""

    images: np.ndarray
    labels: np.ndarray
    _tables: dict = dataclasses.field(default_factory=dict, repr=False)  # padding -> the images padded by it

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

    def pixel_covariance(self):
        """Covariance of the channels over all pixels, float64 [3, 3], exact, in the range [0, 255] squared."""
        return covariance(self.images[first : first + 1000] for first in range(0, self.num_examples, 1000))

    def training_batches(self, seed, first_step, global_batch_size, augmentations, shard=ONE_REPLICA):
        """An endless Dataset of per-replica batches, step after step and, within a step, replica after replica.

        Args:
          seed: of the order and the augmentation.
          first_step: the step (0-based) whose batch comes first.
          global_batch_size: images per step over all replicas.
          augmentations: any of "crop" (a window of the image padded by an eighth of its height with zeros), "flip",
            "random_resized_crop" (`resized_crop.crop_batch`); others are not for the host.
          shard: the replicas to feed.

        Returns:
          Elements {"image": uint8 [b, height, width, 3], "label": int32 [b]}, b = global_batch_size / num_replicas.
        """
        rows = global_batch_size // shard.num_replicas
        reader = BatchReader(self, seed, augmentations)

        def read(position):
            step, replica = divmod(int(position), shard.local_replicas)
            start = step * global_batch_size + (shard.first_replica + replica) * rows
            return reader.read(start, start + rows)

        positions = tf.data.Dataset.range(first_step * shard.local_replicas, np.iinfo(np.int64).max)
        return self._map_numpy(positions, read, [tf.uint8, tf.int32], rows)

    def evaluation_batches(self, global_batch_size, shard=ONE_REPLICA, test_crops=1):
        """An endless Dataset that goes through the split in order, again and again, padded to whole global batches.

        Elements are those of `training_batches` and "weight": float32 [b], 1 for an example, 0 for padding.
        Whole images for any `test_crops`: the ten views are made of them on the device.
        """
        rows = global_batch_size // shard.num_replicas
        steps = num_evaluation_steps(self.num_examples, global_batch_size)

        def read(position):
            step, replica = divmod(int(position), shard.local_replicas)
            start = (step % steps) * global_batch_size + (shard.first_replica + replica) * rows
            index = np.arange(start, start + rows)
            inside = index < self.num_examples
            index = np.where(inside, index, 0)
            return self.images[index], self.labels[index], inside.astype(np.float32)

        positions = tf.data.Dataset.range(np.iinfo(np.int64).max)
        return self._map_numpy(positions, read, [tf.uint8, tf.int32, tf.float32], rows)

    def locate_batch(self, seed, step, global_batch_size):
        """{"examples": [index into `images`]} of the batch of a step."""
        start, examples = step * global_batch_size, []
        for epoch, first, last in stretches(start, start + global_batch_size, self.num_examples):
            examples += plan_epoch(seed, epoch, self.num_examples, 0, False).order[first:last].tolist()
        return {"examples": examples}

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

    def _map_numpy(self, positions, read, dtypes, rows):
        shapes = [(rows, *self.image_shape), (rows,), (rows,)]

        def batch(position):
            tensors = tf.numpy_function(read, [position], dtypes, stateful=False)
            shaped = [tf.ensure_shape(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=False)]
            return dict(zip(("image", "label", "weight"), shaped, strict=False))

        return without_autotune(positions.map(batch, num_parallel_calls=PARALLEL_BATCHES).prefetch(PARALLEL_BATCHES))


class BatchReader:
    """Reads any stretch of the endless sequence of augmented training examples."""

    def __init__(self, split, seed, augmentations):
        height, width, _ = split.image_shape
        padding = height // 8 if "crop" in augmentations else 0
        self._labels = split.labels
        self._num_examples = split.num_examples
        self._image_shape = split.image_shape
        self._windows = split.windows(padding)
        resized = "random_resized_crop" in augmentations

        @functools.lru_cache(maxsize=3)
        def choices(epoch):
            plan = plan_epoch(seed, epoch, split.num_examples, padding, "flip" in augmentations)
            return (*plan, resized_crop.epoch_draws(seed, epoch, split.num_examples)) if resized else plan

        self._choices = choices

    def read(self, start, stop):
        """Examples start to stop - 1 of the run: uint8 [stop - start, height, width, 3] and int32 [stop - start]."""
        pieces = [[choice[first:last] for choice in self._choices(epoch)]
                  for epoch, first, last in stretches(start, stop, self._num_examples)]
        order, top, left, mirrored, *draws = (np.concatenate(choices) for choices in zip(*pieces, strict=True))
        # One gather cuts each image's own window out of the padded table.
        images = self._windows[order, top, left].reshape(-1, *self._image_shape)
        images[mirrored] = images[mirrored, :, ::-1]
        if draws:
            with tf.device("/cpu:0"):  # where the batch is wanted next, too
                images = resized_crop.crop_batch(images, *draws).numpy()
        return images, self._labels[order]


def load(source, split, num_examples, image_size):
    """Decodes a whole split into memory, as a ResidentSplit.

    Args:
      source: Source.
      split: TFDS slicing syntax.
      num_examples: how many examples `split` has.
      image_size: (height, width) of the result; where equal, each image is scaled and cut to it, else it has that size.

    Raises:
      UnusableError: a file is missing, damaged or too short, an image cannot be decoded, or an example has no label.
    """
    return ResidentSplit(*decode_split(source, split, num_examples, image_size))
