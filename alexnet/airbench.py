"""The network of airbench94: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, section 3 and its code.

Departures from it:
- the bias of the whitening layer is trained to the end, not for three epochs only;
- the last pooling takes the maximum of the whole map, so that images of any size fit; at 32x32 it is the same;
- moving averages of the variance divide by the number of values, PyTorch's by that number minus 1;
- there is a dropout layer before the last layer, because `--dropout_rate` works for every network here. Its default rate is 0.
"""

import functools

import keras

from alexnet.alexnet import LayerMaker, build_chain

# PyTorch's default for convolutions and dense layers: uniform within 1 / sqrt(fan in).
_UNIFORM = functools.partial(keras.initializers.VarianceScaling, 1 / 3, "fan_in", "uniform")
NORM_MOMENTUM, NORM_EPSILON = 0.6, 1e-12


def airbench(num_classes, *, policy, seed, filters1, filters2, filters3, dropout_rate=0.0, **shared):
    """A whitening layer and three groups of two 3x3 convolutions, for 32x32 images.

    1,971,352 trainable parameters with 10 classes. In each group, a 2x2 max pool follows the first convolution, and batch
    normalization without scale and GELU follow both. Airbench95 has 128, 384 and 384 filters. `shared` are options that
    `LayerMaker` explains. Without `whiten`, the first layer is a trained convolution of the same size. With `lrn`, response
    normalization follows the first two groups.
    """
    make = LayerMaker(policy, seed, _UNIFORM, norm_momentum=NORM_MOMENTUM, norm_epsilon=NORM_EPSILON, **shared)
    return [
        *(make.whitening("valid") or make.conv(0, 24, 2, padding="valid")),  # [B, 31, 31, 24]
        *make.conv(1, filters1, 3, pool=[make.pool(1)]),  # [B, 15, 15, 64]
        *make.conv(2, filters1, 3),  # [B, 15, 15, 64]
        *make.response_norm(2),  # [B, 15, 15, 64]
        *make.conv(3, filters2, 3, pool=[make.pool(3)]),  # [B, 7, 7, 256]
        *make.conv(4, filters2, 3),  # [B, 7, 7, 256]
        *make.response_norm(4),  # [B, 7, 7, 256]
        *make.conv(5, filters3, 3, pool=[make.pool(5)]),  # [B, 3, 3, 256]
        *make.conv(6, filters3, 3),  # [B, 3, 3, 256]
        keras.layers.GlobalMaxPooling2D(dtype=policy, name="pool6"),  # [B, 256]
        make.dropout(7, dropout_rate),  # [B, 256]
        *make.logits(7, num_classes, use_bias=False),  # [B, num_classes]
    ]


def build(name, num_classes, image_shape, options, dropout_rate, policy, seed):
    """Builds one of `names.AIRBENCHES`. `alexnet.build` has checked the arguments, but not the size of the images."""
    return build_chain(airbench, name, num_classes, image_shape, options, dropout_rate, policy, seed)
