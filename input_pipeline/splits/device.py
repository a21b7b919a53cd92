"""A resident split whose images are in the devices' memory. The host sends which image, which window and whether to mirror it.

The batches equal those of `resident.ResidentSplit` bit for bit. `DeviceSplit.look_up` makes their images where the step runs.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import free_gigabytes
from input_pipeline.common.errors import SettingError
from input_pipeline.images import resized_crop
from input_pipeline.splits.resident import INT64, ResidentSplit

WORD = 8  # bytes of an int64. TensorFlow can gather int64 on a GPU, but has no kernel there that gathers uint8.


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceSplit(ResidentSplit):
    """A ResidentSplit whose batches contain choices instead of images; `look_up` must be applied to each batch.

    Instead of "image", elements have int64 [b]: "index" of the image, "top" and "left" of its window (0 is the edge of the
    image, negative is outside of it), "mirrored" (0 or 1); with "random_resized_crop" also the windows' "corners", float32 [b,
    4]. The tables contain the images without padding, because `look_up` replaces pixels outside of the image by zeros, or by
    their reflections in the image. So one table serves training and evaluation, and for 32 x 32 pixels takes two thirds of the
    memory of a padded one.
    """

    _on_devices: dict = dataclasses.field(default_factory=dict, repr=False)  # device -> its table

    @property
    def on_host(self):
        """A split of the same examples whose batches contain images."""
        return ResidentSplit(self.images, self.labels, self.padding, self.border)

    def _views(self, padding=0, flip=False, resized=False):
        def view(order, top, left, mirrored, *draws):
            corners = [resized_crop.boxes(*draws, *self.image_shape[:2])] if resized else []
            return *(column.astype(np.int64) for column in (order, top - padding, left - padding, mirrored)), *corners

        corners = {"corners": tf.TensorSpec([4], tf.float32)} if resized else {}
        return dict.fromkeys(("index", "top", "left", "mirrored"), INT64) | corners, view

    def table_on(self, device):
        """The images on a device, int64 [n, words], one a row, padded to whole words. Raises SettingError if they do not fit."""
        if device not in self._on_devices:
            gigabytes = self.images.nbytes / 1e9
            remedy = f"the images take {gigabytes:.2g} GB on each device, more than is free on {device}; give memory or stream"
            if "CPU" in device.upper() and gigabytes > free_gigabytes():  # allocating more would kill the process
                raise SettingError("input", "device", remedy)
            rows = self.images.reshape(self.num_examples, -1)
            if missing := -rows.shape[1] % WORD:
                rows = np.pad(rows, ((0, 0), (0, missing)))
            try:
                with tf.device(device):
                    self._on_devices[device] = tf.constant(np.ascontiguousarray(rows).view(np.int64))
            except (tf.errors.ResourceExhaustedError, tf.errors.InternalError):  # InternalError: the copy fails
                raise SettingError("input", "device", remedy) from None
        return self._on_devices[device]

    def look_up(self, table, batch):
        """A batch with "image", uint8 [b, height, width, 3], instead of the choices. `table` is `table_on` this device."""
        height, width, channels = self.image_shape
        index, top, left, mirrored = (batch[name][:, None] for name in ("index", "top", "left", "mirrored"))
        pixels = tf.bitcast(tf.gather(table, index[:, 0]), tf.uint8)
        pixels = tf.reshape(pixels, [-1, table.shape[1] * WORD])[:, : height * width * channels]
        pixels = tf.cast(tf.reshape(pixels, [-1, height * width, channels]), tf.float32)
        across = np.arange(width)
        row = top + np.arange(height)  # [b, height]
        column = left + across + mirrored * (width - 1 - 2 * across)  # [b, width]
        if self.border == "reflect":
            row, column = (end - tf.abs(end - tf.abs(places)) for places, end in ((row, height - 1), (column, width - 1)))
        inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
        place = tf.where(inside, row[:, :, None] * width + column[:, None, :], 0)
        images = tf.gather(pixels, place, batch_dims=1) * tf.cast(inside, tf.float32)[..., None]
        if "corners" in batch:
            images = resized_crop.crop_batch(images, batch["corners"])
        rest = {name: batch[name] for name in ("label", "weight", "waited") if name in batch}
        return {"image": tf.ensure_shape(tf.cast(images, tf.uint8), [None, *self.image_shape]), **rest}
