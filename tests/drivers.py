"""Drives the pieces of a training step by hand, as a user would in a notebook."""

import numpy as np
import tensorflow as tf
from absl import flags

from input_pipeline.splits.resident import ResidentSplit
from train_lib import config as config_lib
from train_lib.checkpoints.store import CheckpointStore
from train_lib.cli import flags as flags_lib
from train_lib.distribution.strategy import distribute, mirror_on_cpu
from train_lib.inner_loop import make_train_loop
from train_lib.records.workdir import Workdir, open_workdir
from train_lib.state import PixelScaling, create_state, tensors_of

BATCH = 32
ZERO_ONE = PixelScaling(np.zeros(3), np.full(3, 1 / 255))


def make_config(**values):
    """An ExperimentConfig of a small network that trains on batches of 32."""
    defaults = {
        "model": "alexnet_mini", "model_options": "dense_units=64", "pixels": "zero_one", "augment": "crop,flip",
        "global_batch_size": BATCH, "steps_per_loop": 20, "learning_rate": 2.0**-6, "dropout_rate": 0.0,
    }
    return config_lib.from_values(defaults | values)


def random_split(num_examples=100):
    """Images of noise."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_examples, 32, 32, 3), np.uint8)
    return ResidentSplit(images, generator.integers(0, 10, num_examples).astype(np.int32))


def mirrored(num_replicas):
    """A strategy over that many logical CPU devices (`conftest.py` makes four)."""
    if num_replicas == 1:
        return tf.distribute.get_strategy()
    return mirror_on_cpu(num_replicas)


class Driver:
    """A network in training, without a run around it."""

    def __init__(self, config, split, num_replicas=1, make_state=None, strategy=None):
        self.config, self.split, self.strategy = config, split, strategy or mirrored(num_replicas)
        make_state = make_state or (lambda: create_state(config, self.strategy, 10, split.image_shape, ZERO_ONE))
        with self.strategy.scope():
            self.state = make_state()
        self.loop = make_train_loop(self.strategy, self.state, config)

    def batches(self, shard=None):
        """The training batches of one pipeline."""
        seed, size = self.config.general.seed, self.config.optimization.global_batch_size
        shard = {} if shard is None else {"shard": shard}
        return self.split.training_batches(seed, 0, size, self.config.data.augmentations, **shard)

    def run(self, num_steps, spoil=lambda batches, shard: batches, first_step=0):
        """Trains in one call of the loop; returns steps done, updates skipped in a row and the reports as NumPy arrays.

        `spoil(batches, shard)` may change what a replica gets.
        """
        done, skipped, reports = self.loop(*self.arguments(num_steps, spoil, first_step))
        return int(done), int(skipped), {name: values.numpy() for name, values in reports.items()}

    def arguments(self, num_steps, spoil=lambda batches, shard: batches, first_step=0):
        """What the loop is called with."""
        iterator = distribute(self.strategy, lambda shard: spoil(self.batches(shard), shard), self.split)
        rates = np.full(self.config.device.steps_per_loop, self.config.optimization.learning_rate)
        counts = tf.constant(first_step, tf.int64), tf.constant(num_steps)
        return iterator, *counts, tf.constant(rates), tf.constant(0, tf.int64)

    def weights(self):
        """The trainable weights as NumPy arrays."""
        return [variable.numpy() for variable in self.state.model.trainable_variables]


def run_mode(mode, *arguments):
    """Runs a mode of main.py in this process, given as the function that does it, from the command line on; its exit code."""
    values = flags.FlagValues()
    flags_lib.define(values)
    config = flags_lib.parse(["main.py", f"--mode={mode.__name__}", *map(str, arguments)], values)
    return mode(config, open_workdir(config))


def save_run(workdir, config, class_names, description=None, image_shape=(32, 32, 3), extra=lambda state: {}):
    """A workdir with one checkpoint of a network with initial weights; `extra(state)` gives further tensors."""
    state = create_state(config, mirrored(1), len(class_names), image_shape, ZERO_ONE)
    state.step = 1
    about = {"config": config_lib.to_values(config), "class_names": list(class_names), "image_shape": list(image_shape),
             "data": {}, "last_step": 1, "progress": state.progress()}
    store = CheckpointStore(workdir / "checkpoints")
    store.save(1, tensors_of(state) | extra(state), about if description is None else description(about), is_best=True)
    Workdir(workdir).write_config(config)
    return workdir
