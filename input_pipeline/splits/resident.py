"""A split that fits in memory: every batch is a pure function of (seed, step).

So resuming at any step takes no time, the order of the examples does not depend on the number of replicas, and no iterator state
is saved. Example `i` of the run is example `i % n` of epoch `i // n`, and each epoch is a permutation of the split.
"""

import collections
import dataclasses
import functools

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import ONE_REPLICA, Split, num_evaluation_steps, without_autotune
from input_pipeline.common.errors import SettingError
from input_pipeline.images import resized_crop
from input_pipeline.images.loading import decode_split
from input_pipeline.images.windows import Windows

PARALLEL_CHUNKS = 2
# Several batches are made at once, because a call from TensorFlow into Python takes 0.3 ms, as long as cutting the images of a
# batch of 256. Larger chunks gain nothing, and do not fit in the caches (measured at 1.5, 6 and 25 MB).
CHUNK_BYTES = 8e6
SUMMED_PIXELS = 2**17  # how many pixels are summed up at once, as float64; more do not fit in the caches
# One number per example. Labels are int64 in batches: TensorFlow computes int32 in the host's memory even on a GPU.
INT64, FLOAT32 = tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.float32)
# The choices of an epoch, each of shape [num_examples]: which image, where its window starts, whether it is mirrored.
EpochPlan = collections.namedtuple("EpochPlan", "order top left mirrored")


def plan_epoch(seed, epoch, num_examples, padding, flip):
    """Draws the EpochPlan of an epoch; a pure function of its arguments."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(num_examples)
    top, left = generator.integers(0, 2 * padding + 1, size=(2, num_examples))
    mirrored = generator.integers(0, 2, size=num_examples).astype(bool)
    return EpochPlan(order, top, left, mirrored if flip else np.zeros(num_examples, bool))


def mirrored_first(seed, num_examples):
    """Draws which images "alternating_flip" mirrors in the epochs 0, 2, 4, ...: a random half, bool [num_examples].

    In the epochs between, it mirrors the others, so that two epochs in a row show each image from both sides (Jordan, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6). The draws are from a part of the sequence that no epoch uses.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]).jumped(2))
    return generator.integers(0, 2, size=num_examples).astype(bool)


def crop_padding(padding, border, height, width):
    """How many pixels "crop" adds on each side of an image: `padding`, or an eighth of the height if that is None.

    Raises SettingError if the border, "zeros" or "reflect", cannot be that wide.
    """
    chosen = height // 8 if padding is None else padding
    most = min(height, width) - (border == "reflect")
    if chosen > most:
        remedy = f"an eighth of the height, {chosen}, " if padding is None else ""
        remedy += f"is too wide for --crop_border={border} and images of {height} x {width}; give at most {most}"
        raise SettingError("crop_padding", padding, remedy)
    return chosen


class Choices:
    """The random choices for any examples of a run. `padding` is what "crop" adds on each side, 0 without it."""

    def __init__(self, seed, num_examples, padding, augmentations):
        alternating = mirrored_first(seed, num_examples) if "alternating_flip" in augmentations else None
        self.flip = "flip" in augmentations or alternating is not None
        self.resized = "random_resized_crop" in augmentations
        self._num_examples = num_examples

        def epoch_choices(epoch):
            plan = plan_epoch(seed, epoch, num_examples, padding, self.flip)
            if alternating is not None:
                plan = plan._replace(mirrored=alternating[plan.order] ^ bool(epoch % 2))
            return (*plan, resized_crop.epoch_draws(seed, epoch, num_examples)) if self.resized else plan

        self._epoch_choices = functools.lru_cache(maxsize=3)(epoch_choices)

    def of(self, examples):
        """The columns of an EpochPlan for examples of the run, ascending int64 [b]; with `resized` also `epoch_draws`."""
        epochs, places = np.divmod(examples, self._num_examples)
        if epochs[0] == epochs[-1]:
            return [column[places] for column in self._epoch_choices(int(epochs[0]))]
        parts = [self.of(part) for part in np.split(examples, np.flatnonzero(np.diff(epochs)) + 1)]
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class ResidentSplit(Split):
    """All images of a split, decoded. `images`: uint8 [n, height, width, 3]; `labels`: int32 [n].

    "crop" pads them by `padding` pixels on each side (None: an eighth of the height) with the `border` "zeros" or "reflect".
    """

    images: np.ndarray
    labels: np.ndarray
    padding: int | None = None
    border: str = "zeros"
    _windows: dict = dataclasses.field(default_factory=dict, repr=False)  # (padding, flip) -> Windows

    @property
    def num_examples(self):
        """Number of examples, n."""
        return len(self.labels)

    @property
    def image_shape(self):
        """(height, width, 3) of the images of a batch."""
        return self.images.shape[1:]

    def _pixel_parts(self):
        images = max(1, SUMMED_PIXELS // (self.images[0].size // 3))
        return (self.images[first : first + images] for first in range(0, self.num_examples, images))

    def training_batches(self, seed, first_step, global_batch_size, augmentations, shard=ONE_REPLICA):
        """An endless Dataset of per-replica batches for a Shard: from `first_step` on, and within a step replica by replica.

        Elements are {"image": uint8 [b, height, width, 3], "label": int64 [b]}, b = global_batch_size / num_replicas. `seed`
        determines the order and the augmentation. Of the `augmentations`, only these are done here: "crop" (a window of the
        padded image), "random_resized_crop" (`resized_crop.crop_batch`), "flip" and "alternating_flip" (`mirrored_first`).
        Raises SettingError if the padding is too wide.
        """
        padding = crop_padding(self.padding, self.border, *self.image_shape[:2]) if "crop" in augmentations else 0
        choices = Choices(seed, self.num_examples, padding, augmentations)
        specs, view = self._views(padding, choices.flip, choices.resized)

        def read(examples):
            order, *drawn = choices.of(examples)
            return self.labels[order].astype(np.int64), *view(order, *drawn)

        return map_examples(read, {"label": INT64} | specs, global_batch_size, shard, first_step)

    def evaluation_batches(self, global_batch_size, shard=ONE_REPLICA, test_crops=1):
        """An endless Dataset that repeats the split in order, padded to whole global batches.

        Elements are those of `training_batches` and "weight": float32 [b], 1 for an example, 0 for padding. The images are whole
        for any `test_crops`, because the ten views are cut on the device.
        """
        specs, view = self._views()

        def read(examples):
            index = examples % (num_evaluation_steps(self.num_examples, global_batch_size) * global_batch_size)
            inside = index < self.num_examples
            index, untouched = np.where(inside, index, 0), np.zeros(len(index), np.int64)
            labels, weights = self.labels[index].astype(np.int64), inside.astype(np.float32)
            return labels, weights, *view(index, untouched, untouched, untouched > 0)

        return map_examples(read, {"label": INT64, "weight": FLOAT32} | specs, global_batch_size, shard)

    def _views(self, padding=0, flip=False, resized=False):
        """What a batch shows: {name: TensorSpec of one example}, and a function from columns of `Choices.of` to their arrays."""
        windows = self.windows(padding, flip)

        def view(order, top, left, mirrored, *draws):
            images = windows.cut(order, top, left, mirrored)
            if resized:
                with tf.device("/cpu:0"):  # on a GPU, the images would have to be copied back
                    images = resized_crop.crop_batch(images, resized_crop.boxes(*draws, *self.image_shape[:2])).numpy()
            return [images]

        return {"image": tf.TensorSpec(self.image_shape, tf.uint8)}, view

    def windows(self, padding, flip):
        """The Windows of the images. They are made once and serve all datasets of the process."""
        if (padding, flip) not in self._windows:
            self._windows[padding, flip] = Windows(self.images, padding, flip, self.border)
        return self._windows[padding, flip]

    def locate_batch(self, seed, step, global_batch_size):
        """{"examples": [index into `images`]} of the batch of a step."""
        examples = step * global_batch_size + np.arange(global_batch_size)
        return {"examples": Choices(seed, self.num_examples, 0, ()).of(examples)[0].tolist()}


def map_examples(read, specs, global_batch_size, shard, first_step=0):
    """An endless Dataset of batches that NumPy makes, in the order of `ResidentSplit.training_batches`.

    `read` maps positions in the run, ascending int64 [c], to arrays [c, ...] in the order of `specs`, {name: TensorSpec of one}.
    """
    rows = global_batch_size // shard.num_replicas
    example_bytes = sum(spec.dtype.size * int(np.prod(spec.shape)) for spec in specs.values())
    batches = int(max(1, CHUNK_BYTES // (rows * example_bytes)))

    def read_chunk(number):
        position = first_step * shard.local_replicas + number * batches + np.arange(batches)
        step, replica = np.divmod(position, shard.local_replicas)
        first = step * global_batch_size + (shard.first_replica + replica) * rows
        return read((first[:, None] + np.arange(rows)).ravel())

    def chunk(number):
        tensors = tf.numpy_function(read_chunk, [number], [spec.dtype for spec in specs.values()], stateful=False)
        return {name: tf.ensure_shape(tensor, (batches * rows, *spec.shape))
                for (name, spec), tensor in zip(specs.items(), tensors, strict=True)}

    chunks = tf.data.Dataset.range(np.iinfo(np.int64).max).map(chunk, num_parallel_calls=PARALLEL_CHUNKS)
    return without_autotune(chunks.prefetch(PARALLEL_CHUNKS).rebatch(rows, drop_remainder=True))


def load(source, split, num_examples, image_size, decode_threads=0):
    """Decodes a whole split into memory, as a ResidentSplit. Arguments and errors are those of `loading.decode_split`."""
    return ResidentSplit(*decode_split(source, split, num_examples, image_size, decode_threads))
