"""The network of the paper (section 3), and two smaller versions of it for 32x32 images.

Each network is a function that returns a list of layers. `build` chains them into a functional or a Sequential model.
Layers have the numbers that they have in the paper. The networks accept any image that is large enough for their pooling.
The comment after each layer is its output shape at the image size that the network was designed for; B is the batch size.

Departures from the paper:
- all three: dropout scales activations in training instead of at test time (see `layers.Dropout`);
- all three: images arrive scaled (`--pixels`). The paper only subtracts the mean from raw pixels (section 2);
- `alexnet`: an 11x11 convolution with stride 4 does not turn 224x224 pixels into the 55x55 map of section 3.5. So images
  are padded with zeros: 1 pixel above and on the left, 2 pixels below and on the right;
- the two smaller versions: filter sizes and counts, initial weights, and no response normalization by default.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras

from alexnet.later_layers import BatchNormalization, Dirac, Gelu, PatchWhitening, Scale
from alexnet.layers import Dropout, GroupedConv2D, LocalResponseNormalization, layer_seed


@dataclasses.dataclass(frozen=True)
class LayerMaker:
    """Makes the layers of one network, with the settings that they share."""

    policy: str  # Keras dtype policy of all layers except the last
    seed: int  # of the network's initial weights; each layer derives its own seed from it
    initializer: Callable  # makes the initializer of a kernel; takes `seed=...`
    lrn: bool = False  # whether the network has response normalization
    overlapping_pooling: bool = False  # pools 3x3 windows with stride 2 (paper, section 3.4), else 2x2 windows with stride 2
    pool_padding: str = "valid"  # padding of the 3x3 pools, "valid" or "same"
    width: float = 1.0  # factor on the number of filters of every convolution
    # What came after the paper.
    norm: str = "none"  # "batch": batch normalization after each convolution, which then has no bias of its own
    norm_scale: bool = True  # whether batch normalization has a trained scale besides its trained bias
    norm_momentum: float = 0.9  # of the old value in the moving statistics of batch normalization
    norm_epsilon: float = 1e-5
    activation: str = "relu"  # or "gelu"
    whiten: bool = False  # whether a layer that whitens patches of 2x2 pixels comes first
    dirac: bool = False  # whether convolutions begin as the identity on their first channels
    logit_scale: float = 1.0  # what the logits are multiplied by

    def _weights(self, number, bias=0.0):
        kernel = self.initializer(seed=layer_seed(self.seed, number))
        return {"kernel_initializer": kernel, "bias_initializer": keras.initializers.Constant(bias)}

    def whitening(self, padding="same"):
        """A list: the layer that whitens patches and its activation, empty if the network has none."""
        layer = PatchWhitening(2, padding, dtype=self.policy, name="whiten")
        return [layer, *self._activation("whiten")] if self.whiten else []

    def conv(self, number, filters, size, *, strides=1, padding="same", groups=1, bias=0.0, pool=()):
        """A list: a convolution, perhaps layers that pool its maps, batch normalization if the network has it, the activation."""
        kind = keras.layers.Conv2D if groups == 1 else functools.partial(GroupedConv2D, groups=groups)
        weights, normalized = self._weights(number, bias), self.norm == "batch"
        if self.dirac:
            weights["kernel_initializer"] = Dirac(weights["kernel_initializer"], groups)
        filters = max(1, round(self.width * filters))
        activation = "relu" if self.activation == "relu" and not pool and not normalized else None
        layers = [kind(filters, size, strides, padding, activation=activation, use_bias=not normalized, dtype=self.policy,
                       name=f"conv{number}", **weights), *pool]
        if normalized:
            layers.append(BatchNormalization(
                momentum=self.norm_momentum, epsilon=self.norm_epsilon, scale=self.norm_scale, dtype=self.policy,
                beta_initializer=weights["bias_initializer"], name=f"conv{number}_norm"))
        return layers if activation else layers + self._activation(f"conv{number}")

    def _activation(self, name):
        kind = keras.layers.ReLU if self.activation == "relu" else Gelu
        return [kind(dtype=self.policy, name=f"{name}_{self.activation}")]

    def response_norm(self, number):
        """A list with the response normalization, empty if the network has none."""
        return [LocalResponseNormalization(dtype=self.policy, name=f"norm{number}")] if self.lrn else []

    def pool(self, number):
        """Max pooling that halves height and width. Both kinds have the output shapes in the comments below."""
        size, padding = (3, self.pool_padding) if self.overlapping_pooling else (2, "valid")
        return keras.layers.MaxPooling2D(size, 2, padding, dtype=self.policy, name=f"pool{number}")

    def flatten(self):
        """[B, height, width, channels] -> [B, height * width * channels]."""
        return keras.layers.Flatten(dtype=self.policy, name="flatten")

    def dense(self, number, units, *, active=True, bias=0.0):
        """A list: a hidden dense layer and its activation; without the activation if not `active`."""
        inside = "relu" if active and self.activation == "relu" else None
        layer = keras.layers.Dense(
            units, activation=inside, dtype=self.policy, name=f"dense{number}", **self._weights(number, bias))
        return [layer] if inside or not active else [layer, *self._activation(f"dense{number}")]

    def dropout(self, number, rate):
        """Dropout after the dense layer with the same number."""
        return Dropout(rate, number, seed=layer_seed(self.seed, number), dtype=self.policy, name=f"dropout{number}")

    def logits(self, number, num_classes, use_bias=True):
        """A list: the last dense layer, and what multiplies the logits if the network has it.

        It computes in float32 or better, because bfloat16 logits have only 8 significant bits.
        """
        dtype = keras.dtype_policies.get(self.policy).variable_dtype
        layer = keras.layers.Dense(num_classes, use_bias=use_bias, dtype=dtype, name="logits", **self._weights(number))
        scale = Scale(self.logit_scale, dtype=dtype, name="scaled_logits")
        return [layer] if self.logit_scale == 1 else [layer, scale]


def alexnet(
    num_classes, *, policy, seed, towers, dense_units, cross_connection, paper_init, paper_biases, dropout_rate=0.5, **shared,
):
    """The paper's network for 224x224 images: 60,965,224 parameters with two towers and 1000 classes.

    `towers=1` connects every convolution to all maps of the layer before it. (Section 3.2 reports that two towers have 1.7 points
    less top-1 error than one tower with half as many kernels.) `cross_connection=False` keeps the towers apart in conv 3 too, as
    in conv 4 and 5. Weights start from N(0, 0.01), or from `he_uniform` without `paper_init`. Biases start from 1 in conv 2, 4, 5
    and the hidden dense layers, else from 0 (section 5); without `paper_biases` all start from 0. `shared` are options that
    `LayerMaker` explains.
    """
    normal = functools.partial(keras.initializers.RandomNormal, stddev=0.01)
    initializer = normal if paper_init else keras.initializers.HeUniform
    make = LayerMaker(policy, seed, initializer, **shared)
    one = 1.0 if paper_biases else 0.0
    return [
        *make.whitening(),  # nothing, or [B, 224, 224, 24]
        keras.layers.ZeroPadding2D(((1, 2), (1, 2)), dtype=policy, name="pad1"),  # [B, 227, 227, 3]
        *make.conv(1, 96, 11, strides=4, padding="valid"),  # [B, 55, 55, 96]
        *make.response_norm(1),  # [B, 55, 55, 96]
        make.pool(1),  # [B, 27, 27, 96]
        *make.conv(2, 256, 5, groups=towers, bias=one),  # [B, 27, 27, 256]
        *make.response_norm(2),  # [B, 27, 27, 256]
        make.pool(2),  # [B, 13, 13, 256]
        *make.conv(3, 384, 3, groups=1 if cross_connection else towers),  # [B, 13, 13, 384], sees both towers
        *make.conv(4, 384, 3, groups=towers, bias=one),  # [B, 13, 13, 384]
        *make.conv(5, 256, 3, groups=towers, bias=one),  # [B, 13, 13, 256]
        make.pool(5),  # [B, 6, 6, 256]
        make.flatten(),  # [B, 9216]
        *make.dense(6, dense_units, bias=one),  # [B, 4096]
        make.dropout(6, dropout_rate),  # [B, 4096]
        *make.dense(7, dense_units, bias=one),  # [B, 4096]
        make.dropout(7, dropout_rate),  # [B, 4096]
        *make.logits(8, num_classes),  # [B, num_classes]
    ]


def alexnet_tower(num_classes, *, policy, seed, dense_units, dropout_rate=0.5, **shared):
    """One of the paper's two towers, for 32x32 images: the same numbers of filters, of size 5x5 and 3x3, with stride 1.

    3,991,754 parameters with 10 classes. Weights start from `he_uniform`, biases from 0. `shared` are options that `LayerMaker`
    explains.
    """
    make = LayerMaker(policy, seed, keras.initializers.HeUniform, pool_padding="same", **shared)
    return [
        *make.whitening(),  # nothing, or [B, 32, 32, 24]
        *make.conv(1, 48, 5),  # [B, 32, 32, 48]
        *make.response_norm(1),  # [B, 32, 32, 48]
        make.pool(1),  # [B, 16, 16, 48]
        *make.conv(2, 128, 3),  # [B, 16, 16, 128]
        *make.response_norm(2),  # [B, 16, 16, 128]
        make.pool(2),  # [B, 8, 8, 128]
        *make.conv(3, 192, 3),  # [B, 8, 8, 192]
        *make.conv(4, 192, 3),  # [B, 8, 8, 192]
        *make.conv(5, 128, 3),  # [B, 8, 8, 128]
        make.pool(5),  # [B, 4, 4, 128]
        make.flatten(),  # [B, 2048]
        *make.dense(6, dense_units),  # [B, 1024]
        make.dropout(6, dropout_rate),  # [B, 1024]
        *make.dense(7, dense_units),  # [B, 1024]
        make.dropout(7, dropout_rate),  # [B, 1024]
        *make.logits(8, num_classes),  # [B, num_classes]
    ]


def alexnet_mini(num_classes, *, policy, seed, dense_units, dense7_relu, dropout_rate=0.0, **shared):
    """The reduced network of a common tutorial, for 32x32 images: 18,075,242 parameters with 10 classes.

    As in the tutorial, the second dense layer has no activation (`dense7_relu` adds one) and there is no dropout by default.
    Weights start from `he_uniform`, biases from 0. `shared` are options that `LayerMaker` explains. With `width=0.1` and
    `dense_units=256` the network has 76,781 parameters and 350,528 multiply-adds per image; the whole network has 33,275,904
    multiply-adds, 95 times as many.
    """
    make = LayerMaker(policy, seed, keras.initializers.HeUniform, pool_padding="same", **shared)
    return [
        *make.whitening(),  # nothing, or [B, 32, 32, 24]
        *make.conv(1, 24, 5),  # [B, 32, 32, 24]
        *make.response_norm(1),  # [B, 32, 32, 24]
        make.pool(1),  # [B, 16, 16, 24]
        *make.conv(2, 64, 3),  # [B, 16, 16, 64]
        *make.response_norm(2),  # [B, 16, 16, 64]
        make.pool(2),  # [B, 8, 8, 64]
        *make.conv(3, 128, 3),  # [B, 8, 8, 128]
        *make.conv(4, 64, 3),  # [B, 8, 8, 64]
        make.pool(4),  # [B, 4, 4, 64]
        *make.conv(5, 64, 3),  # [B, 4, 4, 64]
        make.pool(5),  # [B, 2, 2, 64]
        make.flatten(),  # [B, 256]
        *make.dense(6, dense_units),  # [B, 4096]
        make.dropout(6, dropout_rate),  # [B, 4096]
        *make.dense(7, dense_units, active=dense7_relu),  # [B, 4096]
        make.dropout(7, dropout_rate),  # [B, 4096]
        *make.logits(8, num_classes),  # [B, num_classes]
    ]


LARGEST_MINIMUM = 256  # pixels; a network that takes no image of up to this size has another problem than the size
_NETWORKS = {"alexnet": alexnet, "alexnet_tower": alexnet_tower, "alexnet_mini": alexnet_mini}


def build(name, num_classes, image_shape, options, dropout_rate, policy, seed):
    """Builds one of `names.ALEXNETS`. `alexnet.build` has checked the arguments, but not the size of the images."""
    network = _NETWORKS[name.removesuffix("_sequential")]
    return build_chain(network, name, num_classes, image_shape, options, dropout_rate, policy, seed)


def build_chain(network, name, num_classes, image_shape, options, dropout_rate, policy, seed):
    """Chains the layers that a function such as `alexnet_tower` returns into a model."""
    dropout = {} if dropout_rate is None else {"dropout_rate": dropout_rate}
    layers = network(num_classes, policy=policy, seed=seed, **options, **dropout)
    height, width, _ = image_shape
    if problem := _misfit(layers, height, width):
        fitting = (size for size in range(1, LARGEST_MINIMUM) if not _misfit(layers, size, size))
        remedy = next((f"it needs at least {size}x{size} pixels" for size in fitting), problem)
        raise ValueError(f"{name} cannot take images of {height}x{width}: {remedy}")
    images = keras.Input(image_shape, dtype=keras.dtype_policies.get(policy).variable_dtype, name="images")
    if name.endswith("_sequential"):
        return keras.Sequential([images, *layers], name=name)
    logits = functools.reduce(lambda tensor, layer: layer(tensor), layers, images)
    return keras.Model(images, logits, name=name)


def _misfit(layers, height, width):
    """Why an image of this size leaves no pixel for the dense layers; empty if it leaves some."""
    shape = (None, height, width, 3)
    try:
        for layer in layers:
            shape = layer.compute_output_shape(shape)
    except ValueError as error:
        return str(error).splitlines()[0]
    return ""
