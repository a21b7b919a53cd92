"""Layers and an initializer that came after the paper: the ingredients of fast recipes of the 2020s. See docs/ladder.md."""

import math

import keras
import numpy as np
import tensorflow as tf


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
