"""The factor that keeps float16's gradients, of which many lie below its smallest number, from becoming zero."""

import tensorflow as tf

START = 2.0**15
FLOOR, CEILING = 1.0, 2.0**24
STEPS_TO_DOUBLE = 2000


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
