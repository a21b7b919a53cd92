"""What all rows of the benchmark share, and those of the bare step.

A row is made from a Bench and has `warm_up()`, which does what only the first call pays for and returns images/s of a later one;
`measure(steps)`, images/s over at least so many steps; and `close()`. The first two may raise RowFailed.
"""

import dataclasses
import sys
import time
from collections.abc import Callable

import tensorflow as tf

from input_pipeline.common.errors import SettingError
from train_lib import config as config_lib
from train_lib import steps
from train_lib.checkpoints.store import CheckpointStore
from train_lib.distribution.strategy import distribute
from train_lib.records.workdir import Workdir
from train_lib.setup import Run, open_run
from train_lib.state import create_state

OF_A_STREAM = ("read", "read_decode", "decode_crop", "read_decode_augment")
# Rows that draw batches and train nothing. Their rounds last a moment.
INPUTS = ("input", *OF_A_STREAM, "numpy_gather", "canonical", "tutorial")
# (row, row that it is divided by).
RATIOS = (
    ("input", "canonical"), ("input", "tutorial"), ("input", "numpy_gather"), ("input", "decode_crop"),
    ("read_decode", "read"), ("read_decode_augment", "read_decode"), ("input", "step"), ("step", "one_device"),
    ("loop", "step"), ("loop", "loop_constant"), ("loop", "model_fit"), ("loop", "model_fit_default"),
)
MOST_SKIPPED = 40  # first steps of float16, in which its loss scale falls to where it belongs
REST_INTERVAL, REST_SHARE, REST_SECONDS = 0.05, 0.2, 5.0  # seconds; cores; seconds at most


class RowFailed(Exception):
    """A row that cannot be measured here; the message says why. The others are measured without it."""


def rest(clock=time.monotonic, busy=time.process_time, sleep=time.sleep):
    """Waits until this process is idle: measured pipelines go on until their buffers are full, autotune's for seconds."""
    start = clock()
    while clock() - start < REST_SECONDS:
        before, moment = busy(), clock()
        sleep(REST_INTERVAL)
        if busy() - before < REST_SHARE * (clock() - moment):
            return


@dataclasses.dataclass
class Bench:
    """What all rows share.

    Attributes:
      run: an open Run in a temporary folder, which the row `loop` trains; the others have weights of their own.
      log: called with a line for the user.
      clock: seconds, monotonic.
      notes: the lines of `note`.
      shared: what one row has and another can use too.
    """

    run: Run
    log: Callable = print
    clock: Callable = time.monotonic
    notes: list = dataclasses.field(default_factory=list)
    shared: dict = dataclasses.field(default_factory=dict)

    def note(self, line):
        """Tells the user, and whoever reads benchmark.json, of something that bears on the figures."""
        self.notes.append(line)
        self.log(line)

    @property
    def config(self):
        """The ExperimentConfig that is measured."""
        return self.run.config

    def images_per_second(self, num_steps, seconds):
        """Throughput of so many global batches."""
        return num_steps * self.config.optimization.global_batch_size / seconds

    def new_state(self, strategy):
        """A TrainState with fresh weights."""
        classes, shape = len(self.run.source.class_names), self.run.train_split.image_shape
        return create_state(self.config, strategy, classes, shape, self.run.state.pixels)


def open_bench(config, folder, log):
    """Opens data, devices and network of a configuration in an empty folder, as a Bench.

    Evaluation is not what is measured, so there is no validation split, and nothing that looks at one.
    """
    without = {"validation_split": "", "test_split": "", "early_stopping_patience": 0, "profile_steps": "", "init_from": None}
    if config.schedule.schedule == "plateau":
        without["schedule"] = "constant"
    config = config_lib.from_values(config_lib.to_values(config) | without)
    store = CheckpointStore(Workdir(folder).checkpoints, config.cadence.keep_checkpoints)
    run = open_run(config, Workdir(folder), None, store, log)
    run.plan = dataclasses.replace(run.plan, last_step=sys.maxsize)  # how long is decided round by round
    return Bench(run, log)


def wait_for_devices():
    """Returns when everything that was started on a device is done: without it a GPU's round would end before its work."""
    tf.test.experimental.sync_devices()


class StepRow:
    """The compiled train step, called from Python once a step, on one batch that lies on the device."""

    def __init__(self, bench, strategy=None):
        self._bench = bench
        strategy = strategy or bench.run.strategy
        config, split, state = bench.config, bench.run.train_split, bench.new_state(strategy)
        self._batch = _batch_on_devices(config, strategy, split)
        self._rate = tf.constant(config.optimization.learning_rate, tf.float64)
        self._next_step, self._finite = 0, False

        @tf.function
        def step(batch, index, learning_rate):
            with strategy.scope():
                return steps.train_step(strategy, state, config, batch, index, learning_rate)

        self._step = step

    def warm_up(self):
        """Traces and compiles; images/s of the calls after the first."""
        for _ in range(MOST_SKIPPED):
            self.measure(1)
            if self._finite:
                break
        return self.measure(3)

    def measure(self, num_steps):
        """Images/s."""
        start = self._bench.clock()
        for index in range(self._next_step, self._next_step + num_steps):
            report = self._step(self._batch, tf.constant(index, tf.int64), self._rate)
        wait_for_devices()
        seconds = self._bench.clock() - start
        self._next_step += num_steps
        self._finite = bool(report["finite"].numpy())
        refuse_diverged(self._bench.config, not report["counts"].numpy())
        return self._bench.images_per_second(num_steps, seconds)

    def close(self):
        """Nothing to close."""


class OneDeviceRow(StepRow):
    """What one device does with the whole batch: the row `step` is to be as many times as fast as there are devices."""

    def __init__(self, bench):
        if bench.run.strategy.num_replicas_in_sync == 1:
            raise RowFailed("there is one device only, so that it would be the row step again")
        super().__init__(bench, tf.distribute.get_strategy())  # TensorFlow's default: the first device


def _batch_on_devices(config, strategy, split):
    batch = next(distribute(strategy, lambda shard: split.training_batches(
        config.general.seed, 0, config.optimization.global_batch_size, config.data.augmentations, shard), split))
    if strategy.num_replicas_in_sync > 1:  # lies on the replicas' devices already
        return batch
    with tf.device("/gpu:0" if tf.config.list_logical_devices("GPU") else "/cpu:0"):
        return {name: tf.identity(values) for name, values in batch.items()}


def refuse_diverged(config, going_on):
    """Raises SettingError where training has diverged: a step that is skipped takes less time than one that is made."""
    if not going_on:
        remedy = "the loss or its gradient is not finite, so that nothing can be measured; give a lower one"
        raise SettingError("learning_rate", config.optimization.learning_rate, remedy)
