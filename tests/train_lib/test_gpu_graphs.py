"""What a GPU would run of the compiled loops, proved without one: every operation, and nothing that the host waits for."""

import itertools
import time

import numpy as np
import pytest
import tensorflow as tf
from drivers import BATCH, Driver, make_config, mirrored, random_split
from gpu_graph import GpuGraph

from alexnet import names
from input_pipeline.common.batches import timed, without_autotune
from input_pipeline.config import AUGMENTATIONS
from input_pipeline.splits.device import DeviceSplit
from train_lib.config import ModelConfig, OptimizerConfig
from train_lib.distribution.strategy import create_strategy, distribute
from train_lib.evaluate import VIEW_WEIGHTS, VIEWS, make_eval_step
from train_lib.state import PixelScaling, create_state, tensors_of

PIXELS = PixelScaling(np.full(3, 120.0), np.full(3, 1 / 64), np.full(3, 125.0), np.eye(3))
PRECISIONS = ModelConfig.__dataclass_fields__["precision"].metadata["choices"]
OPTIMIZERS = OptimizerConfig.__dataclass_fields__["optimizer"].metadata["choices"]
SMALL = "width=0.1,dense_units=16"
LATER = "norm=batch,activation=gelu,whiten=true,dirac=true,logit_scale=0.1"
NETWORKS = {
    "alexnet_mini": SMALL, "alexnet_mini_sequential": SMALL, "alexnet_tower": f"{SMALL},lrn=true",
    "alexnet_tower_sequential": f"{SMALL},{LATER}", "airbench": "filters1=4,filters2=6,filters3=8", "resnet20": "",
    "alexnet": "dense_units=16,lrn=true",
}
SIZES = {"alexnet": 96}


@pytest.fixture(scope="module")
def split():
    return random_split()


def graph_of_training(split, values, num_replicas=1):
    """The GpuGraph of the compiled loop for settings, with the batches of a run, which tell how long they were waited for."""
    config = make_config(steps_per_loop=4, **values)
    size = split.image_shape[:2]
    strategy = mirrored(num_replicas)
    state = create_state(config, strategy, 10, (*size, 3), PIXELS)
    driver = Driver(config, split, strategy=strategy, make_state=lambda: state)
    ahead = [tf.zeros([4], tf.float64), tf.constant([0, 1, 0, 1])] if config.optimization.lookahead_steps else []
    return GpuGraph(driver.loop.get_concrete_function(*driver.arguments(2, lambda batches, shard: timed(batches)), *ahead))


def assert_ready(graph):
    """No operation of the loop is an exception."""
    assert not graph.on_host and not graph.waits_in_a_loop()
    assert graph.operations["While"] == 1 and sum(graph.operations.values()) > 300


@pytest.mark.parametrize(("model", "precision"), itertools.product(NETWORKS, PRECISIONS))
def test_networks(model, precision, split):
    size = SIZES.get(model, 32)
    split = split if size == 32 else type(split)(np.zeros((BATCH, size, size, 3), np.uint8), np.zeros(BATCH, np.int32))
    assert_ready(graph_of_training(split, {"model": model, "model_options": NETWORKS[model], "precision": precision}))


def test_the_list_of_networks_is_complete():
    assert NETWORKS.keys() == set(names.OWN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["ResNet50", "MobileNetV3Small", "EfficientNetV2B0", "DenseNet121", "NASNetMobile", "ConvNeXtTiny", "VGG16"])
def test_networks_of_keras(model, split):
    """One of each kind of layers; in two precisions."""
    for precision in ("float32", "bfloat16"):
        values = {"model": model, "model_options": "", "dropout_rate": None, "precision": precision}
        assert_ready(graph_of_training(split, values))


@pytest.mark.parametrize(("optimizer", "precision"), itertools.product(OPTIMIZERS, ("float32", "float64", "float16")))
@pytest.mark.parametrize("averages", [{"ema_decay": 0.9, "accumulate_steps": 2}, {"lookahead_steps": 2, "bias_rate": 4.0}])
def test_optimizers(optimizer, precision, averages, split):
    values = {"optimizer": optimizer, "precision": precision, "weight_decay": 1e-3, "clip_global_norm": 1.0}
    assert_ready(graph_of_training(split, {"model_options": SMALL, "label_smoothing": 0.1} | values | averages))


@pytest.mark.parametrize(("augmentation", "precision"), itertools.product(AUGMENTATIONS, PRECISIONS))
def test_augmentations(augmentation, precision, split):
    assert_ready(graph_of_training(split, {"model_options": SMALL, "augment": augmentation, "precision": precision}))


@pytest.mark.parametrize("border", ["zeros", "reflect"])
@pytest.mark.parametrize("window", ["crop", "random_resized_crop"])
def test_images_in_the_memory_of_the_device(window, border, split):
    split = DeviceSplit(split.images, split.labels, border=border)
    assert_ready(graph_of_training(split, {"model_options": SMALL, "augment": f"{window},flip"}))


def test_two_replicas(split):
    """The same on each of several devices. (What only GPUs have, NCCL, is not in this graph.)"""
    assert_ready(graph_of_training(split, {"model_options": SMALL, "precision": "float16"}, num_replicas=2))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("test_crops", [1, *VIEW_WEIGHTS, VIEWS])
def test_evaluation(test_crops, precision, split):
    config = make_config(model="airbench", model_options=NETWORKS["airbench"], precision=precision)
    state = create_state(config, mirrored(1), 10, split.image_shape, PIXELS)
    batch = {"image": tf.zeros([4, 32, 32, 3], tf.uint8), "label": tf.zeros([4], tf.int64)}
    graph = GpuGraph(make_eval_step(mirrored(1), state, test_crops).get_concrete_function(batch))
    # tf.map_fn joins two conditions on the device: the host waits once per view, in evaluation only.
    assert not graph.on_host and {found.about for found in graph.waits} <= {"condition of the loop"}


# One GPU.


def test_one_gpu_has_a_strategy_that_fetches_ahead(monkeypatch):
    """TensorFlow's default strategy does not. The GPU here is only a name."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *arguments: None)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *arguments: None)
    strategy = create_strategy(make_config())
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy) and strategy.extended.worker_devices[0].endswith("GPU:0")


def batches_made_for_one(strategy, monkeypatch):
    """How many batches the pipeline has made a while after one was asked for, on a strategy over what counts as a GPU."""
    made = []
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["GPU:0"])

    def make(number):
        made.append(number)
        return number

    def batches(shard):
        return without_autotune(tf.data.Dataset.range(100).map(lambda number: tf.numpy_function(make, [number], tf.int64)))

    next(distribute(strategy, batches))
    for _ in range(50):
        time.sleep(0.02)
    return len(made)


def test_batches_are_there_before_they_are_asked_for(monkeypatch):
    assert batches_made_for_one(tf.distribute.get_strategy(), monkeypatch) == 1
    assert batches_made_for_one(tf.distribute.OneDeviceStrategy("/cpu:0"), monkeypatch) >= 3


def test_one_gpu_trains_what_the_default_strategy_trains(split, monkeypatch):
    """The other strategy changes no bit, here on a CPU that counts as a GPU."""
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["GPU:0"])
    values = {"model_options": SMALL, "steps_per_loop": 4, "precision": "float16", "ema_decay": 0.9, "dropout_rate": 0.5}
    found = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.OneDeviceStrategy("/cpu:0")):
        driver = Driver(make_config(**values), split, strategy=strategy)
        driver.run(4)
        found.append(tensors_of(driver.state))
    for (name, ours), default in zip(found[1].items(), found[0].values(), strict=True):
        np.testing.assert_array_equal(ours, default, err_msg=name)


# The instrument itself.


def graph_of(function, *arguments):
    return GpuGraph(tf.function(function).get_concrete_function(*arguments))


def test_the_instrument_sees_what_it_looks_for():
    """Each of these makes the host wait on a GPU; the loop once had the first four."""
    number = tf.constant(1.0)

    def branch(x):
        return tf.cond(x > 0, lambda: x + 1, lambda: x)

    def leave(x):
        for _ in tf.range(3):
            x += 1
            if x > 2:
                break
        return x

    def compare(x):
        return tf.equal(tf.argmax(tf.stack([x, x]), output_type=tf.int32), 1)

    def count(x):
        return tf.cast(x > 0, tf.int32) + 1

    def shape(x):
        return tf.zeros(tf.cast(x, tf.int32)[tf.newaxis])

    for function in (branch, leave, compare, count, shape):
        assert graph_of(function, number).waits, function.__name__
    assert not graph_of(lambda x: tf.where(x > 0, x + 1, x), number).waits
    clock = graph_of(lambda x: tf.timestamp() + tf.cast(x, tf.float64), number)
    assert [found.type for found in clock.on_host] == ["Timestamp"]
