"""The cost of data-parallel training on GPUs, computed from the shapes of the networks and from assumptions.

Nothing here is measured. A step takes the time of its computation plus the time of its reduction, because
`steps.sum_over_replicas` starts after the whole backward pass. Units: seconds, bytes, bytes/s, multiply-adds per image,
floating-point operations/s.
"""

import math
import os
import typing

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # noqa: E402

import alexnet  # noqa: E402
from alexnet.later_layers import PatchWhitening  # noqa: E402

BYTES_OF_FLOAT32 = 4
SCALARS = 3  # loss, correct answers and stop requests travel with the gradients
PASSES_OF_PACKING = 4  # `concat` reads and writes every gradient, and so does `split`
OPERATIONS_OF_A_STEP = 3 * 2  # the backward pass counts as two forward passes, and a multiply-add as two operations
ALL_REDUCES_OF_A_BATCH_NORM = 5  # forward: sum, sum of squares and count; backward: two gradients
LIMIT = 0.1  # largest share of the step that the reduction should take


class Gpu(typing.NamedTuple):
    """A GPU: {precision: peak operations/s}, memory bandwidth, and the share of each that training is assumed to reach."""

    peak: dict
    compute_share: float
    memory: float
    memory_share: float


class Link(typing.NamedTuple):
    """A link between two neighbours in the ring, in one direction: nominal bandwidth, assumed share, latency."""

    name: str
    nominal: float
    share: float
    latency: float

    @property
    def bandwidth(self):
        """The bandwidth that is assumed, in bytes/s."""
        return self.nominal * self.share


class Network(typing.NamedTuple):
    """Counts of one network. Only trainable parameters count, because only their gradients are reduced."""

    name: str
    parameters: int
    multiply_adds: int
    batch_norms: int
    parts: dict  # {"convolutions" or "dense layers": (parameters, multiply-adds)}


A100 = Gpu({"float32": 156e12, "bfloat16": 312e12}, 0.2, 1555e9, 0.8)
H100 = Gpu({"float32": 494.7e12, "bfloat16": 989.4e12}, 0.2, 3350e9, 0.8)
NVLINK, PCIE = Link("NVLink", 300e9, 230 / 300, 3.4e-6), Link("PCIe", 31.5e9, 20 / 31.5, 5.7e-6)
NVLINK_OF_H100 = NVLINK._replace(nominal=450e9)
FAST, SLOW = Link("100 Gbit/s", 12.5e9, 0.4, 9.6e-6), Link("25 Gbit/s", 3.125e9, 0.6, 9.6e-6)


def multiply_adds(layer):
    """Multiply-adds of one image in the forward pass of a layer: kernel size times output positions, without biases."""
    if isinstance(layer, keras.layers.Dense):
        return math.prod(layer.kernel.shape)
    if isinstance(layer, (keras.layers.Conv2D, PatchWhitening)):
        height, width = layer.output.shape[1:3]
        return height * width * math.prod(layer.kernel.shape)
    if layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
        raise NotImplementedError(f"{layer.name}: no rule for the multiply-adds of a {type(layer).__name__}")
    return 0


def count(name, pixels, num_classes, options=None):
    """The `Network` with the counts of the model that `alexnet.build` makes from these arguments."""
    # Only shapes are needed. In this scope Keras makes no weights, so VGG16's 553 MB take neither memory nor time.
    with keras.StatelessScope(initialize_variables=False):
        model = alexnet.build(name, num_classes, (pixels, pixels, 3), options=options)
    kinds = {"convolutions": keras.layers.Conv2D, "dense layers": keras.layers.Dense}
    parts = {}
    for part, kind in kinds.items():
        layers = [layer for layer in model.layers if isinstance(layer, kind)]
        parts[part] = (sum(layer.count_params() for layer in layers), sum(map(multiply_adds, layers)))
    return Network(
        name, sum(math.prod(weight.shape) for weight in model.trainable_variables), sum(map(multiply_adds, model.layers)),
        sum(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers), parts)


def payload(network):
    """Bytes of the packed vector that every replica passes to the all-reduce. It is float32 under every precision."""
    return BYTES_OF_FLOAT32 * (network.parameters + SCALARS)


def bytes_sent(num_bytes, gpus):
    """Bytes that each GPU sends and receives in a ring all-reduce: partial sums go round once, and the result once."""
    return 2 * (gpus - 1) / gpus * num_bytes


def packing_seconds(network, gpu=A100):
    """Seconds to copy the gradients into one vector and back."""
    return PASSES_OF_PACKING * payload(network) / (gpu.memory * gpu.memory_share)


def reduction_seconds(network, gpus, link, gpu=A100):
    """Seconds to pack and all-reduce the gradients. `link` is the slowest link of the ring."""
    if gpus == 1:
        return 0.0
    return packing_seconds(network, gpu) + bytes_sent(payload(network), gpus) / link.bandwidth + 2 * (gpus - 1) * link.latency


def batch_norm_seconds(network, gpus, link):
    """Seconds of the all-reduces in batch normalization. Only latency counts, because each carries a few kilobytes."""
    return network.batch_norms * ALL_REDUCES_OF_A_BATCH_NORM * 2 * (gpus - 1) * link.latency


def image_seconds(network, precision="float32", gpu=A100):
    """Seconds that a GPU takes for one image, forward and backward."""
    return OPERATIONS_OF_A_STEP * network.multiply_adds / (gpu.peak[precision] * gpu.compute_share)


def smallest_batch(network, reduction, precision):
    """The smallest number of images per GPU for which `reduction` seconds are at most LIMIT of the step."""
    return math.ceil((1 / LIMIT - 1) * reduction / image_seconds(network, precision))
