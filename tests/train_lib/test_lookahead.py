"""Lookahead, the rate of normalization biases and the views of the test split, against plain steps and NumPy."""

import json

import numpy as np
import pytest
import tensorflow as tf
from drivers import Driver, make_config, random_split, run_mode

from train_lib import schedules
from train_lib.checkpoints.tensor_files import read_tensors
from train_lib.evaluate import mean_logits, mirrored_views, shifted_views

NETWORK = {"model": "airbench", "model_options": "filters1=4,filters2=6,filters3=8", "precision": "float64", "momentum": 0.5}
SHARES = [0.0, 0.7, 0.0, 0.25]


@pytest.fixture(scope="module")
def split():
    return random_split()


def step(driver, number, share=None, spoil=lambda batches, shard: batches):
    shares = np.zeros(driver.config.device.steps_per_loop)
    shares[0] = share or 0.0
    arguments = driver.arguments(1, lambda batches, shard: spoil(batches.skip(number), shard), first_step=number)
    driver.loop(*arguments, *([] if share is None else looking_ahead(shares)))


def looking_ahead(shares):
    """The two arguments of the loop for Lookahead."""
    return tf.constant(shares, tf.float64), tf.constant(np.array(shares) > 0, tf.int32)


def floats(driver):
    """All that Lookahead moves: trainable weights and batch statistics."""
    return [*driver.state.model.trainable_variables, *driver.state.batch_statistics]


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_slow_weights_by_hand(split, num_replicas):
    """Plain steps between, and the move in NumPy; batch statistics move too, and the frozen filters do not."""
    plain = Driver(make_config(**NETWORK), split)
    ahead = Driver(make_config(**NETWORK, lookahead_steps=2), split, num_replicas)
    slow = [variable.numpy() for variable in floats(plain)]
    assert len(ahead.state.averages) == len(slow) == len(ahead.state.averaged)
    for number, share in enumerate(SHARES):
        step(plain, number)
        step(ahead, number, share)
        if share:
            slow = [value + share * (variable.numpy() - value) for value, variable in zip(slow, floats(plain), strict=True)]
            for variable, value in zip(floats(plain), slow, strict=True):
                variable.assign(value)
        for variable, expected in zip(floats(ahead), floats(plain), strict=True):
            np.testing.assert_allclose(variable.numpy(), expected.numpy(), rtol=1e-8, atol=1e-11)
        for variable, expected in zip(ahead.state.averages, slow, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-8, atol=1e-11)
    step(ahead, 9, 0.0)
    trained = [variable.numpy() for variable in floats(ahead)]
    with ahead.state.averages_in_place():
        for variable, expected in zip(floats(ahead), slow, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-8, atol=1e-11)
    for variable, expected in zip(floats(ahead), trained, strict=True):
        np.testing.assert_array_equal(variable.numpy(), expected)


def test_a_skipped_step_moves_nothing(split):
    def with_infinity(batches, shard):
        return batches.map(lambda batch: batch | {"image": tf.cast(batch["image"], tf.float64) * np.inf})

    driver = Driver(make_config(**NETWORK, lookahead_steps=1), split)
    before = [variable.numpy() for variable in (*floats(driver), *driver.state.averages)]
    step(driver, 0, 0.5, with_infinity)
    for variable, value in zip((*floats(driver), *driver.state.averages), before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_share_by_hand():
    """1 - 0.95^k (step / steps)^3 after every k-th step; at the end of 100 steps it is 1 - 0.95^5 = 0.2262."""
    config = make_config(lookahead_steps=5)
    shares = [schedules.lookahead_share(step, config, 100) for step in range(100)]
    assert [step for step, share in enumerate(shares) if share] == list(range(4, 100, 5))
    assert shares[99] == pytest.approx(0.2262190625, rel=1e-12)
    assert shares[49] == pytest.approx(1 - 0.7737809375 / 8, rel=1e-12)
    assert schedules.lookahead_share(199, config, 100) == shares[99]
    assert not any(schedules.lookahead_share(step, make_config(), 100) for step in range(100))


def test_the_bias_rate_reaches_the_biases_of_normalization_only(split):
    """One step with it and one without: the way of each such bias is 64 times as long, that of all others the same."""
    moved = []
    for values in ({}, {"bias_rate": 64.0}):
        driver = Driver(make_config(**NETWORK | {"momentum": 0.0}, **values), split)
        before = driver.weights()
        step(driver, 0)
        moved.append([after - value for after, value in zip(driver.weights(), before, strict=True)])
    paths = [variable.path for variable in driver.state.model.trainable_variables]
    assert sum(path.endswith("_norm/beta") for path in paths) == 6
    for path, plain, fast in zip(paths, *moved, strict=True):
        assert np.abs(plain).max() > 0, path
        np.testing.assert_allclose(fast, plain * (64 if path.endswith("_norm/beta") else 1), rtol=1e-9, err_msg=path)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-4), ("bfloat16", 0.05)])
def test_two_replicas_are_close_to_one_with_the_fused_layers(split, precision, tolerance):
    """One replica normalizes by the fused kernel, several by Keras's operations; GELU is compiled on each of several devices."""
    losses = []
    for num_replicas in (1, 2):
        driver = Driver(make_config(**NETWORK | {"precision": precision}, lookahead_steps=2, bias_rate=4.0), split, num_replicas)
        *_, reports = driver.loop(*driver.arguments(4), *looking_ahead([0.0, 0.5] * 10))
        losses.append(reports["loss"].numpy()[:4])
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


# Test views.


def test_six_views_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), np.uint8)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    up_left, down_right = padded[:, 2:, 2:], padded[:, :-2, :-2]
    expected = [view for window in (images, up_left, down_right) for view in (window, window[:, :, ::-1])]
    views = shifted_views(tf.constant(images))
    np.testing.assert_array_equal(np.stack(views), np.stack(expected))
    np.testing.assert_array_equal(np.stack(mirrored_views(tf.constant(images))), np.stack(expected[:2]))


def test_the_mean_is_of_logits_and_weighted():
    logits = np.random.default_rng(1).normal(size=(6, 5, 4))
    mean = mean_logits(lambda view: view, list(tf.constant(logits)), [1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8])
    expected = (logits[0] + logits[1]) / 4 + logits[2:].sum(axis=0) / 8
    np.testing.assert_allclose(mean, expected, rtol=1e-12)


# A run.

RUN = ("--model=airbench", "--model_options=filters1=4,filters2=6,filters3=8", "--bias_rate=8", "--lookahead_steps=2",
       "--optimizer=sgd", "--learning_rate=0.05", "--schedule=triangle", "--augment=crop,alternating_flip", "--crop_padding=2",
       "--crop_border=reflect", "--train_split=train[:200]", "--validation_split=test[:60]", "--test_split=test[60:120]",
       "--test_crops=6", "--global_batch_size=32", "--epochs=2", "--log_every_steps=3", "--eval_every_epochs=0.5")


def test_a_run_that_stops_and_goes_on_equals_one_that_does_not(data_dir, tmp_path):
    """Slow weights and filters come from the checkpoint; the slow weights are evaluated."""
    from train_lib.train import train

    common = (f"--data_dir={data_dir}", *RUN)
    assert run_mode(train, *common, f"--workdir={tmp_path / 'whole'}") == 0
    for steps in (5, 13):
        assert run_mode(train, *common, f"--workdir={tmp_path / 'pieces'}", f"--max_steps={steps}") == 0
    whole, pieces = (tmp_path / name for name in ("whole", "pieces"))
    assert (whole / "metrics.jsonl").read_text() == (pieces / "metrics.jsonl").read_text()
    last = (whole / "checkpoints/latest").read_text().strip()
    ours, theirs = (read_tensors(folder / "checkpoints" / last / "ckpt") for folder in (pieces, whole))
    assert ours.keys() == theirs.keys() and any("moving_variance" in name for name in ours if name.startswith("ema/"))
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"train", "validation", "test"}
    assert not any("raw_loss" in record for record in records)
