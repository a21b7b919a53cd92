"""What all rows of the benchmark share, and the rows of the bare train step.

A row is created from a Bench and has three methods. `warm_up()` does what only the first calls have to do and returns the
images/s of a later call; `measure(steps)` returns the images/s over at least so many steps; `close()` ends the row. Creating a
row and the first two methods may raise RowFailed.
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
from train_lib.records.workdir import Workdir
from train_lib.setup import Run, open_run
from train_lib.state import create_state

OF_A_STREAM = ("read", "read_decode", "decode_crop", "read_decode_augment")
# Rows that draw batches and train nothing. Their rounds are short.
INPUTS = ("input", *OF_A_STREAM, "numpy_gather", "canonical", "tutorial")
# Each row is divided by the other.
RATIOS = (
    ("input", "canonical"), ("input", "tutorial"), ("input", "numpy_gather"), ("input", "decode_crop"),
    ("read_decode", "read"), ("read_decode_augment", "read_decode"), ("input", "step"), ("step", "one_device"),
    ("loop", "step"), ("loop", "loop_constant"), ("loop", "model_fit"), ("loop", "model_fit_default"),
)
MOST_SKIPPED = 40  # first steps in float16, during which the loss scale falls to a value that works
REST_INTERVAL, REST_SHARE, REST_SECONDS = 0.05, 0.2, 5.0  # seconds; cores; seconds at most


class RowFailed(Exception):
    """A row cannot be measured here; the message says why. The benchmark continues without it."""


def rest(clock=time.monotonic, busy=time.process_time, sleep=time.sleep):
    """Waits until this process is idle: after a measurement, pipelines run on until their buffers are full, some for seconds."""
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
      run: an open Run in a temporary folder. The row `loop` trains it; the other rows have weights of their own.
      log: called with a line for the user.
      clock: seconds, monotonic.
      notes: the lines that `note` was called with.
      shared: what one row has made and another can use too.
    """

    run: Run
    log: Callable = print
    clock: Callable = time.monotonic
    notes: list = dataclasses.field(default_factory=list)
    shared: dict = dataclasses.field(default_factory=dict)

    def note(self, line):
        """Logs a line that helps to understand the figures. It also becomes part of benchmark.json."""
        self.notes.append(line)
        self.log(line)

    @property
    def config(self):
        """The ExperimentConfig that is measured."""
        return self.run.config

    @property
    def batch_size(self):
        """Images in a global batch."""
        return self.config.optimization.global_batch_size

    def images_per_second(self, num_steps, seconds):
        """Throughput of so many global batches."""
        return num_steps * self.batch_size / seconds

    def new_state(self, strategy):
        """A TrainState with fresh weights."""
        classes, shape = len(self.run.source.class_names), self.run.train_split.image_shape
        return create_state(self.config, strategy, classes, shape, self.run.state.pixels)


def open_bench(config, folder, log):
    """Opens the data, devices and network of a configuration in an empty folder, as a Bench.

    The benchmark does not measure evaluation. So there is no validation split, and nothing that depends on one.
    """
    without = {"validation_split": "", "test_split": "", "early_stopping_patience": 0, "profile_steps": "", "init_from": None}
    if config.schedule.schedule == "plateau":
        without["schedule"] = "constant"
    config = config_lib.from_values(config_lib.to_values(config) | without)
    store = CheckpointStore(Workdir(folder).checkpoints, config.cadence.keep_checkpoints)
    run = open_run(config, Workdir(folder), None, store, log)
    run.plan = dataclasses.replace(run.plan, last_step=sys.maxsize)  # the benchmark decides how many steps it takes
    return Bench(run, log)


def wait_for_devices():
    """Waits until the devices have finished all work. Without this, the clock of a GPU's round would stop too early."""
    tf.test.experimental.sync_devices()


class Row:
    """What most rows do: keep the Bench, and nothing when they are closed."""

    def __init__(self, bench):
        self._bench = bench

    def close(self):
        """Ends the row."""


class StepRow(Row):
    """The compiled train step, called from Python once per step, always on the same batch, which is on the device."""

    def __init__(self, bench, strategy=None):
        super().__init__(bench)
        strategy, config = strategy or bench.run.strategy, bench.config
        state = bench.new_state(strategy)
        self._batch = _on_device(next(bench.run.training_batches(strategy=strategy)), strategy)
        self._rate = tf.constant(config.optimization.learning_rate, tf.float64)
        self._next_step, self._finite = 0, False

        @tf.function
        def step(batch, index, learning_rate):
            with strategy.scope():
                return steps.train_step(strategy, state, config, batch, index, learning_rate)

        self._step = step

    def warm_up(self):
        """Traces and compiles the step; returns images/s of later calls."""
        for _ in range(MOST_SKIPPED):
            self.measure(1)
            if self._finite:
                break
        return self.measure(3)

    def measure(self, num_steps):
        """Returns images/s."""
        start = self._bench.clock()
        for index in range(self._next_step, self._next_step + num_steps):
            report = self._step(self._batch, tf.constant(index, tf.int64), self._rate)
        wait_for_devices()
        seconds = self._bench.clock() - start
        self._next_step += num_steps
        self._finite = bool(report["finite"].numpy())
        refuse_diverged(self._bench.config, not report["counts"].numpy())
        return self._bench.images_per_second(num_steps, seconds)


def one_device_row(bench):
    """One device on its own with the whole batch. With N devices, the row `step` should be N times as fast."""
    if bench.run.strategy.num_replicas_in_sync == 1:
        raise RowFailed("there is only one device, so this would be the row step again")
    return StepRow(bench, tf.distribute.get_strategy())  # TensorFlow's default strategy uses the first device


def _on_device(batch, strategy):
    if strategy.num_replicas_in_sync > 1:  # each replica's part is on its device already
        return batch
    with tf.device("/gpu:0" if tf.config.list_logical_devices("GPU") else "/cpu:0"):
        return {name: tf.identity(values) for name, values in batch.items()}


def refuse_diverged(config, going_on):
    """Raises SettingError unless `going_on`. After a divergence, updates are skipped, and a skipped one takes less time."""
    if not going_on:
        remedy = "the loss or its gradient is not finite, so nothing can be measured; give a lower one"
        raise SettingError("learning_rate", config.optimization.learning_rate, remedy)
