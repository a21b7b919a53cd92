"""Networks of keras.applications in the training loop, on two logical devices."""

import numpy as np
import pytest
from drivers import Driver, make_config, mirrored, random_split

import alexnet
from train_lib.state import find_batch_statistics

BATCH = 8


def drive(name, num_replicas, num_steps, **values):
    """A network after some steps on noise, and the losses."""
    config = make_config(
        model=name, model_options="", dropout_rate=None, global_batch_size=BATCH, steps_per_loop=num_steps,
        learning_rate=2.0**-10, **values)
    driver = Driver(config, random_split(BATCH), num_replicas)
    before = {variable.path: variable.numpy() for variable in driver.state.model.variables}
    done, _, reports = driver.run(num_steps)
    assert done == num_steps and reports["finite"].all()
    return driver, before, reports["loss"]


def copies(variable):
    """The value of a variable on each replica."""
    return [copy.numpy() for copy in variable.value.values]


def assert_trained(driver, before):
    """Every weight and moving statistic has moved, and both replicas hold the same numbers."""
    for variable in driver.state.model.variables:
        first, second = copies(variable)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)
        if variable.trainable or "moving_" in variable.path:
            assert (first != before[variable.path]).any(), variable.path


@pytest.mark.slow
def test_vgg16_trains_on_two_devices():
    driver, before, losses = drive("VGG16", 2, 2)
    assert losses[0] != losses[1]
    assert_trained(driver, before)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch_norms"), [("VGG16", 0), ("ResNet50", 53)])
def test_two_devices_compute_what_one_does(name, batch_norms):
    """In float64: statistics of half a batch, or dropout masks that come twice, would part them at once.

    Slow: TensorFlow traces each reduction of batch normalization over logical CPU devices in a time that grows with the graph.
    """
    one, _, losses = drive(name, 1, 3, precision="float64")
    two, before, theirs = drive(name, 2, 3, precision="float64")
    assert len(np.unique(losses)) == 3
    assert sum("moving_mean" in path for path in before) == batch_norms
    np.testing.assert_allclose(theirs, losses, rtol=1e-8)
    for mine, other in zip(one.state.model.variables, two.state.model.variables, strict=True):
        np.testing.assert_allclose(other.numpy(), mine.numpy(), rtol=1e-7, atol=1e-8, err_msg=mine.path)
    assert_trained(two, before)


@pytest.mark.slow
def test_resnet20_learns_on_two_devices():
    """64 random images by heart: synchronized statistics that hurt the gradient would leave the loss at ln 10."""
    config = make_config(model="resnet20", model_options="", augment="none", global_batch_size=32, learning_rate=0.05)
    driver = Driver(config, random_split(64), 2)
    losses = np.concatenate([driver.run(20, first_step=20 * call)[2]["loss"] for call in range(4)])
    assert losses[-4:].mean() < 0.5 < 2 < losses[0]


@pytest.mark.parametrize("replicas", [1, 2])
def test_frozen_kernels_are_no_batch_statistics(replicas):
    """Copied and written back at every step like statistics, they made a step with seven frozen layers a third slower."""
    with mirrored(replicas).scope():
        model = alexnet.build("resnet20", 10, (32, 32, 3))
        everything = find_batch_statistics(model)
        frozen = [layer for layer in model.layers if layer.name.startswith(("conv", "maps16"))]
        for layer in frozen:
            layer.trainable = False
        left = find_batch_statistics(model)
    assert len(everything) == 2 * 19 and all("moving_" in variable.path for variable in everything)
    # Keras also stops updating the statistics of a frozen layer.
    names = {layer.name for layer in frozen}
    assert [v.path for v in left] == [v.path for v in everything if v.path.split("/")[0] not in names]
    assert 0 < len(left) < len(everything)
