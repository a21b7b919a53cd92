"""Images in the devices' memory give the same batches as those in the host's, bit for bit, in training and evaluation."""

import numpy as np
import pytest
import tensorflow as tf
from drivers import Driver, make_config, mirrored, random_split

from input_pipeline.common.errors import SettingError
from input_pipeline.config import DataConfig
from input_pipeline.sources import open_source
from input_pipeline.splits import device, open_split
from input_pipeline.splits.device import DeviceSplit
from input_pipeline.splits.resident import ResidentSplit
from tests.input_pipeline.splits.test_resident import take
from train_lib.distribution.strategy import distribute
from train_lib.evaluate import SplitEvaluator, make_eval_step


def pair(num_examples=100, shape=(32, 32), padding=None, border="zeros"):
    """The same images of noise as two splits: in the host's memory and on the device."""
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (num_examples, *shape, 3), np.uint8)
    labels = generator.integers(0, 10, num_examples).astype(np.int32)
    return ResidentSplit(images, labels, padding, border), DeviceSplit(images, labels, padding, border)


def through(strategy, split, draw, count):
    """The first `count` global batches as a compiled loop receives them, each {name: array}."""
    iterator = distribute(strategy, lambda shard: draw(split, shard), split)
    following = tf.function(lambda: next(iterator))

    def host(per_replica):
        return np.concatenate([value.numpy() for value in strategy.experimental_local_results(per_replica)])

    return [{name: host(values) for name, values in following().items()} for _ in range(count)]


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in other:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize(("augmentations", "replicas"), [
    ((), 1), (("crop", "flip"), 2), (("crop", "alternating_flip"), 2),
    *(pytest.param(*values, marks=pytest.mark.slow) for values in [
        (("crop",), 1), (("flip",), 2), (("crop", "flip"), 1), (("random_resized_crop", "flip"), 2)])])
def test_training_batches_are_those_from_memory(augmentations, replicas):
    """If a window were off by one pixel, or mirrored before it is cut, the run would be another experiment."""
    held, placed = pair()

    def draw(split, shard):
        return split.training_batches(5, 3, 32, augmentations, shard)

    strategy = mirrored(replicas)
    assert_equal(through(strategy, placed, draw, 12), through(strategy, held, draw, 12))


@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation_batches_are_those_from_memory(replicas):
    """If an example counted twice, or padding counted, the accuracy would depend on --input."""
    held, placed = pair(70)

    def draw(split, shard):
        return split.evaluation_batches(32, shard)

    strategy = mirrored(replicas)
    assert_equal(through(strategy, placed, draw, 7), through(strategy, held, draw, 7))


@pytest.mark.parametrize(("shape", "padding", "border"), [
    ((17, 9), 8, "reflect"), *(pytest.param(*values, marks=pytest.mark.slow) for values in [
        ((9, 17), None, "zeros"), ((17, 9), None, "zeros"), ((8, 8), None, "zeros"), ((9, 17), 9, "zeros"),
        ((9, 17), 8, "reflect"), ((8, 8), None, "reflect"), ((8, 8), 0, "reflect")])])
def test_images_of_any_shape_and_border(shape, padding, border):
    """Images that are not square, or whose bytes do not fill whole words, could come out shifted."""
    held, placed = pair(40, shape, padding, border)

    def draw(split, shard):
        return split.training_batches(0, 0, 64, ("crop", "flip"), shard)

    assert_equal(through(mirrored(1), placed, draw, 3), through(mirrored(1), held, draw, 3))


def test_the_host_sends_no_pixels():
    """If the batches contained images, --input=device would be useless, and nobody would notice."""
    for batch in take(pair()[1].training_batches(0, 0, 32, ("crop", "flip")), 1):
        assert set(batch) == {"index", "top", "left", "mirrored", "label"}
        assert all(values.dtype == np.int64 and values.shape == (32,) for values in batch.values())


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_device_has_its_table(replicas):
    """If the table were on another device, it would be copied in each step."""
    split = pair()[1]
    distribute(mirrored(replicas), lambda shard: split.evaluation_batches(32, shard), split)
    places = [(tf.DeviceSpec.from_string(name).device_index, table.device) for name, table in split._on_devices.items()]
    assert [index for index, _ in places] == list(range(replicas))
    assert all(place.endswith(f"CPU:{index}") for index, place in places)


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_and_evaluation_are_those_from_memory(replicas):
    """If the loop looked images up in another order than that of the iterator, it would train on other examples."""
    values = []
    for split in pair():
        config = make_config(precision="float64")
        driver = Driver(config, split, replicas)
        _, _, reports = driver.run(4)
        eval_step = make_eval_step(driver.strategy, driver.state)
        totals = SplitEvaluator(driver.strategy, eval_step, split, 10, 32).evaluate()
        values.append((reports["loss"][:4], driver.weights(), totals.summary()))
    np.testing.assert_array_equal(values[0][0], values[1][0])
    for weight, other in zip(values[0][1], values[1][1], strict=True):
        np.testing.assert_array_equal(weight, other)
    assert values[0][2] == values[1][2]


def test_statistics_are_those_from_memory():
    held, placed = pair(padding=7, border="reflect")
    np.testing.assert_array_equal(held.pixel_statistics(), placed.pixel_statistics())
    np.testing.assert_array_equal(take(placed.on_host.training_batches(0, 0, 9, ("crop",)), 1)[0]["image"],
                                  take(held.training_batches(0, 0, 9, ("crop",)), 1)[0]["image"])


def test_images_that_do_not_fit_are_refused(monkeypatch):
    """Otherwise the system would kill the process without a message."""
    monkeypatch.setattr(device, "free_gigabytes", lambda: 1e-5)
    split = DeviceSplit(random_split().images, random_split().labels)
    with pytest.raises(SettingError, match="^--input=device: the images take 0.00031 GB on each device") as caught:
        distribute(mirrored(1), lambda shard: split.evaluation_batches(10, shard), split)
    assert "\n" not in str(caught.value)


def test_a_device_that_has_no_room_is_told(monkeypatch):
    """TensorFlow's own error names an unrelated batch size, or a copy that the user did not ask for."""

    def fail(array):
        raise tf.errors.InternalError(None, None, "Dst tensor is not initialized.")

    monkeypatch.setattr(device.tf, "constant", fail)
    with pytest.raises(SettingError, match="^--input=device: "):
        pair()[1].table_on("/device:CPU:0")


def test_open_split_gives_it_by_name(data_dir):
    config, lines = DataConfig(data_dir=str(data_dir), input="device"), []
    split = open_split(config, open_source(config), "test[:50]", "test_split", log=lines.append)
    assert isinstance(split, DeviceSplit)
    assert "on the device" in lines[0]
