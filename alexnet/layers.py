"""The layers that AlexNet needs and Keras lacks, or has in a form that does not fit several replicas."""

import contextlib
import contextvars
import math
import typing

import keras
import tensorflow as tf

from alexnet.draws import example_integers


@keras.saving.register_keras_serializable("alexnet")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides each activation by a measure of those in nearby channels, same place (paper, section 3.3).

        y[c] = x[c] / (bias + alpha * sum of x[j]**2 over |j - c| <= depth_radius) ** beta

    The defaults are the paper's: k = 2, n = 5 = 2 * depth_radius + 1, alpha = 1e-4, beta = 0.75. As there,
    alpha is not divided by n. In and out: [batch, height, width, channels], any floating dtype. It computes
    in float32 where the input has fewer bits.
    """

    def __init__(self, depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75, **kwargs):
        super().__init__(**kwargs)
        self.depth_radius, self.bias, self.alpha, self.beta = depth_radius, bias, alpha, beta

    def call(self, inputs):
        if inputs.dtype == tf.float64:
            return inputs * tf.pow(self.bias + self.alpha * self._sum_of_squares(inputs), -self.beta)
        # tf.nn.lrn has no float64 kernel, and on GPUs a float32 kernel only. The formula above would do for
        # every dtype, but takes 4 to 9 times as long (forward and backward, [16, 55, 55, 96], 2 CPU cores).
        outputs = tf.nn.lrn(tf.cast(inputs, tf.float32), self.depth_radius, self.bias, self.alpha, self.beta)
        return tf.cast(outputs, inputs.dtype)

    def _sum_of_squares(self, inputs):
        channels, width = inputs.shape[-1], 2 * self.depth_radius + 1
        padded = tf.pad(tf.square(inputs), [[0, 0], [0, 0], [0, 0], [self.depth_radius, self.depth_radius]])
        return tf.add_n([padded[..., offset : offset + channels] for offset in range(width)])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {"depth_radius": self.depth_radius, "bias": self.bias, "alpha": self.alpha, "beta": self.beta}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("alexnet")
class GroupedConv2D(keras.layers.Conv2D):
    """A `keras.layers.Conv2D` that convolves each of its `groups` by itself: the paper's towers, section 3.2.

    Arguments, kernel shape and result are those of Keras's layer. The one difference is that no grouped
    kernel is called: TensorFlow's has no gradient on CPU without oneDNN, so Keras goes through XLA there, and
    that takes 8 to 15 times as long (conv 2 of the paper, batch 16, forward and backward, 2 CPU cores).
    """

    def convolution_op(self, inputs, kernel):
        channel_axis = -1 if self.data_format == "channels_last" else 1
        input_parts = tf.split(inputs, self.groups, axis=channel_axis)
        kernel_parts = tf.split(kernel, self.groups, axis=-1)
        convolve = super().convolution_op
        outputs = [convolve(*parts) for parts in zip(input_parts, kernel_parts, strict=True)]
        return tf.concat(outputs, channel_axis)


class _MaskSource(typing.NamedTuple):
    """What the masks of one batch depend on, beside the layer: each an int or an integer scalar tensor."""

    seed: int | tf.Tensor
    step: int | tf.Tensor
    first_example: int | tf.Tensor


# A context variable, not a global: MirroredStrategy runs each replica in a thread of its own.
_mask_source = contextvars.ContextVar("alexnet_dropout_mask_source", default=None)


@contextlib.contextmanager
def dropout_masks(seed, step, first_example=0):
    """Inside, each `Dropout` draws masks that are a pure function of (seed, step, its layer_index, example).

    An example then has the same mask however the global batch is shared out over replicas or summed up in
    parts, and after a resume: there is no generator whose state could be lost. Enter it where the model is
    called, inside the function that is traced and, under a strategy, inside the replica function:

        with dropout_masks(seed, step, first_example=replica_id * replica_batch_size):
            logits = model(images, training=True)

    Args:
      seed: int or integer scalar tensor; ints count modulo 2**64.
      step: int or integer scalar tensor, 0 <= step < 2**48.
      first_example: position in the global batch of the model's first example; int or integer scalar tensor.
    """
    token = _mask_source.set(_MaskSource(seed, step, first_example))
    try:
        yield
    finally:
        _mask_source.reset(token)


_LAYER_BITS = 16


def _kept(source, layer_index, batch_size, features, rate):
    """bool [batch_size, features]: row i is a pure function of (source, layer_index, first_example + i)."""
    stream = tf.cast(source.step, tf.int64) * 2**_LAYER_BITS + layer_index
    numbers = example_integers(source.seed, stream, source.first_example, batch_size, features)
    # float32 under every precision: float64 runs, which prove equalities, have the masks of float32 runs.
    return tf.cast(numbers, tf.float32) >= rate * 2.0**32


@keras.saving.register_keras_serializable("alexnet")
class Dropout(keras.layers.Dropout):
    """Sets units to 0 with probability `rate` in training (paper, section 4.2), by masks that come again.

    Inside `dropout_masks` the mask of an example is a pure function of (seed, step, layer_index, example),
    the same under every precision, with and without XLA. Outside it the layer is Keras's own Dropout, for
    `model.fit` and notebooks; there, all replicas of a MirroredStrategy draw the same masks.

    Departure from the paper, which halves the outputs at test time: the units that are kept are multiplied by
    1 / (1 - rate) in training and nothing is done at test time. The expected value is the same.

    Args:
      rate: probability of a 0, 0 <= rate < 1.
      layer_index: int, 0 <= layer_index < 2**16, different for each dropout of a network.
      noise_shape: of the mask, as in Keras: None, or (None, ...) with 1 where units are dropped together.
      seed: int, of the masks outside `dropout_masks`.

    Raises:
      ValueError: an argument outside its range.
    """

    def __init__(self, rate, layer_index, noise_shape=None, seed=0, **kwargs):
        if not 0 <= rate < 1:
            raise ValueError(f"dropout rate {rate}: give a number that is at least 0 and below 1")
        if not 0 <= layer_index < 2**_LAYER_BITS:
            raise ValueError(f"dropout layer_index {layer_index}: give 0 to {2**_LAYER_BITS - 1}")
        if noise_shape is not None and noise_shape[0] is not None:
            raise ValueError(f"dropout noise_shape {noise_shape}: begin it with None, for a mask per example")
        super().__init__(rate, noise_shape, seed, **kwargs)
        self.layer_index = layer_index

    def call(self, inputs, training=False):
        """Drops units of `inputs`, floating [batch, ...], all dimensions but the batch known."""
        source = _mask_source.get()
        if source is None or not training or self.rate == 0:
            return super().call(inputs, training=training)
        batch_size, noise_shape = tf.shape(inputs)[0], self.noise_shape or (None,) * inputs.shape.rank
        mask_shape = [size or inputs.shape[axis] for axis, size in enumerate(noise_shape)][1:]
        kept = _kept(source, self.layer_index, batch_size, math.prod(mask_shape), self.rate)
        # Not a product with the mask: 0 times infinity would be NaN.
        scaled = inputs * (1 / (1 - self.rate))
        return tf.where(tf.reshape(kept, [batch_size, *mask_shape]), scaled, tf.zeros_like(scaled))

    def get_config(self):
        return {**super().get_config(), "layer_index": self.layer_index}


@keras.saving.register_keras_serializable("alexnet")
class PaddedShortcut(keras.layers.Layer):
    """Option A of the shortcuts of He et al. (2015, section 3.3), without parameters.

    Every second row and column, and as many channels of zeros again: [B, height, width, c] ->
    [B, height / 2 rounded up, width / 2 rounded up, 2 c].
    """

    def call(self, inputs):
        return tf.pad(inputs[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], [0, inputs.shape[-1]]])
