"""A residual network for 32x32 images: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015), section 4.2.

Departures from that paper:
- batch normalization uses the statistics of all replicas. Its momentum is 0.9 and its epsilon 1e-5; the paper does not give them;
- there is a dropout layer before the last layer, because `--dropout_rate` works for every network here. Its default rate is 0.
"""

import itertools

import keras

from alexnet.later_layers import BatchNormalization
from alexnet.layers import Dropout, PaddedShortcut, layer_seed

BLOCKS_PER_SIZE = 3  # the paper's n; the network has 6 n + 2 layers with weights


class LayerMaker:
    """Makes layers and applies them to a tensor. Each layer derives the seed of its initial weights from `seed`."""

    def __init__(self, policy, seed):
        self.policy = policy  # Keras dtype policy of all layers except the last
        self._seeds = (layer_seed(seed, number) for number in itertools.count(1))

    def weights(self):
        """Keyword arguments of a layer. Kernels start from N(0, 2 / fan-in) (He et al., "Delving Deep into Rectifiers")."""
        return {"kernel_initializer": keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", next(self._seeds))}

    def conv(self, x, name, filters, size=3, strides=1):
        """A convolution without bias, followed by batch normalization, which has a bias."""
        if size > 1 and strides > 1:  # Padding "same" would pad only below and on the right: half a pixel off the shortcut.
            x = keras.layers.ZeroPadding2D(size // 2, dtype=self.policy, name=f"{name}_pad")(x)
        x = keras.layers.Conv2D(
            filters, size, strides, "valid" if strides > 1 else "same", use_bias=False, dtype=self.policy, name=name,
            **self.weights())(x)
        return BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=self.policy, name=f"{name}_norm")(x)

    def relu(self, x, name):
        """The activation, as a layer with a name."""
        return keras.layers.ReLU(dtype=self.policy, name=name)(x)

    def block(self, x, name, filters, projection):
        """Two 3x3 convolutions and a shortcut around them. If the number of filters grows, height and width are halved."""
        shortcut, halves = x, filters != x.shape[-1]
        x = self.relu(self.conv(x, f"{name}_conv1", filters, strides=2 if halves else 1), f"{name}_relu1")
        x = self.conv(x, f"{name}_conv2", filters)
        if halves and projection:
            shortcut = self.conv(shortcut, f"{name}_shortcut", filters, size=1, strides=2)
        elif halves:
            shortcut = PaddedShortcut(dtype=self.policy, name=f"{name}_shortcut")(shortcut)
        return self.relu(keras.layers.Add(dtype=self.policy, name=f"{name}_add")([x, shortcut]), f"{name}_relu2")


def resnet20(images, num_classes, *, policy, seed, projection, dropout_rate=0.0):
    """20 layers with weights. With 10 classes it has 269,722 trainable parameters, the paper's 0.27 million.

    By default, shortcuts fill new channels with zeros (`PaddedShortcut`, the paper's option A, which it uses on CIFAR-10).
    With `projection` they are 1x1 convolutions (option B), and there are 272,474 trainable parameters.
    """
    make = LayerMaker(policy, seed)
    x = make.relu(make.conv(images, "conv", 16), "relu")  # [B, 32, 32, 16]
    for filters in (16, 32, 64):  # [B, 32, 32, 16], [B, 16, 16, 32], [B, 8, 8, 64]
        for block in range(1, BLOCKS_PER_SIZE + 1):
            x = make.block(x, f"maps{filters}_block{block}", filters, projection)
    x = keras.layers.GlobalAveragePooling2D(dtype=policy, name="pool")(x)  # [B, 64]
    x = Dropout(dropout_rate, layer_index=0, seed=layer_seed(seed, 0), dtype=policy, name="dropout")(x)  # [B, 64]
    dtype = keras.dtype_policies.get(policy).variable_dtype
    return keras.layers.Dense(num_classes, dtype=dtype, name="logits", **make.weights())(x)  # [B, num_classes]


def build(name, num_classes, image_shape, options, dropout_rate, policy, seed):
    """Builds one of `names.RESNETS`. `alexnet.build` has checked the arguments."""
    dropout = {} if dropout_rate is None else {"dropout_rate": dropout_rate}
    images = keras.Input(image_shape, dtype=keras.dtype_policies.get(policy).variable_dtype, name="images")
    logits = resnet20(images, num_classes, policy=policy, seed=seed, **options, **dropout)
    return keras.Model(images, logits, name=name)
