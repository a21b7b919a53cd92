"""Update rules and the loss scale.

The update rules are Keras optimizers, of which the loop only uses the slots and `update_step`. Clipping, weight decay and
averages are plain lines in `steps.py`. To add a rule, add a function to UPDATE_RULES and its name to the choices of --optimizer.
"""

import keras
import tensorflow as tf


class SGD(keras.optimizers.SGD):
    """Momentum as in the paper (section 5), v <- momentum * v - rate * gradient; w <- w + v, or in Nesterov's form.

    It uses one fused kernel per weight. Keras writes the rule as several operations, each of which goes through memory once more,
    and networks with large dense layers feel that: a step of `alexnet_mini` with batch 128 took 182 ms with Keras's own SGD and
    171 ms with this one (2 CPU cores, median of 7 interleaved rounds). Adam's fused kernel is not used: it rounds in another
    order than Keras's Adam, and the two differ visibly within five float32 steps.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Changes one weight and its slot. Call it where tf.distribute updates variables."""
        rate = tf.cast(learning_rate, variable.dtype)
        if self.momentum == 0:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle, accum=velocity.handle, lr=rate, grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype), use_nesterov=self.nesterov,
        )


class AdamW(keras.optimizers.Adam):
    """Adam, with a weight decay that `steps.apply_update` subtracts from the weight instead of adding it to the gradient."""

    decoupled_weight_decay = True


# {--optimizer: makes its Keras optimizer from an OptimizerConfig}. The name becomes part of the names in a checkpoint.
UPDATE_RULES = {
    "sgd": lambda config: SGD(config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, name="sgd"),
    "adam": lambda config: keras.optimizers.Adam(config.learning_rate, name="adam"),
    "adamw": lambda config: AdamW(config.learning_rate, name="adamw"),
}


def make_optimizers(config, weights):
    """A built optimizer for each weight of a list. Weights may share one; here all of them do."""
    optimizer = UPDATE_RULES[config.optimizer](config)
    optimizer.build(weights)
    return [optimizer] * len(weights)


def normalization_biases(model):
    """The paths of the biases of a network's normalization layers, whose learning rate --bias_rate multiplies."""
    kinds = keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.GroupNormalization
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]
    return {layer.beta.path for layer in layers if layer.beta is not None}


class LossScale:
    """The factor that keeps float16 gradients, many of which lie below its smallest number, from becoming zero.

    It doubles after 2,000 finite steps in a row and halves after one that is not finite, between 1 and 2**24. Powers of two make
    multiplying by it and dividing by it exact. Create it inside the strategy's scope.

    Attributes:
      value: float32 variable, the factor.
      good_steps: int32 variable, the finite steps since the factor last changed.
    """

    START, FLOOR, CEILING = 2.0**15, 1.0, 2.0**24
    STEPS_TO_DOUBLE = 2000

    def __init__(self):
        self.value = tf.Variable(self.START, trainable=False, name="loss_scale")
        self.good_steps = tf.Variable(0, trainable=False, name="good_steps")

    def can_fall(self):
        """Whether the factor is above its floor, so that a lower one can still be tried."""
        return self.value > self.FLOOR

    def update(self, finite):
        """Adapts the factor to whether a step was finite. Call it in the cross-replica context, with one answer for all."""
        good_steps = tf.where(finite, self.good_steps + 1, 0)
        grown = good_steps >= self.STEPS_TO_DOUBLE
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        self.value.assign(tf.clip_by_value(self.value * factor, self.FLOOR, self.CEILING))
        self.good_steps.assign(tf.where(grown, 0, good_steps))
