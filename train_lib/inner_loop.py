"""Many train steps in one call of a compiled function."""

import tensorflow as tf

from train_lib.steps import METRICS, train_step


def timed_next(iterator, deterministic=False):
    """The next batch, and the seconds from asking for it to having it, a float64 scalar; NaN where the clock may not be read."""
    if deterministic:  # TensorFlow then refuses tf.timestamp
        return next(iterator), tf.constant(float("nan"), tf.float64)
    asked = tf.timestamp()
    with tf.control_dependencies([asked]):
        batch = next(iterator)
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
        return batch, tf.timestamp() - asked


def make_train_loop(strategy, state, config):
    """Compiles the inner loop: several steps in one call from the host.

    Returns:
      loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row, stop_requested) -> (steps done,
      skipped_in_a_row, stopping, {name: [steps_per_loop]}). It ends early at the first step that goes beyond
      max_nonfinite_steps and, stopping, at the first where any process asks to. `learning_rates` and the reports always have
      steps_per_loop entries, so that a shorter last stretch does not compile again; "data_wait" are the seconds of `timed_next`.
    """
    size = config.device.steps_per_loop

    @tf.function
    def train_loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row, stop_requested):
        wide = tf.float64 if config.network.precision == "float64" else tf.float32
        metrics = {name: tf.TensorArray(wide, size, element_shape=()) for name in METRICS}
        finite = tf.TensorArray(tf.bool, size, element_shape=())
        waits = tf.TensorArray(tf.float64, size, element_shape=())
        done, stopping = 0, False
        with strategy.scope():
            for index in tf.range(num_steps):
                step = first_step + tf.cast(index, tf.int64)
                batch, waited = timed_next(iterator, config.general.deterministic)
                report = train_step(strategy, state, config, batch, step, learning_rates[index], stop_requested)
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
