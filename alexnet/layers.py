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


@keras.saving.register_keras_serializable("alexnet")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the examples of all replicas (Ioffe and Szegedy, 2015), with TensorFlow's fused kernel.

    Arguments and result are those of Keras's layer with `synchronized=True`. Keras writes it as a dozen operations in float32,
    each of which goes through memory: forward and backward of bfloat16 [1024, 15, 15, 64] took 71 ms with them and 10 ms with
    the fused kernel (2 CPU cores). The kernel knows no other replicas and no float64; then, in training, Keras's form is used.
    """

    def __init__(self, synchronized=True, **kwargs):
        super().__init__(synchronized=synchronized, **kwargs)

    def call(self, inputs, training=None, mask=None):
        training = bool(training) and self.trainable
        replica = tf.distribute.get_replica_context()
        is_alone = replica is not None and replica.num_replicas_in_sync == 1
        is_map = inputs.shape.rank == 4 and self.axis in (-1, 3)
        if inputs.dtype == tf.float64 or not is_map or (training and not is_alone):
            return super().call(inputs, training=training, mask=mask)
        gamma, beta = (
            variable.value if variable is not None else tf.fill(self.moving_mean.shape, default)
            for variable, default in ((self.gamma, 1.0), (self.beta, 0.0)))
        empty = tf.zeros([0])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, epsilon=self.epsilon, is_training=training,
            mean=empty if training else self.moving_mean.value, variance=empty if training else self.moving_variance.value)
        if training:
            count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            biased = variance * ((count - 1) / count)  # the kernel divides by count - 1, Keras by count
            for moving, value in ((self.moving_mean, mean), (self.moving_variance, biased)):
                moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs


_GELU_RATE, _GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def _gelu(inputs):
    x = inputs if inputs.dtype == tf.float64 else tf.cast(inputs, tf.float32)
    return tf.cast(0.5 * x * (1 + tf.tanh(_GELU_RATE * (x + _GELU_CUBE * x**3))), inputs.dtype)


def _gelu_gradient(inputs, gradient):
    x = tf.cast(inputs, tf.float32)
    tanh = tf.tanh(_GELU_RATE * (x + _GELU_CUBE * x**3))
    slope = 0.5 * (1 + tanh) + 0.5 * _GELU_RATE * x * (1 - tanh**2) * (1 + 3 * _GELU_CUBE * x**2)
    return tf.cast(slope * tf.cast(gradient, tf.float32), inputs.dtype)


@tf.custom_gradient
def _compiled_gelu(inputs):
    forward, backward = (tf.function(function, jit_compile=True) for function in (_gelu, _gelu_gradient))
    return forward(inputs), lambda gradient: backward(inputs, gradient)


@keras.saving.register_keras_serializable("alexnet")
class Gelu(keras.layers.Layer):
    """GELU in its tanh form: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Hendrycks and Gimpel, 2016, section 2).

    Input and output: any shape, any floating dtype. TensorFlow has no fused kernel for it, and its many operations each go
    through memory. So in training on a CPU, XLA compiles this one function and its gradient: bfloat16 [1024, 15, 15, 64] took
    19 ms instead of 60 ms (2 cores). Inputs with fewer than 32 bits are computed in float32.
    """

    def call(self, inputs, training=False):
        if training and inputs.dtype != tf.float64 and not tf.config.list_logical_devices("GPU"):
            return _compiled_gelu(inputs)
        return _gelu(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("alexnet")
class Scale(keras.layers.Layer):
    """Multiplies by a constant `factor`. Keras's Rescaling rounds it to float32, in a float64 network too."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


@keras.saving.register_keras_serializable("alexnet")
class PatchWhitening(keras.layers.Layer):
    """A frozen first convolution whose outputs, over the patches of the training images, are uncorrelated with variance 1.

    Its filters are the principal components of patches of size x size pixels, each divided by the root of its variance plus
    `EPSILON`, and their negatives, so that an activation that cuts off negative values loses nothing. Only the bias is trained.
    Airbench (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.2), after Page's "myrtle.ai" ResNet.

    [B, height, width, c] -> [B, height, width, 2 size^2 c], without padding size - 1 pixels smaller. Before `fit`, the components
    are the single pixels.
    """

    EPSILON = 5e-4

    def __init__(self, size=2, padding="valid", **kwargs):
        super().__init__(**kwargs)
        self.size, self.padding = size, padding

    def build(self, input_shape):
        """Creates the filters and the bias."""
        self._shape = (self.size, self.size, input_shape[-1])
        numbers = math.prod(self._shape)
        self.kernel = self.add_weight(
            shape=(*self._shape, 2 * numbers), trainable=False, name="kernel",
            initializer=lambda shape, dtype: tf.constant(self._filters(np.eye(numbers)), dtype))
        self.bias = self.add_weight(shape=(2 * numbers,), initializer="zeros", name="bias")

    def fit(self, covariance):
        """Sets the filters from the covariance of flattened patches (row, column, channel), float64 [size^2 c, size^2 c]."""
        self.kernel.assign(self._filters(covariance))

    def _filters(self, covariance):
        variances, components = np.linalg.eigh(covariance)  # column i is component i; the largest variance comes last
        signs = np.sign(components[np.argmax(np.abs(components), axis=0), range(len(variances))])
        filters = (components * signs / np.sqrt(np.maximum(variances, 0) + self.EPSILON))[:, ::-1]
        return np.concatenate([filters, -filters], axis=1).reshape(*self._shape, -1)

    def call(self, inputs):
        outputs = tf.nn.convolution(inputs, tf.convert_to_tensor(self.kernel), padding=self.padding.upper())
        return tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))

    def compute_output_shape(self, input_shape):
        less = self.size - 1 if self.padding == "valid" else 0
        height, width = (None if side is None else side - less for side in input_shape[1:3])
        if any(side is not None and side < 1 for side in (height, width)):
            raise ValueError(f"the image is smaller than a patch of {self.size}x{self.size}")
        return (input_shape[0], height, width, 2 * self.size**2 * input_shape[3])

    def get_config(self):
        return super().get_config() | {"size": self.size, "padding": self.padding}


@keras.saving.register_keras_serializable("alexnet")
class Dirac(keras.initializers.Initializer):
    """The kernel of a convolution that begins as the identity on its input: output channel i is input channel i.

    Further output channels, if there are more, begin like those of the initializer `rest`. With groups, this holds in each group.
    Zagoruyko and Komodakis, "DiracNets", and airbench (Jordan, 2024, section 3.3).
    """

    def __init__(self, rest, groups=1):
        self.rest, self.groups = rest, groups

    def __call__(self, shape, dtype=None):
        kernel = np.array(self.rest(shape, dtype))
        height, width, inputs, outputs = shape
        for first in range(0, outputs, outputs // self.groups):
            for channel in range(min(inputs, outputs // self.groups)):
                kernel[..., first + channel] = 0
                kernel[height // 2, width // 2, channel, first + channel] = 1
        return tf.constant(kernel, dtype)

    def get_config(self):
        return {"rest": keras.initializers.serialize(self.rest), "groups": self.groups}

    @classmethod
    def from_config(cls, config):
        return cls(keras.initializers.deserialize(config["rest"]), config["groups"])


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
