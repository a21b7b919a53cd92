"""Many train steps in one call from Python, so that the host does not hold up the devices between steps.

Inside a call, the host launches step after step without waiting for any result.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from train_lib.steps import METRICS, look_ahead, train_step


def make_train_loop(strategy, state, config):
    """Compiles the inner loop.

    Returns:
      loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row, lookahead_shares, looks_ahead) -> (steps done,
      skipped_in_a_row, {name: [steps_per_loop]}). Once --max_nonfinite_steps is exceeded, the steps that are left change nothing
      and do not count. `learning_rates`, `lookahead_shares`, `looks_ahead` and the reports always have steps_per_loop entries, so
      that a shorter call does not compile again. "data_wait" holds the seconds spent waiting for each batch, NaN if the batches
      do not tell (`input_pipeline.common.batches.timed`). `lookahead_shares` has the share of `steps.look_ahead` after each step
      for which `looks_ahead`, int32, is 1; both are None without --lookahead_steps.

    The host only decides by its own integers: TensorFlow keeps every int32 in the host's memory. So what a device computes is
    bool, float or int64.
    """
    size = config.device.steps_per_loop
    names = [name for name, reduction in METRICS.items() if not callable(reduction)]

    @tf.function
    def train_loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row, lookahead_shares=None, looks_ahead=None):
        wide = tf.float64 if config.network.precision == "float64" else tf.float32
        metrics = {name: tf.TensorArray(wide, size, element_shape=()) for name in names}
        finite = tf.TensorArray(tf.bool, size, element_shape=())
        waits = tf.TensorArray(tf.float64, size, element_shape=())
        done, limit = tf.constant(0, tf.int64), tf.constant(config.optimization.max_nonfinite_steps, tf.int64)
        with strategy.scope():
            for index in tf.range(num_steps):
                step, going = first_step + tf.cast(index, tf.int64), skipped_in_a_row <= limit
                batch, waited = without_wait(strategy, next(iterator))
                report = train_step(strategy, state, config, batch, step, learning_rates[index], going)
                if looks_ahead is not None and looks_ahead[index] > 0:
                    look_ahead(strategy, state, lookahead_shares[index], report["finite"] & going)
                metrics = {name: values.write(index, report[name]) for name, values in metrics.items()}
                finite = finite.write(index, report["finite"])
                waits = waits.write(index, waited)
                done += tf.cast(going, tf.int64)
                in_a_row = tf.where(report["finite"], tf.zeros_like(done), skipped_in_a_row + tf.cast(report["counts"], tf.int64))
                skipped_in_a_row = tf.where(going, in_a_row, skipped_in_a_row)
        reports = {**metrics, "finite": finite, "data_wait": waits}
        return done, skipped_in_a_row, {name: values.stack() for name, values in reports.items()}

    return train_loop


def without_wait(strategy, batch):
    """A per-replica batch without "waited", and the seconds that this process waited for all of its parts, float64."""
    batch = dict(batch)
    waits = batch.pop("waited", None)
    if waits is None:
        return batch, tf.constant(float("nan"), tf.float64)
    return batch, tf.add_n(strategy.experimental_local_results(waits))


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
    seconds: float  # wall-clock time of the call
    images_per_second: float | None = None  # since the last train record, None if it is not known


def run_steps(train_loop, batches, state, rates, lookahead_shares, size, clock):
    """Calls the compiled loop for len(rates) steps from state.step on, and returns a StepsReport.

    This is a point where the host waits for the devices. `train_loop` comes from `make_train_loop`, `batches` is an iterator over
    per-replica batches, `rates` has the learning rate of each step, `lookahead_shares` its share of `look_ahead`, 0 for none
    (None without Lookahead), and `size` is --steps_per_loop.
    """
    padded, ahead = np.zeros(size), []
    padded[: len(rates)] = rates
    if lookahead_shares is not None:
        shares = np.array([*lookahead_shares, *[0.0] * (size - len(rates))])
        ahead = [tf.constant(shares), tf.constant(shares > 0, tf.int32)]
    start = clock()
    done, skipped, reports = train_loop(
        batches, tf.constant(state.step, tf.int64), tf.constant(len(rates)), tf.constant(padded),
        tf.constant(state.skipped_in_a_row, tf.int64), *ahead)
    done = int(done)
    values = {name: reports[name].numpy()[:done] for name in reports}
    seconds = clock() - start
    finite, data_wait = values.pop("finite"), values.pop("data_wait")
    return StepsReport(state.step, done, values, finite, padded[:done], data_wait, int(skipped), seconds)
