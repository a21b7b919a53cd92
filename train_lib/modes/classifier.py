"""A checkpoint that is ready to classify: its network, and the part of an image that the network gets."""

import numpy as np
import tensorflow as tf

from input_pipeline.images import decoding
from input_pipeline.splits import read_like
from input_pipeline.splits.stream import evaluation_sizes, training_margin
from train_lib.checkpoints.resume import FIXED_FOR_USE, kind_before, refuse_other_experiment
from train_lib.checkpoints.store import CheckpointStore
from train_lib.evaluate import describe_network, make_eval_step, restore_for_use

TOP = 5


class Classifier:
    """The checkpoint that --checkpoint names in a Workdir. It needs no data set.

    `top` is how many classes to name: five, or all if there are fewer. `size`, (height, width), is the part of an image that
    evaluation uses: the middle of the image, scaled to cover `covered`. `eval_step` takes the images that `view` returns.
    Raises ExpectedError if the checkpoint is missing, damaged or of another network, or if a flag contradicts it.
    """

    def __init__(self, config, workdir, strategy):
        self.checkpoint, self.strategy = CheckpointStore(workdir.checkpoints).find(config.modes.checkpoint), strategy
        self.class_names, (height, width, _) = describe_network(self.checkpoint)
        refuse_other_experiment(config, self.checkpoint, FIXED_FOR_USE)
        self.state = restore_for_use(config, strategy, self.checkpoint)
        self.eval_step = make_eval_step(strategy, self.state, config.modes.test_crops)
        self.top = min(TOP, len(self.class_names))
        self.size = self.covered = height, width  # as for images in memory
        if read_like(config.data, kind_before(self.checkpoint)).input == "stream":  # --input=auto is as in training
            margin = training_margin(height, config.data.augmentations)
            size, covered = evaluation_sizes(height, margin, config.modes.test_crops)
            self.size, self.covered = (size, size), (covered, covered)

    def view(self, images):
        """uint8 [..., h, w, 3] of any size -> uint8 [..., height, width, 3] of `size`; in a graph or eagerly."""
        return decoding.central_crop(decoding.resize_to_cover(images, *self.covered), *self.size)

    def logits(self, views, batch_size):
        """Computes the logits of n <= batch_size views on all replicas, after padding the batch to its full size.

        The views are uint8 [n, height, width, 3], and the logits NumPy [n, classes], float32 or float64.
        """
        num_replicas = self.strategy.num_replicas_in_sync
        padded = np.zeros((-(-batch_size // num_replicas) * num_replicas, *views.shape[1:]), np.uint8)
        padded[: len(views)] = views
        parts = np.split(padded, num_replicas)
        images = self.strategy.experimental_distribute_values_from_function(
            lambda replica: tf.constant(parts[replica.replica_id_in_sync_group]))
        logits = self.strategy.experimental_local_results(self.eval_step({"image": images}))
        return np.concatenate([part.numpy() for part in logits])[: len(views)]
