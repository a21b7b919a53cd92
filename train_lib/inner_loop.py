"""Many train steps in one call from Python, so that the host does not hold up the devices between steps."""

import dataclasses

import numpy as np
import tensorflow as tf

from train_lib.steps import METRICS, look_ahead, train_step


def timed_next(iterator, deterministic=False):
    """The next batch, and the seconds between asking for it and having it: a float64 scalar.

    The seconds are NaN under --deterministic, because TensorFlow then refuses to read the clock.
    """
    if deterministic:
        return next(iterator), tf.constant(float("nan"), tf.float64)
    asked = tf.timestamp()
    with tf.control_dependencies([asked]):
        batch = next(iterator)
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
        return batch, tf.timestamp() - asked


def make_train_loop(strategy, state, config):
    """Compiles the inner loop.

    Returns:
      loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row, stop_requested, lookahead_shares) -> (steps done,
      skipped_in_a_row, stopping, {name: [steps_per_loop]}). It ends early at the step that exceeds --max_nonfinite_steps, and
      at the first step at which any process was asked to stop. `learning_rates`, `lookahead_shares` and the reports always have
      steps_per_loop entries, so that a shorter call does not compile again. "data_wait" holds the seconds of `timed_next`.
      `lookahead_shares` has the share of `steps.look_ahead` after each step, 0 for none; None without --lookahead_steps.
    """
    size = config.device.steps_per_loop
    names = [name for name, reduction in METRICS.items() if not callable(reduction)]

    @tf.function
    def train_loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row, stop_requested, lookahead_shares=None):
        wide = tf.float64 if config.network.precision == "float64" else tf.float32
        metrics = {name: tf.TensorArray(wide, size, element_shape=()) for name in names}
        finite = tf.TensorArray(tf.bool, size, element_shape=())
        waits = tf.TensorArray(tf.float64, size, element_shape=())
        done, stopping = 0, False
        with strategy.scope():
            for index in tf.range(num_steps):
                step = first_step + tf.cast(index, tf.int64)
                batch, waited = timed_next(iterator, config.general.deterministic)
                report = train_step(strategy, state, config, batch, step, learning_rates[index], stop_requested)
                if lookahead_shares is not None and lookahead_shares[index] > 0 and report["finite"]:
                    look_ahead(strategy, state, lookahead_shares[index])
                metrics = {name: values.write(index, report[name]) for name, values in metrics.items()}
                finite = finite.write(index, report["finite"])
                waits = waits.write(index, waited)
                done += 1
                stopping = report["stopping"]
                skipped_in_a_row = tf.where(report["finite"], 0, skipped_in_a_row + tf.cast(report["counts"], tf.int32))
                if stopping or skipped_in_a_row > config.optimization.max_nonfinite_steps:
                    break
        reports = {**metrics, "finite": finite, "data_wait": waits}
        return done, skipped_in_a_row, stopping, {name: values.stack() for name, values in reports.items()}

    return train_loop


@dataclasses.dataclass(frozen=True)
class StepsReport:
    """What one call of the inner loop did, on the host."""

    first_step: int  # the step at which it began
    num_steps: int  # n, how many steps it did
    metrics: dict  # {name: float [n]}, one value per step
    finite: np.ndarray  # bool [n]; whether the update of each step was made
    learning_rates: np.ndarray  # float64 [n]
    data_wait: np.ndarray  # float64 [n], seconds spent waiting for each batch
    skipped_in_a_row: int  # how many updates in a row have been skipped by now
    stopping: bool  # whether a process was asked to stop
    seconds: float  # wall-clock time of the call
    images_per_second: float | None = None  # since the last train record, None if it is not known


def run_steps(train_loop, batches, state, rates, lookahead_shares, size, stop_requested, clock):
    """Calls the compiled loop for len(rates) steps from state.step on, and returns a StepsReport.

    This is a point where the host waits for the devices. `train_loop` comes from `make_train_loop`, `batches` is an iterator over
    per-replica batches, `rates` has the learning rate of each step, `lookahead_shares` its share of `look_ahead` (None without
    Lookahead), and `size` is --steps_per_loop.
    """
    padded = np.zeros(size)
    padded[: len(rates)] = rates
    shares = None if lookahead_shares is None else tf.constant([*lookahead_shares, *[0.0] * (size - len(rates))], tf.float64)
    start = clock()
    done, skipped, stopping, reports = train_loop(
        batches, tf.constant(state.step, tf.int64), tf.constant(len(rates)), tf.constant(padded),
        tf.constant(state.skipped_in_a_row), tf.constant(stop_requested), shares)
    done = int(done)
    values = {name: reports[name].numpy()[:done] for name in reports}
    seconds = clock() - start
    finite, data_wait = values.pop("finite"), values.pop("data_wait")
    return StepsReport(
        state.step, done, values, finite, padded[:done], data_wait, int(skipped), bool(stopping), seconds)
