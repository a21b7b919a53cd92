"""A checkpoint in use: the network with the weights that were judged, and the part of an image that evaluation looks at."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from input_pipeline.images import decoding as augment
from input_pipeline.splits import read_like
from input_pipeline.splits.stream import evaluation_sizes, training_margin
from train_lib.checkpoints.resume import FIXED_FOR_USE, kind_before, refuse_other_experiment
from train_lib.checkpoints.store import Checkpoint, CheckpointStore
from train_lib.evaluate import describe_network, make_eval_step, restore_for_use
from train_lib.state import TrainState

TOP = 5


@dataclasses.dataclass(frozen=True)
class View:
    """The part of an image that evaluation looks at: the middle (height, width) of the image scaled to cover `covered`."""

    size: tuple
    covered: tuple

    def __call__(self, images):
        """uint8 [..., h, w, 3] of any size -> uint8 [..., height, width, 3]; in a TensorFlow graph or eagerly."""
        return augment.central_crop(augment.resize_to_cover(images, *self.covered), *self.size)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """What --checkpoint names, ready to classify.

    Attributes:
      eval_step: from `evaluate.make_eval_step`; takes what `view` gives.
      top: how many classes to name of each image.
    """

    checkpoint: Checkpoint
    strategy: tf.distribute.Strategy
    state: TrainState
    class_names: tuple
    view: View
    eval_step: Callable

    @property
    def top(self):
        """How many of the most probable classes are named: five, or all there are."""
        return min(TOP, len(self.class_names))

    def logits(self, views, batch_size):
        """Logits of at most `batch_size` views, uint8 [n, height, width, 3], on all replicas, the batch padded to its full size.

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
    """The Classifier of --checkpoint in a Workdir; needs no data set.

    Raises:
      ExpectedError: the checkpoint is not there, damaged or of another network, or a flag contradicts it.
    """
    checkpoint = CheckpointStore(workdir.checkpoints).find(config.modes.checkpoint)
    class_names, image_shape = describe_network(checkpoint)
    refuse_other_experiment(config, checkpoint, FIXED_FOR_USE)
    state = restore_for_use(config, strategy, checkpoint)
    view = _view(config, checkpoint, *image_shape[:2])
    return Classifier(checkpoint, strategy, state, class_names, view, make_eval_step(strategy, state, config.modes.test_crops))


def _view(config, checkpoint, height, width):
    """The View of --mode=evaluate: on images in memory, or on a stream; for --input=auto as the run trained."""
    if read_like(config.data, kind_before(checkpoint)).input != "stream":
        return View((height, width), (height, width))
    size, covered = evaluation_sizes(height, training_margin(height, config.data.augmentations), config.modes.test_crops)
    return View((size, size), (covered, covered))
