"""The figures of docs/scaling.md: the page is up to date, and what it counts is what the loop does."""

import keras
import make_scaling
import pages
import pytest
import scaling
import tensorflow as tf

import alexnet
from train_lib import steps


class Recorder(tf.distribute.ReductionToOneDevice):
    """Sums by plain additions, and keeps how many numbers each all-reduce has."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def batch_reduce_implementation(self, reduce_op, value_destination_pairs, options):
        self.sizes += [value.values[0].shape.num_elements() for value, _ in value_destination_pairs]
        return super().batch_reduce_implementation(reduce_op, value_destination_pairs, options)


def reductions(function, make=lambda: None):
    """Numbers in each all-reduce of `function(make's result)` on two replicas, as they come in its graph."""
    recorder = Recorder()
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], cross_device_ops=recorder)
    with strategy.scope():
        made = make()
    tf.function(lambda: strategy.run(lambda: function(made))).get_concrete_function()
    return recorder.sizes


def test_the_page_is_what_the_arithmetic_says():
    blocks = make_scaling.blocks()
    assert len(blocks) == 6 and pages.filled(make_scaling.PAGE, blocks) == make_scaling.PAGE.read_text()


def test_multiply_adds_by_hand():
    """The paper's network: places * kernel * maps seen * filters; two towers see half of the maps."""
    first = 55 * 55 * 11 * 11 * 3 * 96
    others = 27 * 27 * 5 * 5 * 48 * 256 + 13 * 13 * 3 * 3 * (256 * 384 + 192 * 384 + 192 * 256)
    dense = 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    network = scaling.count("alexnet", 224, 1000)
    assert network.parts["convolutions"][1] == first + others
    assert network.parts["dense layers"][1] == dense
    assert network.multiply_adds == first + others + dense
    assert first < 0.05 * 3 * network.multiply_adds, "the page says how much the first convolution is overrated"


@pytest.mark.parametrize(("name", "pixels", "options"), [("alexnet_mini", 32, "dense_units=64"), ("ResNet50", 32, None)])
def test_multiply_adds_agree_with_tensorflows_profiler(name, pixels, options):
    model = alexnet.build(name, 10, (pixels, pixels, 3), options=options)
    images = tf.TensorSpec((1, pixels, pixels, 3))
    graph = tf.function(lambda images: model(images, training=False)).get_concrete_function(images).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options_of_profile = builder(builder.float_operation()).with_empty_output().build()
    profile = tf.compat.v1.profiler.profile(graph, options=options_of_profile)
    counted = scaling.count(name, pixels, 10, options).multiply_adds
    # The profiler counts biases, pooling and the like too, which are single additions.
    assert 2 * counted <= profile.total_float_ops < 1.03 * 2 * counted


@pytest.mark.parametrize(("name", "pixels", "num_classes", "parameters"), [
    ("alexnet", 224, 1000, 60_965_224), ("alexnet_mini", 32, 10, 18_075_242), ("VGG16", 224, 1000, 138_357_544),
    ("ResNet50", 224, 1000, 25_583_592)])
def test_parameters_without_making_them(name, pixels, num_classes, parameters):
    assert scaling.count(name, pixels, num_classes).parameters == parameters


def test_a_layer_that_it_cannot_count_is_refused():
    with pytest.raises(NotImplementedError, match="DepthwiseConv2D"):
        scaling.count("MobileNet", 32, 10)


def test_a_step_reduces_one_vector_of_all_gradients_and_three_scalars():
    network = scaling.Network("a network", 4 * 3 + 5, 0, 0, {})
    tensors = [tf.ones([4, 3]), tf.ones([5]), tf.ones([]), tf.ones([]), tf.ones([])]
    sizes = reductions(lambda _: steps.sum_over_replicas(tensors))
    assert [4 * size for size in sizes] == [scaling.payload(network)]


def test_a_batch_normalization_reduces_five_times():
    def make():
        images = keras.Input((4, 4, 3))
        outputs = keras.layers.BatchNormalization(synchronized=True)(keras.layers.Conv2D(2, 3)(images))
        model = keras.Model(images, keras.layers.BatchNormalization(synchronized=True)(keras.layers.Conv2D(2, 1)(outputs)))
        model(tf.zeros([1, 4, 4, 3]))
        return model

    def backward(model):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.ones([2, 4, 4, 3]), training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    assert len(reductions(backward, make)) == 2 * scaling.ALL_REDUCES_OF_A_BATCH_NORM


def test_the_ring_and_the_batch():
    link = scaling.Link("a link", 1e9, 0.5, 1e-3)
    gpu = scaling.Gpu({"float32": 6e9, "bfloat16": 12e9}, 0.5, 1e9, 0.5)
    network = scaling.Network("a network", 250_000 - 3, 1_000_000, 0, {})
    assert scaling.payload(network) == 1e6
    assert scaling.reduction_seconds(network, 1, link, gpu) == 0
    # Packing 4 MB at 0.5 GB/s; 1.5 MB over the link at 0.5 GB/s; 6 hops.
    assert scaling.reduction_seconds(network, 4, link, gpu) == pytest.approx(8e-3 + 3e-3 + 6e-3)
    assert scaling.image_seconds(network, "float32", gpu) == pytest.approx(2e-3)
    assert scaling.image_seconds(network, "bfloat16", gpu) == pytest.approx(1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_at_the_smallest_batch_the_reduction_is_a_tenth(precision):
    network = scaling.count("alexnet", 224, 1000)
    seconds = scaling.reduction_seconds(network, 8, scaling.PCIE)
    batch = scaling.smallest_batch(network, seconds, precision)
    shares = [seconds / (seconds + images * scaling.image_seconds(network, precision)) for images in (batch - 1, batch)]
    assert shares[1] <= scaling.LIMIT < shares[0]
