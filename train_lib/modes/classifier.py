"""A checkpoint that is ready to classify: its network, and the part of an image that the network gets."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from input_pipeline.images import decoding
from input_pipeline.splits import read_like
from input_pipeline.splits.stream import evaluation_sizes, training_margin
from train_lib.checkpoints.resume import FIXED_FOR_USE, kind_before, refuse_other_experiment
from train_lib.checkpoints.store import Checkpoint, CheckpointStore
from train_lib.evaluate import describe_network, make_eval_step, restore_for_use
from train_lib.state import TrainState

TOP = 5


@dataclasses.dataclass(frozen=True)
class View:
    """The part of an image that evaluation uses: the middle `size` of the image after it is scaled to cover `covered`.

    Both are (height, width).
    """

    size: tuple
    covered: tuple

    def __call__(self, images):
        """uint8 [..., h, w, 3] of any size -> uint8 [..., height, width, 3]; in a graph or eagerly."""
        return decoding.central_crop(decoding.resize_to_cover(images, *self.covered), *self.size)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The checkpoint that --checkpoint names, ready to classify.

    Attributes:
      eval_step: from `evaluate.make_eval_step`; takes the images that `view` returns.
    """

    checkpoint: Checkpoint
    strategy: tf.distribute.Strategy
    state: TrainState
    class_names: tuple
    view: View
    eval_step: Callable

    @property
    def top(self):
        """How many of the most probable classes to name: five, or all classes if there are fewer."""
        return min(TOP, len(self.class_names))

    def logits(self, views, batch_size):
        """Computes the logits of views on all replicas, after padding the batch to its full size.

        Args:
          views: uint8 [n, height, width, 3], n <= batch_size.
          batch_size: images.

        Returns:
          NumPy [n, classes], float32 or float64.
        """
        rows = -(-batch_size // self.strategy.num_replicas_in_sync)
        padded = np.zeros((rows * self.strategy.num_replicas_in_sync, *views.shape[1:]), np.uint8)
        padded[: len(views)] = views

        def share(replica):
            first = replica.replica_id_in_sync_group * rows
            return tf.constant(padded[first : first + rows])

        images = self.strategy.experimental_distribute_values_from_function(share)
        logits = self.strategy.experimental_local_results(self.eval_step({"image": images}))
        return np.concatenate([part.numpy() for part in logits])[: len(views)]


def open_classifier(config, workdir, strategy):
    """Opens the Classifier of --checkpoint in a Workdir. It needs no data set.

    Raises:
      ExpectedError: the checkpoint is missing, damaged or of another network, or a flag contradicts it.
    """
    checkpoint = CheckpointStore(workdir.checkpoints).find(config.modes.checkpoint)
    class_names, image_shape = describe_network(checkpoint)
    refuse_other_experiment(config, checkpoint, FIXED_FOR_USE)
    state = restore_for_use(config, strategy, checkpoint)
    view = _view(config, checkpoint, *image_shape[:2])
    return Classifier(checkpoint, strategy, state, class_names, view, make_eval_step(strategy, state, config.modes.test_crops))


def _view(config, checkpoint, height, width):
    """The View that --mode=evaluate uses: for images in memory or for a stream. --input=auto is as in training."""
    if read_like(config.data, kind_before(checkpoint)).input != "stream":
        return View((height, width), (height, width))
    size, covered = evaluation_sizes(height, training_margin(height, config.data.augmentations), config.modes.test_crops)
    return View((size, size), (covered, covered))
