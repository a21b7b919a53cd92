"""A resident split whose images lie on the devices: the host says which image, which window and whether mirrored, no pixels.

The batches are those of `resident.ResidentSplit`, bit for bit; `DeviceSplit.look_up` makes their images where the step runs.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import ONE_REPLICA
from input_pipeline.common.errors import SettingError
from input_pipeline.common.memory import free_gigabytes
from input_pipeline.images import resized_crop
from input_pipeline.splits.resident import FLOAT32, INT32, Choices, ResidentSplit, evaluation_rows, map_examples

WORD = 8  # bytes: GPUs gather int64, but TensorFlow has no kernel for them that gathers uint8


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceSplit(ResidentSplit):
    """A ResidentSplit that sends choices in place of images.

    The tables hold the images without a border: what lies outside is made zero on the way, so that one table serves training
    and evaluation and takes two thirds of the memory that one padded for 32 x 32 would take.
    """

    _on_devices: dict = dataclasses.field(default_factory=dict, repr=False)  # device -> its table

    @property
    def on_host(self):
        """A split of the same examples whose batches hold images."""
        return ResidentSplit(self.images, self.labels)

    def training_batches(self, seed, first_step, global_batch_size, augmentations, shard=ONE_REPLICA):
        """`ResidentSplit.training_batches` before `look_up`.

        Returns:
          Elements of int32 [b]: "index" of the image, "top" and "left" of its window (0 is the image's own edge, less is outside
          of it), "mirrored" (0 or 1), "label"; with "random_resized_crop" also "corners", float32 [b, 4], of its windows.
        """
        choices = Choices(seed, self.num_examples, self.image_shape[0], augmentations)

        def read(examples):
            order, top, left, mirrored, *draws = choices.of(examples)
            columns = (order, top - choices.padding, left - choices.padding, mirrored, self.labels[order])
            corners = [resized_crop.boxes(*draws, *self.image_shape[:2])] if draws else []
            return *(column.astype(np.int32) for column in columns), *corners

        corners = {"corners": tf.TensorSpec([4], tf.float32)} if choices.resized else {}
        return map_examples(read, self._specs() | corners, global_batch_size, shard, first_step)

    def evaluation_batches(self, global_batch_size, shard=ONE_REPLICA, test_crops=1):
        """`ResidentSplit.evaluation_batches` before `look_up`: what `training_batches` gives, and "weight"."""
        def read(examples):
            index, weight = evaluation_rows(self.num_examples, global_batch_size, examples)
            untouched = np.zeros(len(index), np.int32)
            return index.astype(np.int32), untouched, untouched, untouched, self.labels[index], weight

        return map_examples(read, self._specs() | {"weight": FLOAT32}, global_batch_size, shard)

    @staticmethod
    def _specs():
        return dict.fromkeys(("index", "top", "left", "mirrored", "label"), INT32)

    def table_on(self, device):
        """The images on a device, int64 [n, words]: the bytes of an image in a row, filled up to whole words. Made once.

        Raises:
          SettingError: they do not fit.
        """
        if device not in self._on_devices:
            gigabytes = self.images.nbytes / 1e9
            remedy = f"the images take {gigabytes:.2g} GB on each device, more than is free on {device}; give memory or stream"
            if "CPU" in device.upper() and gigabytes > free_gigabytes():  # asked for too much, the system ends the process
                raise SettingError("input", "device", remedy)
            try:
                with tf.device(device):
                    self._on_devices[device] = tf.constant(_words(self.images))
            except (tf.errors.ResourceExhaustedError, tf.errors.InternalError):  # the latter where the copy finds no room
                raise SettingError("input", "device", remedy) from None
        return self._on_devices[device]

    def look_up(self, table, batch):
        """A batch of `training_batches` or `evaluation_batches` -> one of ResidentSplit, "image" in place of the choices.

        Args:
          table: from `table_on` the device that this runs on.
          batch: {name: tensor [b]}.

        Returns:
          {"image": uint8 [b, height, width, 3], "label": int32 [b]}, and "weight" where there is one.
        """
        height, width, channels = self.image_shape
        # int64 and float32: on a GPU, TensorFlow computes int32 in the host's memory.
        index, top, left, mirrored = (tf.cast(batch[name], tf.int64)[:, None] for name in ("index", "top", "left", "mirrored"))
        pixels = tf.bitcast(tf.gather(table, index[:, 0]), tf.uint8)
        pixels = tf.reshape(pixels, [-1, table.shape[1] * WORD])[:, : height * width * channels]
        pixels = tf.cast(tf.reshape(pixels, [-1, height * width, channels]), tf.float32)
        across = np.arange(width)
        row = top + np.arange(height)  # [b, height]
        column = left + across + mirrored * (width - 1 - 2 * across)  # [b, width]
        inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
        place = tf.where(inside, row[:, :, None] * width + column[:, None, :], 0)
        images = tf.gather(pixels, place, batch_dims=1) * tf.cast(inside, tf.float32)[..., None]
        if "corners" in batch:
            images = resized_crop.crop_batch(tf.cast(images, tf.uint8), batch["corners"])
        rest = {name: batch[name] for name in ("label", "weight") if name in batch}
        return {"image": tf.ensure_shape(tf.cast(images, tf.uint8), [None, *self.image_shape]), **rest}


def _words(images):
    rows = images.reshape(len(images), -1)
    missing = -rows.shape[1] % WORD
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, missing))) if missing else rows).view(np.int64)
