"""What all rows of the benchmark share, and the rows of the bare train step."""

import time

import tensorflow as tf

from input_pipeline.common.errors import SettingError
from train_lib import steps
from train_lib.inner_loop import without_wait
from train_lib.state import create_state

OF_A_STREAM = ("read", "read_decode", "decode_crop", "read_decode_augment")
# Rows that draw batches and train nothing. Their rounds are short.
INPUTS = ("input", *OF_A_STREAM, "numpy_gather", "canonical", "tutorial")
MOST_SKIPPED = 40  # first steps in float16, during which the loss scale falls to a value that works
# Returns when the devices have finished all work. Without it, the clock of a GPU's round would stop too early.
wait_for_devices = tf.test.experimental.sync_devices
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


def refuse_diverged(config, has_diverged):
    """Raises SettingError after a divergence: updates are skipped then, and a skipped one takes less time."""
    if has_diverged:
        remedy = "the loss or its gradient is not finite, so nothing can be measured; give a lower one"
        raise SettingError("learning_rate", config.optimization.learning_rate, remedy)


class Row:
    """A row of a Bench. Creating it, from a Bench and a name, `warm_up` and `measure` may raise RowFailed.

    Each kind of row has a method `_take`, which takes at least so many steps and returns how many there were, and their seconds.
    """

    def __init__(self, bench):
        self._bench = bench

    def warm_up(self):
        """Does what only the first calls have to do; returns the images/s of a later call."""
        self.measure(self._bench.config.device.steps_per_loop)
        return self.measure(self._bench.config.device.steps_per_loop)

    def measure(self, num_steps):
        """Returns images/s over at least so many steps."""
        done, seconds = self._take(num_steps)
        return done * self._bench.batch_size / seconds

    def close(self):
        """Ends the row."""


class StepRow(Row):
    """The compiled train step, called from Python once per step, always on the same batch, which is on the device.

    The row "one_device" is the first device on its own with the whole batch. With N devices, "step" should be N times as fast.
    """

    def __init__(self, bench, name="step"):
        super().__init__(bench)
        run, config, strategy = bench.run, bench.config, bench.run.strategy
        if name == "one_device":
            if strategy.num_replicas_in_sync == 1:
                raise RowFailed("there is only one device, so this would be the row step again")
            strategy = tf.distribute.get_strategy()  # TensorFlow's default strategy uses the first device
        state = create_state(config, strategy, len(run.source.class_names), run.train_split.image_shape, run.state.pixels)
        self._batch, _ = without_wait(strategy, next(run.training_batches(strategy=strategy)))
        if strategy.num_replicas_in_sync == 1:  # otherwise each replica's part is on its device already
            with tf.device("/gpu:0" if tf.config.list_logical_devices("GPU") else "/cpu:0"):
                self._batch = {name: tf.identity(values) for name, values in self._batch.items()}
        self._rate = tf.constant(config.optimization.learning_rate, tf.float64)
        self._next_step, self._finite = 0, False

        @tf.function
        def step(batch, index, learning_rate):
            with strategy.scope():
                return steps.train_step(strategy, state, config, batch, index, learning_rate)

        self._step = step

    def warm_up(self):
        for _ in range(MOST_SKIPPED):
            self.measure(1)
            if self._finite:
                break
        return self.measure(3)

    def _take(self, num_steps):
        start = self._bench.clock()
        for index in range(self._next_step, self._next_step + num_steps):
            report = self._step(self._batch, tf.constant(index, tf.int64), self._rate)
        wait_for_devices()
        seconds = self._bench.clock() - start
        self._next_step += num_steps
        self._finite = bool(report["finite"].numpy())
        refuse_diverged(self._bench.config, report["counts"].numpy())
        return num_steps, seconds
