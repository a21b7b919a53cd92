"""Update rules and the loss scale.

The update rules are Keras optimizers, of which the loop only uses the slots and `update_step`. Clipping, weight decay and
averages are plain lines in `steps.py`. To add a rule, add a function to UPDATE_RULES and its name to the choices of --optimizer.
"""

import keras
import tensorflow as tf


class SGD(keras.optimizers.SGD):
    """Momentum as in the paper (section 5), v <- momentum * v - rate * gradient; w <- w + v, or in Nesterov's form.

    It uses one fused kernel per weight. Keras writes the rule as several operations, each of which goes through memory once more,
    and networks with large dense layers feel that. Adam's fused kernel is not used: it rounds in another order than Keras's Adam,
    and the two differ visibly within five float32 steps.
    """

    def update_step(self, gradient, variable, learning_rate, made):
        """Changes one weight and its slot if `made`, a bool scalar. Call it where tf.distribute updates variables.

        If it is not made, the gradient may be anything, and `learning_rate` is 0.
        """
        rate, gradient = tf.cast(learning_rate, variable.dtype), _finite(made, gradient, variable.value())
        if self.momentum == 0:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        # The kernel computes v <- momentum * v + grad; w <- w - lr * v. ResourceApplyKerasMomentum, which multiplies by the rate
        # itself, has no arguments that leave both as they are.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle, accum=velocity.handle, lr=_chosen(made, -1, 0, rate.dtype), grad=-rate * gradient,
            momentum=_chosen(made, self.momentum, 1, rate.dtype), use_nesterov=self.nesterov,
        )


class Adam(keras.optimizers.Adam):
    """Keras's Adam (Kingma and Ba, section 2, with its efficient order of operations), which can leave everything as it is."""

    def update_step(self, gradient, variable, learning_rate, made):
        """Changes one weight and its two slots if `made`."""
        rate, step = (tf.cast(value, variable.dtype) for value in (learning_rate, self.iterations.value + 1))
        # Cast, not constant: Keras's powers are those of the float32 number next to beta, in float64 too.
        bias_1, bias_2 = (1 - tf.pow(tf.cast(beta, rate.dtype), step) for beta in (self.beta_1, self.beta_2))
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index].value, self._velocities[index].value
        gradient = _finite(made, gradient, mean.value())  # whose squares are finite, because those of all gradients were
        mean.assign_add((gradient - mean) * _chosen(made, 1 - self.beta_1, 0, rate.dtype))
        square.assign_add((tf.square(gradient) - square) * _chosen(made, 1 - self.beta_2, 0, rate.dtype))
        variable.assign_sub(mean * (rate * tf.sqrt(bias_2) / bias_1) / (tf.sqrt(square) + self.epsilon))


class AdamW(Adam):
    """Adam, with a weight decay that `steps.apply_update` subtracts from the weight instead of adding it to the gradient."""

    decoupled_weight_decay = True


def guarded(rule):
    """A class like the Keras optimizer `rule`, whose `update_step` leaves a weight and its slots as they are unless `made`.

    For rules that you add: it keeps the old values until the new ones are there, so it goes through memory more often.
    """

    class Guarded(rule):
        def update_step(self, gradient, variable, learning_rate, made):
            index, count = self._get_variable_index(variable), len(self._trainable_variables)
            lists = [values for values in vars(self).values() if isinstance(values, list) and len(values) == count]
            slots = [values[index].value for values in lists if values is not self._trainable_variables]
            before = [tf.identity(value) for value in (variable, *slots)]
            super().update_step(gradient, variable, learning_rate)
            for value, old in zip((variable, *slots), before, strict=True):
                value.assign(tf.where(made, value, old))

    return Guarded


def _finite(made, gradient, other):
    """The gradient if `made`, else `other`, of which only matters that it is finite. On a CPU, this op copies neither of them."""
    return tf.raw_ops.Select(condition=made, x=gradient, y=other)


def _chosen(made, one, other, dtype):
    """The first of two numbers if `made`, else the second; a scalar tensor."""
    return tf.where(made, tf.constant(one, dtype), tf.constant(other, dtype))


# {--optimizer: makes its Keras optimizer from an OptimizerConfig}. The name becomes part of the names in a checkpoint.
UPDATE_RULES = {
    "sgd": lambda config: SGD(config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, name="sgd"),
    "adam": lambda config: Adam(config.learning_rate, name="adam"),
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
      good_steps: int64 variable, the finite steps since the factor last changed.
    """

    START, FLOOR, CEILING = 2.0**15, 1.0, 2.0**24
    STEPS_TO_DOUBLE = 2000

    def __init__(self):
        self.value = tf.Variable(self.START, trainable=False, name="loss_scale")
        self.good_steps = tf.Variable(0, trainable=False, name="good_steps", dtype=tf.int64)

    def can_fall(self):
        """Whether the factor is above its floor, so that a lower one can still be tried."""
        return self.value > self.FLOOR

    def update(self, finite, going=True):
        """Adapts the factor to whether a step was finite; not if the run is not `going` any more.

        Call it in the cross-replica context, with one answer for all.
        """
        good_steps = tf.where(finite, self.good_steps + 1, tf.zeros_like(self.good_steps))
        grown = good_steps >= self.STEPS_TO_DOUBLE
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        self.value.assign(tf.where(going, tf.clip_by_value(self.value * factor, self.FLOOR, self.CEILING), self.value))
        self.good_steps.assign(tf.where(going, tf.where(grown, tf.zeros_like(good_steps), good_steps), self.good_steps))
