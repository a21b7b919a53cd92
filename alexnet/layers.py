"""Layers that Keras lacks, or whose Keras version does not work on several replicas, and the random numbers behind them."""

import contextlib
import contextvars
import math

import keras
import numpy as np
import tensorflow as tf

_LAYER_BITS = 16  # bits of the Philox counter that hold a layer's index
_NUMBERS_PER_COUNT = 4  # Philox makes four 32-bit numbers from one value of its counter
_PHILOX = 1  # TensorFlow's code for the algorithm


def layer_seed(seed, number):
    """The seed, an int, of the initial weights of layer `number` in a network with this seed."""
    # A hash, not seed + number: else layer 2 with one seed would start like layer 1 with the next seed.
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def example_integers(seed, stream, first_example, batch_size, numbers):
    """Random integers, uniform in [0, 2**32): `numbers` of them for each example of a part of the global batch.

    Row i is a pure function of (seed, stream, first_example + i), with and without XLA. So an example gets the same numbers
    however the batch is divided among replicas or into parts. All parts must ask for the same `numbers`.

    Returns uint32 [batch_size, numbers], where `numbers` is an int and the other arguments may be integer scalar tensors too.
    Different streams, 0 <= stream < 2**63, have different numbers. `first_example` is the position of the first row in the global
    batch. A `seed` that is an int is taken modulo 2**64.
    """
    # Each example gets a whole number of counter values, so that any row can be drawn without those before it.
    counts = math.ceil(numbers / _NUMBERS_PER_COUNT)
    # The counter has 128 bits. Its low word counts through the batch, its high word is the stream.
    counter = tf.stack([tf.cast(first_example, tf.int64) * counts, tf.cast(stream, tf.int64)])
    key = tf.constant(seed % 2**64, tf.uint64) if isinstance(seed, int) else tf.cast(seed, tf.uint64)
    # Draw integers, not floats: TensorFlow's kernels make floats from the lower bits of these integers, XLA from the upper
    # bits. Masks made from floats would depend on the compiler. (Measured with TensorFlow 2.21 on CPU.)
    integers = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[batch_size, counts * _NUMBERS_PER_COUNT], key=key[tf.newaxis], counter=tf.cast(counter, tf.uint64),
        alg=_PHILOX, dtype=tf.uint32)
    return integers[:, :numbers]


@keras.saving.register_keras_serializable("alexnet")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides each activation by a function of the activations in neighbouring channels (paper, section 3.3).

        y[c] = x[c] / (bias + alpha * sum of x[j]**2 over |j - c| <= depth_radius) ** beta

    The defaults are the paper's: k = 2, n = 5 = 2 * depth_radius + 1, alpha = 1e-4, beta = 0.75. As in the paper, alpha is
    not divided by n. Input and output: [batch, height, width, channels], any floating dtype. Inputs with fewer than 32 bits
    are computed in float32.
    """

    def __init__(self, depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75, **kwargs):
        super().__init__(**kwargs)
        self.depth_radius, self.bias, self.alpha, self.beta = depth_radius, bias, alpha, beta

    def call(self, inputs):
        if inputs.dtype == tf.float64:
            channels, radius = inputs.shape[-1], self.depth_radius
            padded = tf.pad(tf.square(inputs), [[0, 0], [0, 0], [0, 0], [radius, radius]])
            sums = tf.add_n([padded[..., offset : offset + channels] for offset in range(2 * radius + 1)])
            return inputs * tf.pow(self.bias + self.alpha * sums, -self.beta)
        # tf.nn.lrn has no float64 kernel, and its only GPU kernel is float32. The formula above works for every dtype, but
        # takes 4 to 9 times as long (forward and backward, [16, 55, 55, 96], 2 CPU cores).
        outputs = tf.nn.lrn(tf.cast(inputs, tf.float32), self.depth_radius, self.bias, self.alpha, self.beta)
        return tf.cast(outputs, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {"depth_radius": self.depth_radius, "bias": self.bias, "alpha": self.alpha, "beta": self.beta}
        return super().get_config() | own


@keras.saving.register_keras_serializable("alexnet")
class GroupedConv2D(keras.layers.Conv2D):
    """A `keras.layers.Conv2D` that runs each of its `groups` as a convolution of its own: the paper's towers, section 3.2.

    Arguments, kernel shape and result are those of Keras's layer. The only difference is that it does not use TensorFlow's
    grouped convolution, which has no gradient on CPUs without oneDNN. Keras works around that with XLA, which takes 8 to 15
    times as long as this layer (conv 2 of the paper, batch 16, forward and backward, 2 CPU cores).
    """

    def convolution_op(self, inputs, kernel):
        channel_axis = -1 if self.data_format == "channels_last" else 1
        input_parts = tf.split(inputs, self.groups, axis=channel_axis)
        kernel_parts = tf.split(kernel, self.groups, axis=-1)
        convolve = super().convolution_op
        return tf.concat([convolve(*parts) for parts in zip(input_parts, kernel_parts, strict=True)], channel_axis)


# The arguments of `dropout_masks`. Not a plain global, because MirroredStrategy runs each replica in its own thread.
_mask_source = contextvars.ContextVar("alexnet_dropout_mask_source", default=None)


@contextlib.contextmanager
def dropout_masks(seed, step, first_example=0):
    """In this context, each `Dropout` draws masks that are a pure function of (seed, step, layer_index, example).

    So an example has the same mask however the global batch is divided among replicas or into parts. Nothing has to be
    saved for a resume, because no generator has a state. Enter the context where the model is called: inside the traced
    function and, under a strategy, inside the replica function:

        with dropout_masks(seed, step, first_example=replica_id * replica_batch_size):
            logits = model(images, training=True)

    `first_example` is the position in the global batch of the model's first example. All three may be ints or integer scalar
    tensors; 0 <= step < 2**48, and a `seed` that is an int is taken modulo 2**64.
    """
    token = _mask_source.set((seed, step, first_example))
    try:
        yield
    finally:
        _mask_source.reset(token)


@keras.saving.register_keras_serializable("alexnet")
class Dropout(keras.layers.Dropout):
    """Sets units to 0 with probability `rate` in training (paper, section 4.2), with reproducible masks.

    Inside `dropout_masks`, the mask of an example is a pure function of (seed, step, layer_index, example). It is the same
    under every precision, with and without XLA. Outside `dropout_masks`, this layer is Keras's Dropout, for `model.fit` and
    notebooks; all replicas of a MirroredStrategy then draw the same masks.

    Departure from the paper, which halves the outputs at test time: this layer multiplies the units that it keeps by
    1 / (1 - rate) in training, and does nothing at test time. The expected value is the same.

    The ranges are 0 <= rate < 1 and 0 <= layer_index < 2**16; each dropout layer of a network needs a different `layer_index`.
    `noise_shape` is Keras's: None, or (None, ...) with 1 for axes along which units share one mask. `seed` is for masks outside
    `dropout_masks`.
    """

    def __init__(self, rate, layer_index, noise_shape=None, seed=0, **kwargs):
        if not 0 <= rate < 1:
            raise ValueError(f"dropout rate {rate}: give a number that is at least 0 and below 1")
        if not 0 <= layer_index < 2**_LAYER_BITS:
            raise ValueError(f"dropout layer_index {layer_index}: give 0 to {2**_LAYER_BITS - 1}")
        if noise_shape is not None and noise_shape[0] is not None:
            raise ValueError(f"dropout noise_shape {noise_shape}: start it with None, so that each example has its own mask")
        super().__init__(rate, noise_shape, seed, **kwargs)
        self.layer_index = layer_index

    def call(self, inputs, training=False):
        """Drops units of `inputs`, floating [batch, ...]. All dimensions except the batch must be known."""
        source = _mask_source.get()
        if source is None or not training or self.rate == 0:
            return super().call(inputs, training=training)
        seed, step, first_example = source
        batch_size, noise_shape = tf.shape(inputs)[0], self.noise_shape or (None,) * inputs.shape.rank
        mask_shape = [size or inputs.shape[axis] for axis, size in enumerate(noise_shape)][1:]
        stream = tf.cast(step, tf.int64) * 2**_LAYER_BITS + self.layer_index
        numbers = example_integers(seed, stream, first_example, batch_size, math.prod(mask_shape))
        # Compare in float32 under every precision, so that a float64 run has the same masks as a float32 run.
        kept = tf.cast(numbers, tf.float32) >= self.rate * 2.0**32
        # Choose with `where` instead of multiplying by the mask, because 0 times infinity would be NaN.
        scaled = inputs * (1 / (1 - self.rate))
        return tf.where(tf.reshape(kept, [batch_size, *mask_shape]), scaled, tf.zeros_like(scaled))

    def get_config(self):
        return super().get_config() | {"layer_index": self.layer_index}


@keras.saving.register_keras_serializable("alexnet")
class PaddedShortcut(keras.layers.Layer):
    """Shortcut without parameters: option A of He et al. (2015, section 3.3).

    Keeps every second row and column, and appends as many channels of zeros as there are channels:
    [B, height, width, c] -> [B, height / 2 rounded up, width / 2 rounded up, 2 c].
    """

    def call(self, inputs):
        return tf.pad(inputs[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], [0, inputs.shape[-1]]])
