"""The update rules: Keras optimizers, of which only the slots and `update_step` are used. All else is done in `steps`."""

import keras
import tensorflow as tf

START = 2.0**15  # of a loss scale
FLOOR, CEILING = 1.0, 2.0**24
STEPS_TO_DOUBLE = 2000


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


class LossScale:
    """Doubles after 2,000 finite steps in a row and halves after one that is not, between 1 and 2**24.

    Make it in the strategy's scope. Powers of two, so that multiplying by it and dividing by it again rounds nothing.

    Attributes:
      value: float32 variable, the factor.
      good_steps: int32 variable, finite steps since it last changed.
    """

    def __init__(self):
        self.value = tf.Variable(START, trainable=False, name="loss_scale")
        self.good_steps = tf.Variable(0, trainable=False, name="good_steps")

    def can_fall(self):
        """Whether it stands above its floor; below it nothing is left to try."""
        return self.value > FLOOR

    def update(self, finite):
        """Takes what became of a step, in the cross-replica context; `finite` must be the same on every replica."""
        good_steps = tf.where(finite, self.good_steps + 1, 0)
        grown = good_steps >= STEPS_TO_DOUBLE
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        self.value.assign(tf.clip_by_value(self.value * factor, FLOOR, CEILING))
        self.good_steps.assign(tf.where(grown, 0, good_steps))
